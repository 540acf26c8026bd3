"""Answers of the model to one row an item, and rows to a Score.

In: a format, items, requests with the backend's answers. Out: a pyarrow table (stored with the evaluation) and a Score.
Text is compared, never run. Metrics after OLMES (`metrics/metric.py` MCAccuracy): a choice wins by its summed log-likelihood
as it is (acc_raw), per character, token or byte of its continuation (the joining space included), or less its
log-likelihood after `Answer:` alone (acc_uncond).
"""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evalplane import formats, metrics
from evalplane.task import Format, Item, Loglikelihood, Request, Score
from triplane.errors import Refused

CHOICE_METRICS = ("acc_raw", "acc_per_char", "acc_per_token", "acc_per_byte", "acc_uncond")


def choice_rows(
    format: Format, items: Sequence[Item], requests: Sequence[Request], results: Sequence[Loglikelihood | None]
) -> pa.Table:
    """One row an item: gold, the sums and lengths of its continuations, what each metric chose. An item that did not fit has nulls."""
    found: dict[tuple[int, int, bool], Loglikelihood | None] = {
        (r.item, r.choice, r.unconditioned): result for r, result in zip(requests, results, strict=True)
    }
    rows = []
    for i, item in enumerate(items):
        texts = formats.continuations(format, item)
        with_context = [found[i, choice, False] for choice in range(len(texts))]
        alone = [found.get((i, choice, True)) for choice in range(len(texts))]
        rows.append({"id": item.id, "gold": item.gold, **_choice_row(texts, with_context, alone, item.gold)})
    return pa.Table.from_pylist(rows, schema=_choice_schema())


def _choice_row(
    texts: list[str], found: list[Loglikelihood | None], alone: list[Loglikelihood | None], gold: int | None
) -> dict[str, object]:
    results = [one for one in found if one is not None]
    if len(results) < len(texts):
        return {"overlong": True}
    sums = np.array([one.total for one in results])
    tokens = np.array([one.num_tokens for one in results])
    num_bytes = np.array([len(text.encode()) for text in texts])
    by_metric = {
        "acc_raw": sums,
        "acc_per_char": sums / [len(text) for text in texts],
        "acc_per_token": sums / tokens,
        "acc_per_byte": sums / num_bytes,
    }
    unconditioned = [one.total for one in alone if one is not None]
    if len(unconditioned) == len(texts):
        by_metric["acc_uncond"] = sums - unconditioned
    return {
        "overlong": False,
        "loglikelihoods": sums.tolist(),
        "unconditioned": unconditioned or None,
        "num_tokens": tokens.tolist(),
        **{f"chosen_{name}": int(np.argmax(values)) for name, values in by_metric.items()},
        "gold_bits_per_byte": float(-sums[gold] / math.log(2) / num_bytes[gold]) if gold is not None else None,
    }


def _choice_schema() -> pa.Schema:
    plain = [("id", pa.string()), ("gold", pa.int32()), ("overlong", pa.bool_())]
    lists = [("loglikelihoods", pa.float64()), ("unconditioned", pa.float64()), ("num_tokens", pa.int32())]
    chosen = [(f"chosen_{name}", pa.int32()) for name in CHOICE_METRICS]
    return pa.schema(
        [*plain, *((name, pa.list_(kind)) for name, kind in lists), *chosen, ("gold_bits_per_byte", pa.float64())]
    )


def answer_rows(items: Sequence[Item], answers: Sequence[str | None]) -> pa.Table:
    """One row an item: question, expected, the answer as it came, whether it equals an accepted one after strip."""
    rows = [
        {
            "id": item.id,
            "question": item.fields["question"],
            "expected": item.answers[0],
            "answer": answer,
            "correct": None if answer is None else answer.strip() in {text.strip() for text in item.answers},
            "overlong": answer is None,
        }
        for item, answer in zip(items, answers, strict=True)
    ]
    kinds = {"correct": pa.bool_(), "overlong": pa.bool_()}
    names = ("id", "question", "expected", "answer", "correct", "overlong")
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, kinds.get(name, pa.string())) for name in names]))


def document_rows(items: Sequence[Item], results: Sequence[Loglikelihood | None]) -> pa.Table:
    """One row a document: source, id, bits (float64), UTF-8 bytes and tokens (int64). Every document has a result: none is too long."""
    totals = [_whole(item, result) for item, result in zip(items, results, strict=True)]
    return pa.table(
        {
            "source": pa.array([item.fields["source"] for item in items], pa.string()),
            "id": pa.array([item.id for item in items], pa.string()),
            "bits": pa.array([-one.total / math.log(2) for one in totals], pa.float64()),
            "bytes": pa.array([len(item.fields["text"].encode()) for item in items], pa.int64()),
            "tokens": pa.array([one.num_tokens for one in totals], pa.int64()),
        }
    )


def _whole(item: Item, result: Loglikelihood | None) -> Loglikelihood:
    if result is None:
        raise Refused(f"document {item.id} came back without bits; a backend must read a long document in windows")
    return result


def score(format: Format, table: pa.Table, num_shots_used: int, reason: str | None) -> Score:
    """The Score of a table made above. Refused when no item fitted the model's context."""
    if format.kind == "bits_per_byte":
        return _document_score(table, reason)
    kept = table.filter(pc.invert(table["overlong"]))
    if kept.num_rows == 0:
        raise Refused(
            f"none of {table.num_rows} items fits the model's context; use a model with a longer one or a shorter task"
        )
    if format.kind == "generate":
        found = {"exact_match": metrics.mean(kept["correct"].to_numpy())}
    else:
        found = _choice_metrics(kept)
    if format.metric not in found:
        raise Refused(f"the metric {format.metric} is not among {', '.join(found)}; acc_uncond needs `unconditioned`")
    return Score(format.metric, found, kept.num_rows, table.num_rows - kept.num_rows, num_shots_used, reason)


def _choice_metrics(table: pa.Table) -> dict[str, metrics.Estimate]:
    gold = table["gold"].to_numpy()
    names = [name for name in CHOICE_METRICS if table[f"chosen_{name}"].null_count == 0]
    found = {name: metrics.mean(table[f"chosen_{name}"].to_numpy() == gold) for name in names}
    return {**found, "gold_bits_per_byte": metrics.mean(table["gold_bits_per_byte"].to_numpy())}


def _document_score(table: pa.Table, reason: str | None) -> Score:
    bits, num_bytes = table["bits"].to_numpy(), table["bytes"].to_numpy()
    source = np.array(table["source"].to_pylist())
    groups = {
        name: {
            **metrics.bits_per_byte(bits[source == name], num_bytes[source == name]),
            "num_documents": int((source == name).sum()),
        }
        for name in dict.fromkeys(source.tolist())
    }
    overall = {"bits_per_byte": metrics.bits_per_byte(bits, num_bytes)}
    return Score("bits_per_byte", overall, table.num_rows, 0, 0, reason, groups)

"""Answers of the model to one row an item, and rows to a Score.

In: a format, items, requests with the backend's answers. Out: a pyarrow table (stored with the evaluation) and a Score.
Text is compared, never run. Metrics after OLMES (`metrics/metric.py` MCAccuracy): a choice wins by its summed log-likelihood
as it is (acc_raw), per character, token or byte of its continuation (the joining space included), or less its
log-likelihood after `Answer:` alone (acc_uncond).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evalplane import formats, metrics
from evalplane.task import Format, Item, Loglikelihood, Request, Score, Task
from triplane.errors import Refused, TriplaneError
from triplane.lm.verifiers import grading, worker

CHOICE_METRICS = ("acc_raw", "acc_per_char", "acc_per_token", "acc_per_byte", "acc_uncond")
_GOLD_SCHEMA = pa.schema(
    [
        *(("id", pa.string()), ("part", pa.string()), ("overlong", pa.bool_()), ("loglikelihood", pa.float64())),
        *(("bytes", pa.int64()), ("tokens", pa.int64()), ("bits_per_byte", pa.float64())),
    ]
)


def loglikelihood_rows(
    format: Format, items: Sequence[Item], requests: Sequence[Request], results: Sequence[Loglikelihood | None]
) -> pa.Table:
    """The rows of a format whose requests are log-likelihoods, whatever its kind. TriplaneError when one is not a number."""
    for asked, found in zip(requests, results, strict=True):
        if found is not None and not math.isfinite(found.total):
            raise TriplaneError(
                f"item {items[asked.item].id} came back with a log-likelihood of {found.total}: the model's weights or logits hold "
                "values that are not numbers, so the evaluation has no score"
            )
    if format.kind == "bits_per_byte":
        return document_rows(items, results)
    rows = gold_rows if format.kind == "gold" else choice_rows
    return rows(format, items, requests, results)


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
        rows.append(
            {"id": item.id, "part": item.part, "gold": item.gold, **_choice_row(texts, with_context, alone, item.gold)}
        )
    return pa.Table.from_pylist(rows, schema=_choice_schema())


def _choice_row(
    texts: list[str], found: list[Loglikelihood | None], alone: list[Loglikelihood | None], gold: int | None
) -> dict[str, object]:
    results = [one for one in found if one is not None]
    if len(results) < len(texts):
        return {"overlong": True}
    sums = np.array([one.total for one in results])
    tokens = np.array([max(one.num_tokens, 1) for one in results])
    num_bytes = np.array([max(len(text.encode()), 1) for text in texts])
    by_metric = {
        "acc_raw": sums,
        "acc_per_char": sums / [max(len(text), 1) for text in texts],
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
    plain = [("id", pa.string()), ("part", pa.string()), ("gold", pa.int32()), ("overlong", pa.bool_())]
    lists = [("loglikelihoods", pa.float64()), ("unconditioned", pa.float64()), ("num_tokens", pa.int32())]
    chosen = [(f"chosen_{name}", pa.int32()) for name in CHOICE_METRICS]
    return pa.schema(
        [*plain, *((name, pa.list_(kind)) for name, kind in lists), *chosen, ("gold_bits_per_byte", pa.float64())]
    )


def gold_rows(
    format: Format, items: Sequence[Item], requests: Sequence[Request], results: Sequence[Loglikelihood | None]
) -> pa.Table:
    """One row an item: the log-likelihood, bytes and tokens of its right answer, and its bits per byte. An item that did not fit has nulls."""
    rows = []
    for item, asked, found in zip(items, requests, results, strict=True):
        row: dict[str, object] = {"id": item.id, "part": item.part, "overlong": found is None}
        if found is not None:
            num_bytes = len(asked.continuation.encode())
            bits = -found.total / math.log(2)
            row |= {"loglikelihood": found.total, "bytes": num_bytes, "tokens": found.num_tokens}
            row["bits_per_byte"] = bits / max(num_bytes, 1)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=_GOLD_SCHEMA)


def answer_rows(format: Format, items: Sequence[Item], answers: Sequence[str | None]) -> pa.Table:
    """One row an item: question, expected, the answer as it came and as it was understood, each metric of the grader.

    Judged in a process of its own (`verifiers.worker`); where that had to be killed the answer is wrong and `failure` says why.
    """
    given = [i for i, answer in enumerate(answers) if answer is not None]
    questions = [_question(items[i], str(answers[i])) for i in given]
    grades = dict(zip(given, worker.grade(format.grader, questions), strict=True))
    names = grading.METRICS[format.grader]
    rows = [_answer_row(item, answers[i], grades.get(i)) for i, item in enumerate(items)]
    return pa.Table.from_pylist(rows, schema=_answer_schema(names))


def _question(item: Item, answer: str) -> grading.Question:
    options = {name: item.fields[name] for name in grading.OPTIONS if name in item.fields}
    return grading.Question(answer, item.answers, item.spans, options)


def _answer_row(item: Item, answer: str | None, grade: grading.Grade | None) -> dict[str, object]:
    row: dict[str, object] = {"id": item.id, "part": item.part, "question": item.fields["question"]}
    row |= {"expected": item.answers[0], "answer": answer, "overlong": grade is None}
    if grade is not None:
        row |= {"extracted": grade.extracted, "failure": grade.failure, **grade.metrics}
        row["correct"] = grade.metrics["exact_match"] == 1.0
    return row


def _answer_schema(metric_names: Sequence[str]) -> pa.Schema:
    texts = ("id", "part", "question", "expected", "answer", "extracted", "failure")
    flags = [(name, pa.bool_()) for name in ("correct", "overlong")]
    return pa.schema(
        [*((name, pa.string()) for name in texts), *flags, *((name, pa.float64()) for name in metric_names)]
    )


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
    values = item_values(format, kept)
    if format.metric not in values:
        raise Refused(f"the metric {format.metric} is not among {', '.join(values)}; acc_uncond needs `unconditioned`")
    parts = np.array(kept["part"].to_pylist())
    found = {name: _averaged(format, one, parts) for name, one in values.items()}
    groups = {part: _group(values[format.metric][parts == part]) for part in dict.fromkeys(parts.tolist()) if part}
    num_overlong = table.num_rows - kept.num_rows
    said = "; ".join(filter(None, [reason, _unjudged(kept)])) or None
    return Score(format.metric, found, kept.num_rows, num_overlong, num_shots_used, said, groups, "part")


def _unjudged(table: pa.Table) -> str | None:
    """Says how many answers took the judge too long or too much; they count as wrong."""
    if "failure" not in table.column_names or not (failed := table.num_rows - table["failure"].null_count):
        return None
    return f"{failed} answers could not be judged within the limits of time and memory and count as wrong"


def item_values(format: Format, table: pa.Table) -> dict[str, np.ndarray]:
    """Every metric of a table's items, float64[n] each; those that lack for an item are left out."""
    if format.kind == "generate":
        return {name: table[name].to_numpy() for name in grading.METRICS[format.grader]}
    if format.kind == "gold":
        return {"bits_per_byte": table["bits_per_byte"].to_numpy()}
    gold = table["gold"].to_numpy()
    names = [name for name in CHOICE_METRICS if table[f"chosen_{name}"].null_count == 0]
    chosen = {name: (table[f"chosen_{name}"].to_numpy() == gold).astype(np.float64) for name in names}
    return {**chosen, "gold_bits_per_byte": table["gold_bits_per_byte"].to_numpy()}


def _averaged(format: Format, values: np.ndarray, parts: np.ndarray) -> metrics.Estimate:
    if format.average == "items":
        return metrics.mean(values)
    return metrics.macro([metrics.mean(values[parts == part]) for part in dict.fromkeys(parts.tolist())])


def _group(values: np.ndarray) -> dict[str, float | None]:
    return {**metrics.mean(values), "num_items": len(values)}


def best_of(task: Task, tables: Mapping[str, pa.Table], scores: Mapping[str, Score]) -> metrics.Best:
    """The format that counts and the interval of its score; items of two formats are paired where both scored the same ones."""
    larger = {name: is_larger_better(format) for name, format in task.formats.items()}
    counting = [name for name in scores if larger[name]] or list(scores)
    estimates = {name: scores[name].metrics[scores[name].metric] for name in counting}
    plain = [name for name in counting if larger[name] and task.formats[name].average == "items"]
    num_items = {name: scores[name].num_items for name in plain}
    return metrics.best_of(estimates, larger[counting[0]], _difference_errors(task, tables, counting), num_items)


def _difference_errors(
    task: Task, tables: Mapping[str, pa.Table], names: Sequence[str]
) -> dict[frozenset[str], float | None]:
    return {
        frozenset((one, other)): _difference_error(task, tables, one, other)
        for i, one in enumerate(names)
        for other in names[i + 1 :]
    }


def _difference_error(task: Task, tables: Mapping[str, pa.Table], one: str, other: str) -> float | None:
    """The standard error of the difference of two formats' scores over the items that both scored; None where it has none."""
    if any("overlong" not in tables[name].column_names for name in (one, other)):
        return None
    both = pc.invert(pc.or_(tables[one]["overlong"], tables[other]["overlong"]))
    kept = {name: tables[name].filter(both) for name in (one, other)}
    if kept[one].num_rows < 2:
        return None
    first, second = (item_values(task.formats[name], kept[name])[task.formats[name].metric] for name in (one, other))
    return _averaged(task.formats[one], first - second, np.array(kept[one]["part"].to_pylist()))["stderr"]


def is_larger_better(format: Format) -> bool:
    return format.kind not in ("bits_per_byte", "gold")


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

"""`try`: what one rule would keep and drop, on a sample of a source's documents: in seconds, on this machine, without Spark.

A source and a rule -> the sampled documents with the rule's columns, their fate and the beginning of their text. The sample is a function of seed,
source and documents: shards are drawn by hash and read a block at a time in turn until there are `OVERSAMPLE` times as many documents as asked
for (or all); of those the ones with the smallest u(seed, key) are taken. A source larger than that is seen by the beginnings of its shards.
"""

import dataclasses
import re
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataplane import documents, ingestion, judgement, quantiles, recipe, tagging
from dataplane.ingest import text_tree
from dataplane.tagger import Rule, Tagger
from dataplane.taggers.table import TAGGERS
from triplane import hashing
from triplane.errors import TriplaneError, UsageError
from triplane.recipe import Strict

OVERSAMPLE = 4
BLOCK_BYTES = 1 << 20
MAX_READ_BYTES = 256 << 20
EXCERPT_CHARACTERS = 200
SALT = 0x747279  # "try": apart from the draws of the verbs
EXPRESSION = re.compile(r"\s*([a-z_][a-z0-9_]*)\s*(<=|>=|<|>|=)\s*([-+0-9.eE]+)\s*")
SHARE = re.compile(r"\s*([a-z_][a-z0-9_]*)\s+keep_top\s+([0-9.]+)(?:\s+(tokens|documents))?\s*")

AnyRule = Rule | recipe.QuantileRecipe


@dataclass(frozen=True)
class Tried:
    """One document under the rule. `reason` is None where it is kept; `values` are the columns that the rule reads."""

    id: str
    shard: str
    line: int
    reason: str | None
    values: dict[str, float | int | None]
    bytes: int
    excerpt: str


@dataclass(frozen=True)
class Trial:
    """A rule on a sample. `rules` are in words, thresholds of shares as this sample gives them."""

    source: str
    rules: tuple[str, ...]
    documents: tuple[Tried, ...]
    documents_seen: int

    def to_json(self, shown: int) -> dict[str, Any]:
        """Counts, and the first `shown` documents kept and dropped."""
        kept = [one for one in self.documents if one.reason is None]
        dropped = [one for one in self.documents if one.reason is not None]
        reasons = sorted({str(one.reason) for one in dropped})
        return {
            "source": self.source,
            "rules": list(self.rules),
            "documents_seen": self.documents_seen,
            "sampled": len(self.documents),
            "kept": len(kept),
            "dropped": {reason: sum(one.reason == reason for one in dropped) for reason in reasons},
            "kept_documents": [asdict(one) for one in kept[:shown]],
            "dropped_documents": [asdict(one) for one in dropped[:shown]],
        }


def trial(source: recipe.SourceRecipe, rule: str, seed: int, sample: int, tokenizer: str) -> Trial:
    """Tries a rule: `words < 50`, `words keep_top 0.07 tokens`, a reason of the source's rules, or a tagger for its own rules. UsageError."""
    if sample < 1:
        raise UsageError(f"a sample of {sample} documents shows nothing: ask for at least 1")
    recipe.check_names(source)
    rules = parse(rule, source)
    taggers = _taggers(source, rules, tokenizer)
    metadata = any(tagger.needs_metadata for tagger, _ in taggers)
    drawn, seen = draw(source, seed, sample, metadata)
    table = _tagged(drawn, taggers)
    resolved = [_resolved(one, table) for one in rules]
    return Trial(
        source.name,
        tuple(f"{one.column} {one.op} {one.threshold}" for one in resolved),
        tuple(_judged(drawn, table, resolved)),
        seen,
    )


def parse(text: str, source: recipe.SourceRecipe) -> list[AnyRule]:
    """The rules that a text names. UsageError when it names none."""
    if match := EXPRESSION.fullmatch(text):
        return [Rule("dropped", match[1], match[2], _number(match[3], text))]  # type: ignore[arg-type]
    if match := SHARE.fullmatch(text):
        share = float(_number(match[2], text))
        if not 0 < share <= 1:
            raise UsageError(f"rule {text}: keep_top {share:g} is no share: write a number above 0 and at most 1")
        weight: Any = match[3] or "documents"
        return [recipe.QuantileRecipe(reason="dropped", column=match[1], keep_top=share, weight=weight)]
    if named := [rule for rule in recipe.rules(source) if rule.name == text]:
        return list(named)
    if text in TAGGERS and TAGGERS[text].rules:
        return list(TAGGERS[text].rules)
    if text in recipe.RESERVED_REASONS:
        raise UsageError(
            f"rule {text} is decided over whole builds, not samples: build, then look at `triplane data funnel`"
        )
    if not re.fullmatch(r"[a-z0-9_.-]+", text):
        raise UsageError(
            f"rule {text} reads as nothing: write `words < 50`, `words keep_top 0.07 tokens` or a rule's name"
        )
    known = [*dict.fromkeys(rule.name for rule in recipe.rules(source)), *(n for n, t in TAGGERS.items() if t.rules)]
    recipe.known("rule", text, known)
    raise AssertionError("a known rule is found above")


def _number(text: str, rule: str) -> float | int:
    try:
        return int(text) if re.fullmatch(r"[-+]?[0-9]+", text) else float(text)
    except ValueError:
        raise UsageError(f"rule {rule}: {text} is no number: write for instance `words < 50`") from None


def _taggers(source: recipe.SourceRecipe, rules: Sequence[AnyRule], tokenizer: str) -> list[tuple[Tagger, Strict]]:
    """The taggers that write what the rules read: those of the source with its parameters, else any that needs none."""
    columns = {rule.column for rule in rules}
    if any(isinstance(rule, recipe.QuantileRecipe) and rule.weight == "tokens" for rule in rules):
        columns.add(recipe.TOKEN_COUNT)
    given = recipe.taggers(source)
    found: list[tuple[Tagger, Strict]] = []
    writers: list[str] = []
    for name in dict.fromkeys([*given, *TAGGERS]):
        try:
            params = recipe.tagger_params(name, given.get(name, {}), tokenizer)
        except TriplaneError:
            if name in given:
                raise
            continue
        written = TAGGERS[name].columns(params).names
        writers += written
        if columns & set(written):
            found.append((TAGGERS[name], params))
            columns -= set(written)
    for column in sorted(columns - {"text_bytes"}):
        for name in (n for n, t in TAGGERS.items() if n != recipe.EDITED and column in t.columns(None).names):
            raise UsageError(
                f"column {column} is written by tagger {name}, which needs params: add it to the source's taggers"
            )
        recipe.known("column", column, ["text_bytes", *writers])
    return found


@dataclass(frozen=True)
class Drawn:
    """The sampled documents in order of their draw, and where each is: shard and record number."""

    batch: documents.Batch
    shards: tuple[str, ...]
    rows: tuple[int, ...]


def draw(source: recipe.SourceRecipe, seed: int, sample: int, metadata: bool) -> tuple[Drawn, int]:
    """The sample, and how many documents were looked at for it. UsageError when the source holds no documents."""
    rows: list[tuple[int, str, int, str, str, str | None]] = []  # draw, shard, record number, id, text, metadata
    seen = read = 0
    with tempfile.TemporaryDirectory(prefix="triplane-") as folder:
        waiting = deque(_blocks(task, Path(folder), metadata) for task in _drawn_shards(source, seed))
        while waiting and seen < OVERSAMPLE * sample and read < MAX_READ_BYTES:
            blocks = waiting.popleft()
            if (item := next(blocks, None)) is None:
                continue
            waiting.append(blocks)
            shard, batch = item
            seen += batch.num_documents
            read += len(batch.text_buffers()[1])
            rows += _nearest(source.name, shard, batch, seed, sample)
            rows = sorted(rows)[:sample]
    if not rows:
        raise UsageError(f"source {source.name} at {source.documents} holds no documents: check its location")
    batch = documents.make_batch(np.arange(len(rows)), [row[3] for row in rows], [row[4] for row in rows])
    if metadata:
        batch = dataclasses.replace(batch, metadata=pa.array([row[5] for row in rows], pa.large_string()))
    return Drawn(batch, tuple(row[1] for row in rows), tuple(row[2] for row in rows)), seen


def _nearest(
    source: str, shard: str, batch: documents.Batch, seed: int, sample: int
) -> list[tuple[int, str, int, str, str, str | None]]:
    """The documents of a batch with the smallest draws."""
    draws = hashing.u64(seed ^ SALT, tagging.document_keys(source, shard, batch.rows)).tolist()
    numbers = batch.rows.tolist()
    return [
        (
            draws[index],
            shard,
            numbers[index],
            batch.id[index].as_py(),
            batch.text[index].as_py(),
            None if batch.metadata is None else batch.metadata[index].as_py(),
        )
        for index in sorted(range(len(draws)), key=draws.__getitem__)[:sample]
    ]


def _drawn_shards(source: recipe.SourceRecipe, seed: int) -> list[ingestion.Task]:
    tasks = list(ingestion.listing(source).shards)
    return sorted(tasks, key=lambda task: (hashing.unit(seed ^ SALT, str(task["name"])), str(task["name"])))


def _blocks(task: ingestion.Task, folder: Path, metadata: bool) -> Iterator[tuple[str, documents.Batch]]:
    """(shard, batch) of one shard, opened when the first is asked for."""
    name, url = str(task["name"]), str(task["url"])
    if "files" in task:
        path = folder / name
        text_tree.write_shard(path, url, task["files"], str(task["source"]))
        url = str(path)
    columns = [(task["columns"]["id"], task["columns"]["text"])] if "columns" in task else []
    shard = documents.DocumentShard(name, url, int(task["bytes"]), *columns)
    for batch in documents.read(shard, BLOCK_BYTES, metadata=metadata):
        yield name, batch


def _tagged(drawn: Drawn, taggers: Sequence[tuple[Tagger, Strict]]) -> pa.Table:
    offsets, _ = drawn.batch.text_buffers()
    columns: dict[str, Any] = {"text_bytes": pa.array(np.diff(offsets), pa.int64())}
    for tagger, params in taggers:
        tagged = tagger.tag(drawn.batch, params)
        columns |= {name: tagged.column(name) for name in tagged.schema.names}
    return pa.table(columns)


def _resolved(rule: AnyRule, table: pa.Table) -> Rule:
    """A share as the threshold that it has on the sample."""
    if isinstance(rule, Rule):
        return rule
    scored = quantiles.with_bits(rule.column, table)
    present = scored.column("bits").is_valid().to_numpy()
    values = scored.column(rule.column).fill_null(0).to_numpy()[present]
    ones = np.ones(table.num_rows, np.int64)
    weights = table.column(recipe.TOKEN_COUNT).to_numpy() if rule.weight == "tokens" else ones
    cut = quantiles.exact(values, weights[present], rule.keep_top)
    return quantiles.as_rule(rule, cut, values.dtype.kind == "f")


def _judged(drawn: Drawn, table: pa.Table, rules: Sequence[Rule]) -> Iterator[Tried]:
    columns = list(dict.fromkeys(rule.column for rule in rules))
    rows = table.select(columns).to_pylist()
    sizes = table.column("text_bytes").to_pylist()
    for index, values in enumerate(rows):
        text = drawn.batch.text[index].as_py()
        yield Tried(
            id=drawn.batch.id[index].as_py(),
            shard=drawn.shards[index],
            line=drawn.rows[index] + 1,
            reason=judgement.first_reason(rules, values, sizes[index]),
            values=values,
            bytes=sizes[index],
            excerpt=excerpt(text),
        )


def excerpt(text: str) -> str:
    """The beginning of a text on one line; what does not print is escaped."""
    line = " ".join(text[: 4 * EXCERPT_CHARACTERS].split())
    shown = line[:EXCERPT_CHARACTERS] + ("…" if len(line) > EXCERPT_CHARACTERS else "")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)

"""Exact thresholds of "the top 7 %": a histogram on a fixed grid, refined where the threshold lies.

A column of scores with integer weights -> the highest value t for which the documents with score >= t hold at least `keep_top` of the weight.
Every document that ties with t is kept, so a little more than the share may be. Sums of integers in bins of the scores' own bits: no sample, no
error, and no order of tasks or documents that could change the result. A pass reads narrow columns and brings at most 65,536 sums to the driver;
scores of 32 bits need two passes, of 64 bits four at most.

Source: the order of IEEE 754 numbers is that of their bits as integers, negative ones flipped (IEEE 754-2019, 5.10).
"""

import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from dataplane import judgement, recipe, spark
from dataplane.tagger import Rule
from triplane import artifact

BINS = 1 << 16
FIRST_SHIFT = 48  # of 64 bits, the first pass looks at the top 16
TIES = "kept"
HISTOGRAM = """
    SELECT {bin} AS bin, sum(weight) AS weight, min(bits) AS low, max(bits) AS high
    FROM {{scored}} WHERE bits BETWEEN {low} AND {high} AND weight > 0 GROUP BY 1"""


@dataclass(frozen=True)
class Cut:
    """Where a share ends. `value` is None when no document has weight: then the rule drops none."""

    value: float | int | None
    kept_weight: int
    total_weight: int


@dataclass(frozen=True)
class Bin:
    """The sum of weights, and the range of the scores' ordered bits, of one bin."""

    weight: int
    low: int
    high: int


def ordered_bits(values: np.ndarray) -> np.ndarray:
    """int64 in the order of the values, float64 or int64 [n]; -0.0 equals 0.0. NaN has no place in the order: leave it out."""
    if values.dtype.kind != "f":
        return values.astype(np.int64)
    bits = (values.astype(np.float64) + 0.0).view(np.int64)
    return np.where(bits < 0, bits ^ np.int64(2**63 - 1), bits)


def value_of(bits: int, floating: bool) -> float | int:
    """The value with these ordered bits."""
    if not floating:
        return bits
    return float(np.array(bits if bits >= 0 else bits ^ (2**63 - 1), np.int64).view(np.float64))


def needed(keep_top: float, total: int) -> int:
    """The weight that must be kept: the share as it is written in decimal (0.07 of 100 is 7), rounded up."""
    return math.ceil(Fraction(repr(float(keep_top))) * total)


def exact(values: np.ndarray, weights: np.ndarray, keep_top: float) -> Cut:
    """The same cut in memory: scores [n] without NaN, integer weights [n]."""
    order = np.argsort(-values, kind="stable") if values.dtype.kind == "f" else np.argsort(values, kind="stable")[::-1]
    sums = np.cumsum(weights[order].astype(np.int64))
    total = int(sums[-1]) if len(sums) else 0
    if total == 0:
        return Cut(None, 0, 0)
    value = values[order[int(np.searchsorted(sums, needed(keep_top, total)))]]
    return Cut(value.item(), int(weights[values >= value].sum()), total)


def cut(session: Any, scored: Any, keep_top: float, floating: bool) -> Cut:
    """The cut of a DataFrame (bits bigint: `ordered_bits` or null, weight bigint)."""
    bins = _pass(session, scored, f"shiftright(bits, {FIRST_SHIFT})", -(2**63), 2**63 - 1)
    total = sum(one.weight for one in bins)
    if total == 0:
        return Cut(None, 0, 0)
    above, want = 0, needed(keep_top, total)
    while True:
        above, boundary = _boundary(bins, above, want)
        if boundary.low == boundary.high:
            return Cut(value_of(boundary.low, floating), above + boundary.weight, total)
        width = (boundary.high - boundary.low) // BINS + 1
        bins = _pass(session, scored, f"(bits - {boundary.low}L) div {width}L", boundary.low, boundary.high)


def _pass(session: Any, scored: Any, bin_of: str, low: int, high: int) -> list[Bin]:
    """The bins that hold weight, the highest scores first."""
    edges = [f"CAST('{edge}' AS bigint)" for edge in (low, high)]  # the lowest bigint has no literal
    query = HISTOGRAM.format(bin=bin_of, low=edges[0], high=edges[1])
    rows = spark.collect(session.sql(query, scored=scored))
    return [Bin(row["weight"], row["low"], row["high"]) for row in sorted(rows, key=lambda row: -row["bin"])]


def _boundary(bins: Sequence[Bin], above: int, want: int) -> tuple[int, Bin]:
    """The bin in which the weight kept reaches `want`, and the weight above it."""
    for one in bins:
        if above + one.weight >= want:
            return above, one
        above += one.weight
    raise AssertionError("bins hold less than their total")


def resolve(
    session: Any, root: str, source: recipe.SourceRecipe, attributes: artifact.Manifest
) -> tuple[list[Rule], list[dict[str, Any]]]:
    """The source's rules, each share replaced by its threshold among the documents that passed the rules before it; and what the thresholds are."""
    rules: list[Rule] = []
    report: list[dict[str, Any]] = []
    for rule in recipe.rules(source):
        if isinstance(rule, Rule):
            rules.append(rule)
            continue
        floating = judgement.is_floating(source, rule.column)
        scored = _scored(session, root, attributes, rules, rule)
        found = cut(session, scored, rule.keep_top, floating)
        report.append({"source": source.name, **rule.model_dump(mode="json"), "ties": TIES, **asdict(found)})
        rules.append(as_rule(rule, found, floating))
    return rules, report


def as_rule(rule: recipe.QuantileRecipe, found: Cut, floating: bool) -> Rule:
    """The share as a threshold: below it a document is dropped."""
    lowest = -sys.float_info.max if floating else -(2**63 - 1)
    return Rule(rule.reason, rule.column, "<", lowest if found.value is None else found.value)


def _scored(
    session: Any, root: str, attributes: artifact.Manifest, rules: Sequence[Rule], rule: recipe.QuantileRecipe
) -> Any:
    """(bits, weight) of the documents that passed `rules`."""
    derive = functools.partial(passed, tuple(rules), rule)
    needed = sorted(judgement.columns_read(rules) | {rule.column})
    columns = {"bits": "bigint", "weight": "bigint"}
    return spark.read_table(session, root, attributes, columns, 0, derive, needed).select(*columns)


def passed(rules: Sequence[Rule], rule: recipe.QuantileRecipe, table: pa.Table) -> pa.Table:
    """The rows that `rules` keep, with columns `bits` and `weight`."""
    kept = with_bits(rule.column, table.filter(pa.array(judgement.judge(table, rules).kept)))
    counted = rule.weight == "tokens"
    weights = kept.column(recipe.TOKEN_COUNT) if counted else pa.array(np.ones(kept.num_rows, np.int64))
    return kept.append_column("weight", weights)


def with_bits(column: str, table: pa.Table) -> pa.Table:
    """The table and a column `bits`: `ordered_bits` of a column, null where that is null or not a number."""
    values = table.column(column).combine_chunks()
    filled = values.fill_null(0).to_numpy(zero_copy_only=False)
    missing = values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    return table.append_column("bits", pa.array(ordered_bits(filled), pa.int64(), mask=missing))

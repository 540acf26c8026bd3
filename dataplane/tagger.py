"""What a tagger is: texts in, columns of numbers out, and the drop rules that its source recommends.

A tagger never decides. It writes statistics, one row a document; `select` applies rules to them, so that a threshold can change
without a text being read again. The taggers themselves are in `taggers/`, the list of them in `taggers/table.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from dataplane.documents import Batch
from triplane.recipe import Strict


@dataclass(frozen=True)
class Rule:
    """A document is dropped, for the reason `name`, when `column op threshold`. Rules are tried in order; the first match is the reason."""

    name: str
    column: str
    op: Literal["<", "<=", ">", ">=", "="]
    threshold: float

    def sql(self) -> str:
        """The condition as a SQL expression; double-precision literals carry their exponent, so that Spark makes no decimal of them."""
        literal = str(self.threshold) if isinstance(self.threshold, int) else f"{self.threshold!r}D"
        return f"{self.column} {self.op} {literal}"

    def matches(self, value: float) -> bool:
        """The same condition in Python."""
        comparisons = {
            "<": value < self.threshold,
            "<=": value <= self.threshold,
            ">": value > self.threshold,
            ">=": value >= self.threshold,
            "=": value == self.threshold,
        }
        return comparisons[self.op]


@dataclass(frozen=True)
class Tagger:
    """version: raised exactly when the output changes for the same input. columns(params): the schema of what tag(batch, params) returns:
    `batch.num_documents` rows, no nulls. rules: the thresholds of the source, for recipes to take or to replace. needs_metadata: `tag` reads
    `batch.metadata`."""

    name: str
    version: int
    params: type[Strict]
    columns: Callable[[Any], pa.Schema]
    tag: Callable[[Batch, Any], pa.RecordBatch]
    rules: tuple[Rule, ...] = ()
    needs_metadata: bool = False


class NoParams(Strict):
    """For taggers that have nothing to set."""


def first_match(rules: tuple[Rule, ...], values: dict[str, float]) -> str | None:
    """The reason a document with these column values is dropped; None: kept."""
    return next((rule.name for rule in rules if rule.matches(values[rule.column])), None)

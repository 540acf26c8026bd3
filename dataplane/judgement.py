"""A source's own rules over its attributes: the first that holds is the reason.

An attributes table and rules -> what they decide of each row. A value that is missing or not a number drops the document as
`unscored_{column}`: nothing is kept unjudged. Whole columns at a time in the tasks that read them, so that of each document only keys go on to Spark.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataplane import recipe
from dataplane.tagger import Rule
from dataplane.taggers.table import TAGGERS

KEEP, DROP, QUARANTINED = "keep", "drop", "quarantined"
BASE_COLUMNS = ("row", "quarantine", "text_bytes", recipe.TOKEN_COUNT)
KEPT, NO_DOCUMENT = -1, -2


@dataclass(frozen=True)
class Judgement:
    """`codes` int64 [n]: the index of the reason among `names`, `KEPT`, or `NO_DOCUMENT` where the row is quarantined."""

    codes: np.ndarray
    names: tuple[str, ...]

    @property
    def kept(self) -> np.ndarray:
        """bool [n]."""
        return self.codes == KEPT

    def drop(self, name: str, where: np.ndarray) -> "Judgement":
        """Those kept so far for which bool [n] `where` holds get one more reason."""
        return Judgement(np.where(self.kept & where, len(self.names), self.codes), (*self.names, name))

    def decisions(self) -> pa.Array:
        """keep, drop or quarantined, string [n]."""
        return _named(np.clip(self.codes, NO_DOCUMENT, 0) + 2, (QUARANTINED, KEEP, DROP))

    def reasons(self, quarantine: pa.Array) -> pa.Array:
        """Why a row is not kept, string [n]; null where it is. quarantine: the reasons of the rows that are no documents."""
        names = (*self.names, "")
        codes = np.where(self.codes < 0, len(names) - 1, self.codes)
        named = _named(codes, names)
        return pc.if_else(pa.array(self.codes >= 0), named, quarantine.cast(pa.string()))


def judge(table: pa.Table, rules: Sequence[Rule]) -> Judgement:
    """Every row of a table with `columns_read(rules)`."""
    present = table.column("quarantine").is_null().to_numpy()
    found = Judgement(np.where(present, KEPT, NO_DOCUMENT), ())
    for column in ("text_bytes", recipe.TOKEN_COUNT):  # no text, or none that edits left
        sizes, known = values(table.column(column))
        found = found.drop(recipe.EMPTY, known & (sizes == 0))
    for rule in rules:
        numbers, known = values(table.column(rule.column))
        found = found.drop(f"unscored_{rule.column}", ~known)
        found = found.drop(rule.name, np.asarray(rule.matches(numbers)))
    return found


def is_floating(source: recipe.SourceRecipe, column: str) -> bool:
    """Whether a column that the source's taggers write holds floating-point numbers."""
    schemas = (
        TAGGERS[name].columns(recipe.tagger_params(name, params, "")) for name, params in recipe.taggers(source).items()
    )
    return any(pa.types.is_floating(field.type) for schema in schemas for field in schema if field.name == column)


def columns_read(rules: Sequence[Rule]) -> set[str]:
    """What `judge` needs."""
    return {*BASE_COLUMNS, *(rule.column for rule in rules)}


def values(column: pa.ChunkedArray) -> tuple[Any, np.ndarray]:
    """Numbers, int64 or float64 [n], and bool [n]: false where there is none, or NaN."""
    floating = pa.types.is_floating(column.type)
    whole = column.combine_chunks()
    numbers = whole.fill_null(0).cast(pa.float64() if floating else pa.int64()).to_numpy(zero_copy_only=False)
    known = whole.is_valid().to_numpy(zero_copy_only=False)
    return numbers, known & ~np.isnan(numbers) if floating else known


def _named(codes: np.ndarray, names: Sequence[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names, pa.string())).cast(pa.string())


def first_reason(rules: Sequence[Rule], row: Mapping[str, float | int | None], text_bytes: int) -> str | None:
    """The same for one document that is not quarantined and not edited, in the plainest way."""
    if text_bytes == 0:
        return recipe.EMPTY
    for rule in rules:
        value = row[rule.column]
        if value is None or math.isnan(value):
            return f"unscored_{rule.column}"
        if rule.matches(value):
            return rule.name
    return None

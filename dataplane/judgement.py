"""A source's own rules as SQL over its attributes: the first that holds is the reason.

A source of the recipe and its rules -> the attribute columns they need, and the expressions of what they decide. A value that is missing or not a
number drops the document as `unscored_{column}`: nothing is kept unjudged.
"""

import math
from collections.abc import Mapping, Sequence

import pyarrow as pa

from dataplane import recipe
from dataplane.tagger import Rule
from dataplane.taggers.table import TAGGERS

KEEP, DROP, QUARANTINED = "keep", "drop", "quarantined"
BASE_COLUMNS = {"row": "bigint", "quarantine": "string", "text_bytes": "bigint", recipe.TOKEN_COUNT: "bigint"}


def column_types(source: recipe.SourceRecipe) -> dict[str, str]:
    """Attribute column -> Spark SQL type, of everything this source's taggers write that a rule can name."""
    types = {"text_bytes": "bigint"}
    for name, values in recipe.taggers(source).items():
        for field in TAGGERS[name].columns(recipe.tagger_params(name, values, "")):
            types[field.name] = _sql_type(field.type)
    return types


def _sql_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return "array<bigint>"
    return "double" if pa.types.is_floating(kind) else "bigint"


def columns_read(types: Mapping[str, str], rules: Sequence[Rule]) -> dict[str, str]:
    """What `reason` and `decision` need, by type."""
    return BASE_COLUMNS | {rule.column: types[rule.column] for rule in rules}


def reason(types: Mapping[str, str], rules: Sequence[Rule]) -> str:
    """SQL: why a document is not kept; NULL where the rules keep it."""
    cases = [f"WHEN text_bytes = 0 THEN '{recipe.EMPTY}'"]
    for rule in rules:
        # Spark takes NaN for the greatest of all numbers, so no `<` would ever drop it.
        unscored = f"`{rule.column}` IS NULL" + (
            f" OR isnan(`{rule.column}`)" if types[rule.column] == "double" else ""
        )
        cases += [f"WHEN {unscored} THEN 'unscored_{rule.column}'", f"WHEN {rule.sql()} THEN '{rule.name}'"]
    return f"CASE WHEN quarantine IS NOT NULL THEN quarantine {' '.join(cases)} END"


def decision(types: Mapping[str, str], rules: Sequence[Rule]) -> str:
    """SQL: keep, drop or quarantined."""
    dropped = f"WHEN ({reason(types, rules)}) IS NOT NULL THEN '{DROP}'"
    return f"CASE WHEN quarantine IS NOT NULL THEN '{QUARANTINED}' {dropped} ELSE '{KEEP}' END"


def first_reason(rules: Sequence[Rule], values: Mapping[str, float | int | None], text_bytes: int) -> str | None:
    """The same in Python, for one document that is not quarantined."""
    if text_bytes == 0:
        return recipe.EMPTY
    for rule in rules:
        value = values[rule.column]
        if value is None or math.isnan(value):
            return f"unscored_{rule.column}"
        if rule.matches(value):
            return rule.name
    return None

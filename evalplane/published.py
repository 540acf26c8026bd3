"""What others published on the same columns (published.yaml): the reference rows of a report.

In: the YAML. Out: models with their scores by column, in percent. No number of it is ours.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from triplane import recipe
from triplane.errors import UsageError

PUBLISHED = Path(__file__).parent / "published.yaml"


class Entry(recipe.Strict):
    name: str
    group: str
    source: str
    flops: float | None
    average: float
    scores: tuple[float, ...]


class Published(recipe.Strict):
    """published.yaml."""

    sources: dict[str, str]
    columns: dict[str, str]
    models: tuple[Entry, ...]


@dataclass(frozen=True)
class Reference:
    """A published model: scores and their average in percent, training FLOPs where they were printed, and where all that stands."""

    name: str
    group: str
    source: str
    flops: float | None
    average: float
    scores: dict[str, float]


@cache
def columns() -> dict[str, str]:
    """The ten columns in the order of the paper's Table 9, and what was measured for each."""
    return recipe.load(PUBLISHED, Published).columns


@cache
def references() -> tuple[Reference, ...]:
    """Every published model, in file order."""
    found = recipe.load(PUBLISHED, Published)
    return tuple(
        Reference(
            one.name,
            one.group,
            found.sources[one.source],
            one.flops,
            one.average,
            dict(zip(found.columns, one.scores, strict=True)),
        )
        for one in found.models
    )


def named(names: Sequence[str]) -> list[Reference]:
    """The published models of these names; every one for `all`. UsageError with the nearest name."""
    by_name = {one.name: one for one in references()}
    if list(names) == ["all"]:
        return list(by_name.values())
    for name in names:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, 1)
            said = f" (did you mean {near[0]!r}?)" if near else ""
            raise UsageError(f"no published model is named {name!r}{said}; there are {', '.join(by_name)}, or all")
    return [by_name[name] for name in names]

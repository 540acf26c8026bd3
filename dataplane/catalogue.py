"""Build recipes that name their sources: `sources: [dclm_baseline, flan]` is read from a folder with one recipe a source.

A recipe file + overrides -> `BuildRecipe`, each name replaced by `{folder}/{name}.yaml`. `stand_ins.flan=FOLDER` puts other documents in
the place of a source's own, so that the recipe of the published corpus also runs on a small one.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from dataplane import recipe
from dataplane.recipe import BuildRecipe, SourceRecipe
from triplane import recipe as recipes


def load(path: Path, overrides: Sequence[str] = (), folder: Path | None = None) -> BuildRecipe:
    """Reads a build's YAML; `folder` holds the named sources, by default `../sources` beside the recipe's folder. Raises UsageError."""
    overrides = list(overrides)
    folder = folder or Path(path).parent.parent / "sources"
    named = [
        f"sources.{index}={json.dumps(recipes.resolved(source(name, folder)))}"
        for index, name in enumerate(_entries(path, overrides))
        if isinstance(name, str)
    ]
    replaced = [override for override in overrides if override.startswith("sources=")]
    others = [override for override in overrides if not override.startswith("sources=")]
    return with_stand_ins(recipes.load(Path(path), BuildRecipe, [*replaced, *named, *others]))


def source(name: str, folder: Path) -> SourceRecipe:
    """The source recipe of that name. Raises UsageError."""
    return recipes.load(folder / f"{name}.yaml", SourceRecipe)


def with_stand_ins(build: BuildRecipe) -> BuildRecipe:
    """The recipe with `stand_ins` in the place of its sources' documents; what was published of those no longer applies."""
    for name in build.stand_ins:
        recipe.known("stand-in for source", name, [one.name for one in build.sources])
    changed = {"published": None, "columns": None}
    sources = tuple(
        one.model_copy(update={"documents": build.stand_ins[one.name], **changed})
        if one.name in build.stand_ins
        else one
        for one in build.sources
    )
    return build.model_copy(update={"sources": sources})


def _entries(path: Path, overrides: Sequence[str]) -> list[object]:
    """The entries of `sources`: of the last override that gives them all, else of the file."""
    for override in reversed(overrides):
        if override.startswith("sources="):
            return _list(yaml.safe_load(override.removeprefix("sources=")))
    try:
        value = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []  # the strict reader says what is wrong, and where
    return _list(value.get("sources")) if isinstance(value, dict) else []


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []

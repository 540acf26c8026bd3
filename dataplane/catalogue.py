"""Build recipes that name their sources: `sources: [dclm_baseline, flan]` is read from a folder with one recipe a source.

A recipe file + overrides -> `BuildRecipe`, each name replaced by `{folder}/{name}.yaml`. `stand_ins.flan=FOLDER` puts other documents in
the place of a source's own, so that the recipe of the published corpus also runs on a small one. Published documents have passed their
publisher's filters; those in their place pass `published_filters` here, with the models of `models.TAGGER={model: ..., sha256: ...}`, or without
where that says `none`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from dataplane import recipe
from dataplane.recipe import BuildRecipe, FilterRecipe, SourceRecipe, TaggerRecipe
from dataplane.taggers.table import TAGGERS
from triplane import recipe as recipes
from triplane import recipe_inspection
from triplane.errors import UsageError
from triplane.recipe import Problem
from triplane.recipe_inspection import Inspection


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


def inspect(path: Path, overrides: Sequence[str] = (), folder: Path | None = None) -> Inspection[BuildRecipe]:
    """As `load`, but all mistakes instead of the first: of the build and of each source it names."""
    folder = folder or Path(path).parent.parent / "sources"
    found, in_place, parts = list[Problem](), list[str](), dict[int, recipes.Document]()
    for index, name in enumerate(_entries(path, overrides)):
        if isinstance(name, str):
            one = recipe_inspection.of_named(folder / f"{name}.yaml", SourceRecipe, Path(path), "sources", index)
            found += one.problems
            parts[index] = one.document
            in_place.append(f"sources.{index}={json.dumps(one.value)}")
    replaced = [override for override in overrides if override.startswith("sources=")]
    others = [override for override in overrides if not override.startswith("sources=")]
    whole = recipe_inspection.inspect(Path(path), BuildRecipe, [*replaced, *in_place, *others])
    # What is wrong with a named source was said of its own file.
    found += [one for one in whole.problems if one.place.removeprefix("override ") not in in_place]
    for index, part in parts.items():
        whole = whole.with_part(part, "sources", index)
    try:
        build = None if whole.likely is None else with_stand_ins(whole.likely)
    except UsageError as error:
        build, found = None, [*found, Problem(whole.place_of("stand_ins models"), str(error))]
    recipe = build if whole.recipe is not None else None
    return replace(whole, problems=tuple(found), recipe=recipe, likely=build)


def source(name: str, folder: Path) -> SourceRecipe:
    """The source recipe of that name. Raises UsageError."""
    return recipes.load(folder / f"{name}.yaml", SourceRecipe)


def with_stand_ins(build: BuildRecipe) -> BuildRecipe:
    """The recipe with `stand_ins` in the place of its sources' documents; what was published of those no longer applies."""
    for name in build.stand_ins:
        recipe.known("stand-in for source", name, [one.name for one in build.sources])
    filters = [one.published_filters for one in build.sources if one.published_filters is not None]
    for name in build.models:
        recipe.known("model of tagger", name, [one.name for each in filters for one in map(_entry, each.taggers)])
    sources = tuple(_standing_in(build, one) if one.name in build.stand_ins else one for one in build.sources)
    return build.model_copy(update={"sources": sources})


def _standing_in(build: BuildRecipe, one: SourceRecipe) -> SourceRecipe:
    changed: dict[str, Any] = {"documents": build.stand_ins[one.name], "published": None, "columns": None}
    if one.published_filters is not None:
        filters = _with_models(one.published_filters, build.models)
        changed |= {"taggers": (*one.taggers, *filters.taggers), "rules": (*one.rules, *filters.rules)}
    return one.model_copy(update={**changed, "published_filters": None})


def _with_models(filters: FilterRecipe, models: Mapping[str, Any]) -> FilterRecipe:
    """The filters with the models given, and without the taggers whose model is `none`, their rules, and those rules in a `where`."""
    entries = [_entry(one) for one in filters.taggers]
    gone = {one.name for one in entries if models.get(one.name) == "none"}
    taggers = [
        one.model_copy(update={"params": {**one.params, **models.get(one.name, {})}})
        for one in entries
        if one.name not in gone
    ]
    columns = {c for one in entries if one.name in gone for c in TAGGERS[one.name].columns(None).names}
    rules = [
        rule for rule in filters.rules if (rule not in gone if isinstance(rule, str) else rule.column not in columns)
    ]
    lost = {rule if isinstance(rule, str) else rule.reason for rule in filters.rules if rule not in rules}
    where = [None if one.where is None else tuple(name for name in one.where if name not in lost) for one in taggers]
    pairs = zip(taggers, where, strict=True)
    return FilterRecipe(taggers=tuple(t.model_copy(update={"where": w}) for t, w in pairs), rules=tuple(rules))


def _entry(tagger: str | TaggerRecipe) -> TaggerRecipe:
    return TaggerRecipe(name=tagger, params={}) if isinstance(tagger, str) else tagger


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

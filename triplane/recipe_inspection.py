"""All mistakes of a recipe at once, for whoever checks before something is sent: (file, model, overrides) -> `Inspection`.

`triplane.recipe.load` stops at the first one; this goes on, so that one look at a recipe finds everything. The sentences are the same.
"""

import copy
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import pydantic

from triplane.errors import UsageError
from triplane.recipe import Document, Location, Problem, apply, compose, in_document, sentence, text_of, valid_keys

M = TypeVar("M", bound=pydantic.BaseModel)
KEY = re.compile(r"[a-z_]+(?:\.[a-z_0-9]+)*")
STAND_INS: tuple[Any, ...] = (1, 1.0, 0.5, "x", False, None, [], {})
MAX_STAND_INS = 50


@dataclass(frozen=True)
class Inspection(Generic[M]):
    """Everything wrong with a recipe; `recipe` is None if it cannot be read. `likely`: what it would be with other values in the place of
    those that are wrong (`broken`), for checks of the rest."""

    problems: tuple[Problem, ...]
    recipe: M | None
    document: Document
    likely: M | None = None
    broken: frozenset[str] = frozenset()

    @property
    def value(self) -> Any:
        """Its plain values, misspelled keys put right."""
        return self.document.value

    def place(self, *location: str | int) -> str:
        """Where the innermost part of a location that exists was written."""
        return self.document.place(location)

    def written_at(self, places: Mapping[str, str]) -> "Inspection[M]":
        """The same, with other places in the place of these: of overrides that were made of a file's lines."""
        moved = {location: places.get(place, place) for location, place in self.document.places.items()}
        problems = tuple(replace(one, place=places.get(one.place, one.place)) for one in self.problems)
        return replace(self, problems=problems, document=replace(self.document, places=moved))

    def with_part(self, part: Document, *location: str | int) -> "Inspection[M]":
        """The same, with what lies at a location as it was written in a document of its own."""
        places = {(*location, *inner): place for inner, place in part.places.items()}
        return replace(self, document=replace(self.document, places=self.document.places | places))

    def is_about_broken(self, message: str) -> bool:
        """Whether a sentence about `likely` names a key whose value is not the recipe's own."""
        words = set(KEY.findall(message))
        last = {key.rpartition(".")[2] for key in self.broken}
        return bool(words & (self.broken | last))

    def place_of(self, message: str) -> str:
        """Where the first key that a sentence names was written, else the recipe."""
        for word in KEY.findall(message):
            location = tuple(int(part) if part.isdecimal() else part for part in word.split("."))
            if location in self.document.places:
                return self.document.places[location]
        return self.document.name


def inspect(path: Path, model: type[M], overrides: Sequence[str] = ()) -> Inspection[M]:
    """As `load`, but all mistakes instead of the first. A misspelled key hides nothing: its value is checked as what was meant."""
    found: list[Problem] = []
    try:
        document = compose(text_of(Path(path)), str(path), found)
    except UsageError as error:
        place, _, message = str(error).partition(": ")
        problem = Problem(place, message) if place.startswith(str(path)) else Problem(str(path), str(error))
        return Inspection((*found, problem), None, Document(str(path), {}))
    for override in overrides:
        try:
            apply(document, override)
        except UsageError as error:
            found.append(Problem(f"override {override}", str(error)))
    recipe, mistakes = _validated(document, model)
    while mistakes and (renamed := _put_right(mistakes, document, model)):
        found += renamed
        recipe, mistakes = _validated(document, model)
    for mistake in _of_meant_branches(mistakes, document.value):
        location = _location(mistake, document.value)
        found.append(Problem(document.place(location), sentence(mistake, location, model)))
    likely, broken = (recipe, frozenset[str]()) if recipe is not None else _stood_in(document.value, model)
    return Inspection(tuple(found), recipe, document, likely, broken)


def _location(mistake: Any, value: Any) -> Location:
    return in_document(mistake["loc"], value, mistake["type"] in ("missing", "extra_forbidden"))


def _stood_in(value: Any, model: type[M]) -> tuple[M | None, frozenset[str]]:
    """The recipe with some value of the right type for each that is wrong, and the keys of those; None if none will do."""
    value, broken = copy.deepcopy(value), set[str]()
    for _ in range(MAX_STAND_INS):
        recipe, mistakes = _validated(Document("", value), model)
        if recipe is not None:
            return recipe, frozenset(broken)
        mistake = _of_meant_branches(mistakes, value)[0]
        location = _location(mistake, value)
        if not location or not _replaced(value, location, mistake, model):
            break
        broken.add(".".join(map(str, location)))
    return None, frozenset()


def _replaced(value: Any, location: Location, mistake: Any, model: type[pydantic.BaseModel]) -> bool:
    """Puts the first stand-in that is accepted at a location; whether there was one."""
    holder = value
    for part in location[:-1]:
        holder = holder[part]
    if mistake["type"] == "extra_forbidden":
        holder.pop(location[-1])
        return True
    literals = re.findall(r"'([^']*)'", str(mistake.get("ctx", {}).get("expected", "")))
    for candidate in (*literals, *STAND_INS):
        holder[location[-1]] = candidate
        _, mistakes = _validated(Document("", value), model)
        if all(_location(one, value)[: len(location)] != location for one in mistakes):
            return True
    return False


def of_named(named: Path, model: type[M], by: Path, *location: str | int) -> Inspection[M]:
    """A recipe that another (`by`) names at a location: where it does not exist, that is the other's mistake."""
    found = inspect(named, model)
    if found.problems and not named.exists():
        try:
            place = compose(text_of(by), str(by), []).place(location)
        except UsageError:
            place = str(by)  # what is wrong with that file is its own mistake
        return replace(found, problems=(Problem(place, found.problems[0].message),))
    return found


def _validated(document: Document, model: type[M]) -> tuple[M | None, list[Any]]:
    try:
        return model.model_validate_json(json.dumps(document.value)), []
    except pydantic.ValidationError as error:
        return None, list(error.errors())


def _put_right(mistakes: list[Any], document: Document, model: type[pydantic.BaseModel]) -> list[Problem]:
    """Renames unknown keys that are near a known one that is absent -> what was said of them."""
    found = []
    for mistake in mistakes:
        location = in_document(mistake["loc"], document.value, True)
        holder: Any = document.value
        for part in location[:-1]:
            holder = holder[part]
        if mistake["type"] != "extra_forbidden" or location[-1] not in holder:
            continue
        valid = [key for key in valid_keys(model, mistake["loc"][:-1]) if key not in holder]
        if close := difflib.get_close_matches(str(location[-1]), valid, 1):
            found.append(Problem(document.place(location), sentence(mistake, location, model)))
            holder[close[0]] = holder.pop(location[-1])
            moved = {known: place for known, place in document.places.items() if known[: len(location)] == location}
            document.places |= {(*location[:-1], close[0], *known[len(location) :]): at for known, at in moved.items()}
    return found


def _of_meant_branches(mistakes: list[Any], value: Any) -> list[Any]:
    """Of a union's branches, only the mistakes of the one that was meant: the fewest, and not of another type altogether."""
    branches: dict[Location, dict[Any, list[Any]]] = {}
    kept = []
    for mistake in mistakes:
        loc: Location = mistake["loc"]
        keep_last = mistake["type"] in ("missing", "extra_forbidden")
        depth = 0
        while depth < len(loc) and len(in_document(loc[: depth + 1], value, False)) == depth + 1:
            depth += 1
        if depth == len(loc) or (keep_last and depth == len(loc) - 1):
            kept.append(mistake)
        else:
            branches.setdefault(loc[:depth], {}).setdefault(loc[depth], []).append(mistake)
    for at, named in branches.items():
        kept += min(named.values(), key=lambda those, at=at: _distance(those, len(at) + 1))  # type: ignore[misc]
    return kept


def _distance(mistakes: list[Any], depth: int) -> tuple[bool, int]:
    return any(len(one["loc"]) == depth for one in mistakes), len(mistakes)

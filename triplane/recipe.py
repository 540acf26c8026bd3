"""Recipes: YAML -> frozen, typed, strict models; every mistake names its file and line and the nearest valid key.

Text and dotted overrides (`train.steps=100`) -> a pydantic model, and back to plain JSON values that are saved with what it made. Numbers carry their
unit where one is easily mistaken (`Tokens`, `Bytes`, `Seconds`). YAML is read as YAML 1.2's core schema (3e-4 is a number, `no` a
string, 010 ten): https://yaml.org/spec/1.2.2/#103-core-schema; 1_000 is read as a number too.
"""

import difflib
import json
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import yaml

from triplane.errors import UsageError

Location = tuple[str | int, ...]


class Strict(pydantic.BaseModel):
    """The base of every recipe: frozen, no unknown keys, no conversions but int to float."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


M = TypeVar("M", bound=pydantic.BaseModel)

DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
BYTE_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    f"{letter}iB": 1 << 10 * power for power, letter in enumerate("KMGT", 1)
}
TOKEN_UNITS = {f"{letter}{word}": factor for letter, factor in DECIMAL.items() for word in ("", " tokens")}
SECOND_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
MAX_DEPTH, MAX_NODES, MAX_DIGITS = 40, 100_000, 1000
_QUANTITY = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z ]*?)\s*")


def _quantity(value: Any, units: dict[str, int], what: str) -> Any:
    """'4 MiB' -> 4194304. Anything but a string is left to pydantic. Raises ValueError for a unit that is none of `units`."""
    if not isinstance(value, str):
        return value
    match = _QUANTITY.fullmatch(value)
    by_name = {name.strip(): factor for name, factor in units.items()}
    if not match or match[2] not in by_name:
        allowed = ", ".join(name for name in by_name if name and " " not in name)
        raise ValueError(f"{value!r} is no number of {what}: write an integer, or a number with one of {allowed}")
    whole, _, decimals = match[1].replace("_", "").partition(".")
    if len(whole + decimals) > MAX_DIGITS:
        raise ValueError(f"a number of {len(whole + decimals)} digits: write at most {MAX_DIGITS}")
    scaled = int(whole + decimals) * by_name[match[2]]
    if scaled % 10 ** len(decimals):
        raise ValueError(f"{value!r} is not a whole number of {what}")
    return scaled // 10 ** len(decimals)


Tokens = Annotated[int, pydantic.BeforeValidator(lambda value: _quantity(value, TOKEN_UNITS, "tokens"))]
Bytes = Annotated[int, pydantic.BeforeValidator(lambda value: _quantity(value, BYTE_UNITS, "bytes"))]
Seconds = Annotated[int, pydantic.BeforeValidator(lambda value: _quantity(value, SECOND_UNITS, "seconds"))]


def seconds(text: str) -> int:
    """'24h' or '30 min' or '90' (seconds) -> seconds, for an option of a command. Raises UsageError."""
    try:
        return int(_quantity(f"{text}s" if text.isdecimal() else text, SECOND_UNITS, "seconds"))
    except ValueError as error:
        raise UsageError(str(error)) from error


def load(path: Path, model: type[M], overrides: Sequence[str] = ()) -> M:
    """Reads a recipe file. Raises UsageError."""
    return parse(text_of(Path(path)), model, str(path), overrides)


def text_of(path: Path) -> str:
    """A recipe file's text. Raises UsageError."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"recipe {path} does not exist{_near_file(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} cannot be read ({error}): name a YAML file in UTF-8") from error


def _near_file(path: Path) -> str:
    here = path.parent if path.parent.is_dir() else Path(".")
    close = difflib.get_close_matches(path.name, [p.name for p in here.glob("*.y*ml")], 1)
    return f": did you mean {here / close[0]}?" if close else ": check the path"


def parse(text: str, model: type[M], name: str, overrides: Sequence[str] = ()) -> M:
    """As `load`, from text; `name` is how errors call it. Raises UsageError."""
    document = compose(text, name)
    for override in overrides:
        apply(document, override)
    try:
        # Through JSON, as strict mode then takes a list for a tuple and a string for a path or an enum, and nothing else.
        return model.model_validate_json(json.dumps(document.value))
    except pydantic.ValidationError as error:
        raise UsageError(_explained(error, document, model)) from error


@dataclass(frozen=True)
class Problem:
    """One mistake and where it was written: file:line, or the override."""

    place: str
    message: str


def resolved(recipe: pydantic.BaseModel) -> dict[str, Any]:
    """The recipe with its defaults and overrides as JSON values: what an artifact's identity and manifest hold."""
    return recipe.model_dump(mode="json")


@dataclass
class Document:
    """Plain values and, for each location in them, where it was written: 'file:line' or the override."""

    name: str
    value: Any = None
    places: dict[Location, str] = field(default_factory=dict)
    problems: list[Problem] | None = None  # a list: what reading can go on after is put there and not raised

    def refuse(self, place: str, message: str) -> None:
        """Notes a mistake in the text, or raises UsageError."""
        if self.problems is None:
            raise UsageError(f"{place}: {message}")
        self.problems.append(Problem(place, message))

    def line(self, node: yaml.Node) -> str:
        """file:line of a node."""
        return f"{self.name}:{node.start_mark.line + 1}"

    def place(self, location: Location) -> str:
        """Where the innermost part of a location that exists was written."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.places:
                return self.places[location[:end]]
        return self.name


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema. Used to compose nodes only; values are made by `_scalar`."""


_Loader.yaml_implicit_resolvers = {}

_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS = {
    "true": True,
    "True": True,
    "false": False,
    "False": False,
    "null": None,
    "Null": None,
    "~": None,
    "": None,
}
_TAGS = {yaml.MappingNode: "map", yaml.SequenceNode: "seq", yaml.ScalarNode: "str"}


def compose(text: str, name: str, problems: list[Problem] | None = None) -> Document:
    """Raises UsageError for what is not YAML, more than one document, a tag, a duplicate key, or an unbounded alias."""
    document = Document(name, problems=problems)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{where}: not YAML ({problem}): correct it") from error
    except RecursionError as error:
        raise UsageError(f"{name}: nested beyond reason: use at most {MAX_DEPTH} levels") from error
    document.value = {} if node is None else _plain(node, (), document)
    return document


def _plain(node: yaml.Node, location: Location, document: Document) -> Any:
    """A node as JSON values; where each part was written goes to `document.places`."""
    here = document.places[location] = document.line(node)
    if len(location) > MAX_DEPTH or len(document.places) > MAX_NODES:
        raise UsageError(f"{here}: nested or repeated beyond reason: write it out without aliases")
    if node.tag != f"tag:yaml.org,2002:{_TAGS[type(node)]}":
        raise UsageError(f"{here}: the tag {node.tag} is not allowed: write a plain value")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*location, i), document) for i, item in enumerate(node.value)]
    return _pairs(node, location, document) if isinstance(node, yaml.MappingNode) else _scalar(node, here)


def _pairs(node: yaml.MappingNode, location: Location, document: Document) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for key_node, value in node.value:
        at, key = document.line(key_node), key_node.value
        if not isinstance(key_node, yaml.ScalarNode):
            raise UsageError(f"{at}: a key must be a word: write `key: value`")
        if key in pairs:
            first = document.places[(*location, key)]
            document.refuse(at, f"key {key!r} is given twice (first at {first}): remove one")
        pairs[key] = _plain(value, (*location, key), document)
        document.places[(*location, key)] = at  # the key's line: its value may begin below
    return pairs


def _scalar(node: Any, here: str) -> Any:
    """A plain scalar by the core schema; a quoted or block one is a string. Raises UsageError for an integer without end."""
    text = node.value
    if node.style is not None:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise UsageError(f"{here}: a number of {len(text)} digits: write at most {MAX_DIGITS}, or quote it")
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def apply(document: Document, override: str) -> None:
    """Sets `a.b.0.c=VALUE` (VALUE in YAML) in the document. Raises UsageError."""
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        raise UsageError(f"override {override!r} is not KEY=VALUE: write for instance model.num_layers=4")
    name = f"override {override}"
    value = compose(text, name).value if text else None
    here, location = document.value, ()  # type: Any, Location
    *parents, last = path.split(".")
    for part in parents:
        index = _index(here, part, name)
        if isinstance(here, dict) and here.get(part) is None:
            here[part] = {}
        here, location = here[index], (*location, index)
    index = _index(here, last, name)
    here[index], location = value, (*location, index)
    kept = {known: place for known, place in document.places.items() if known[: len(location)] != location}
    document.places = kept | {location: name}


def _index(container: Any, part: str, name: str) -> str | int:
    """A part of a dotted path as key or list position. Raises UsageError if the container has none such."""
    if isinstance(container, dict):
        return part
    if isinstance(container, list) and part.isdecimal() and len(part) < 10 and int(part) < len(container):
        return int(part)
    what = f"a list of {len(container)}" if isinstance(container, list) else repr(container)
    raise UsageError(f"{name}: {part!r} is not in {what}: correct the path")


def _explained(error: pydantic.ValidationError, document: Document, model: type[pydantic.BaseModel]) -> str:
    """The first mistake in one sentence, unknown keys before the missing ones that they cause."""
    mistakes = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    first = mistakes[0]
    location = in_document(first["loc"], document.value, first["type"] in ("missing", "extra_forbidden"))
    more = f" ({len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"{document.place(location)}: {sentence(first, location, model)}{more}"


def sentence(mistake: Any, location: Location, model: type[pydantic.BaseModel]) -> str:
    """One of pydantic's errors in our words."""
    key = ".".join(map(str, location)) or "the recipe"
    if mistake["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_suggestion(str(location[-1]), valid_keys(model, mistake['loc'][:-1]))}"
    if mistake["type"] == "missing":
        return f"key {key!r} is missing: add it"
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "value_error":
        return f"{key}: {message}"
    given = json.dumps(mistake["input"], default=str)
    return f"{key!r} is {given[:80]}: {message[:1].lower()}{message[1:]}"


def _suggestion(key: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(key, valid, 1)
    if close:
        return f": did you mean {close[0]!r}?"
    return f": valid keys here are {', '.join(valid)}" if valid else ": remove it"


def in_document(location: Location, value: Any, keep_last: bool) -> Location:
    """pydantic's location without what is not in the document: the names of a union's branches."""
    kept: Location = ()
    for i, part in enumerate(location):
        inside = isinstance(value, dict) and part in value
        inside = inside or (isinstance(value, list) and isinstance(part, int) and part < len(value))
        if inside or (keep_last and i == len(location) - 1):
            kept = (*kept, part)
            value = value[part] if inside else None
    return kept


def valid_keys(model: type[pydantic.BaseModel], location: Sequence[str | int]) -> list[str]:
    """The keys of the model (or of every branch of a union) at pydantic's location of an error."""
    here = [model]
    for part in location:
        inner = [
            found
            for one in here
            if part in one.model_fields
            for found in _models(one.model_fields[str(part)].annotation)
        ]
        tagged = [one for one in here if one.__name__ == part]
        here = inner or tagged or here
    return sorted({field.alias or name for one in here for name, field in one.model_fields.items()})


def _models(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    """Every model inside an annotation: list[A], dict[str, A], A | B, Annotated[A, ...]."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        if issubclass(annotation, pydantic.BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models(argument)

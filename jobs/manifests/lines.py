"""YAML documents that know on which line each of their keys and values was written.

Text of one or more YAML documents -> plain JSON values with lines, and what is wrong with the text itself: a syntax error, a key given
twice, a tag. Scalars are read as Kubernetes reads them (YAML 1.1, where `no` is false and 0400 octal, but a date is a string):
https://yaml.org/type/. A syntax error ends its own document only. CloudFormation's short tags (`!Ref a`) become their long
form ({"Ref": "a"}): https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/intrinsic-function-reference.html.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jobs.manifests.finding import Finding

Location = tuple[str | int, ...]
MAX_DEPTH, MAX_NODES = 100, 50_000
PREFIX = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Document:
    """`lines`: the line of each location, counted from 1. `sources`: for a rendered document, the files that its parts came from, the ones
    that win first."""

    file: str
    value: Any
    lines: dict[Location, int] = field(default_factory=dict)
    sources: tuple["Document", ...] = ()

    @property
    def kind(self) -> str:
        return _word(self.value, "kind")

    @property
    def name(self) -> str:
        return _word(self.metadata, "name") or _word(self.metadata, "generateName")

    @property
    def metadata(self) -> dict[str, Any]:
        metadata = self.value.get("metadata") if isinstance(self.value, dict) else None
        return metadata if isinstance(metadata, dict) else {}

    def place(self, location: Location) -> tuple[str, int]:
        """File and line of the innermost part of a location that was written."""
        best = max((_written(one, location, self.value) for one in self.sources), key=lambda at: at[0], default=None)
        if best is not None and best[0] > 0:
            return best[1], best[2]
        end = next((end for end in range(len(location), -1, -1) if location[:end] in self.lines), None)
        return self.file, 0 if end is None else self.lines[location[:end]]

    def finding(self, location: Location, message: str) -> Finding:
        """A mistake at a location, the object named."""
        what = " ".join(word for word in (self.kind, self.name) if word)
        return Finding(*self.place(location), f"{what}: {message}" if what else message)


def _word(value: Any, key: str) -> str:
    word = value.get(key) if isinstance(value, dict) else None
    return word if isinstance(word, str) else ""


def _written(source: Document, location: Location, rendered: Any) -> tuple[int, str, int]:
    """How much of a rendered location a source wrote, and where. List items are the same if they have the same `name`."""
    here, place, depth = source.value, (), 0  # type: Any, Location, int
    for part in location:
        rendered = _inner(rendered, part)
        if isinstance(here, list) and isinstance(part, int):
            names = [_word(item, "name") for item in here]
            wanted = _word(rendered, "name")
            part = names.index(wanted) if wanted and wanted in names else part
        here, place = _inner(here, part), (*place, part)
        if place not in source.lines:
            break
        depth += 1
    return depth, source.file, source.lines.get(place[:depth], 0)


def _inner(value: Any, part: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(part)
    return value[part] if isinstance(value, list) and isinstance(part, int) and part < len(value) else None


def mapping(value: Any, *keys: str) -> dict[str, Any]:
    """value[key][key]..., or an empty mapping where that is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def dotted(location: Location) -> str:
    """('spec', 'containers', 0, 'image') -> 'spec.containers[0].image'."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def read(path: Path, intrinsics: bool = False) -> tuple[list[Document], list[Finding]]:
    """The documents of a file, and what is wrong with its text. `intrinsics`: CloudFormation's tags are allowed."""
    try:
        return parse(path.read_text("utf-8"), str(path), intrinsics=intrinsics)
    except FileNotFoundError:
        return [], [Finding(str(path), 0, "does not exist: check the path")]
    except (OSError, UnicodeDecodeError) as error:
        return [], [Finding(str(path), 0, f"cannot be read ({error}): name a YAML file in UTF-8")]


def parse(text: str, file: str, first_line: int = 1, intrinsics: bool = False) -> tuple[list[Document], list[Finding]]:
    """As `read`; `first_line` is the line of `file` that the text begins on."""
    documents, findings = [], []  # type: list[Document], list[Finding]
    for start, part in _split(text):
        reader = _Reader(file, start + first_line - 1, intrinsics)
        value = reader.read(part)
        findings += reader.findings
        if value is not None:
            documents.append(Document(file, value, reader.lines))
    return documents, findings


def _split(text: str) -> Iterator[tuple[int, str]]:
    """(line number before it, text) of each document, so that a syntax error in one hides no other."""
    begin, lines = 0, text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if re.match(r"---(\s|$)", line) and number > begin:
            yield begin, "".join(lines[begin:number])
            begin = number
    yield begin, "".join(lines[begin:])


class _Loader(yaml.SafeLoader):
    """SafeLoader's scalars without dates, base 60 and `=`. Used to compose nodes only; values are made by `_Reader`."""


_INT = re.compile(r"[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_REPLACED = {f"{PREFIX}{name}" for name in ("timestamp", "value", "int", "float")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{PREFIX}int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver(f"{PREFIX}float", _FLOAT, list("-+.0123456789"))


class _Unreadable(Exception):
    """Stops the reading of one document; the finding is already noted."""


class _Reader:
    """One document: its values, the line of each location, and its findings."""

    def __init__(self, file: str, lines_before: int, intrinsics: bool):
        self.file, self.before, self.intrinsics = file, lines_before, intrinsics
        self.lines: dict[Location, int] = {}
        self.findings: list[Finding] = []

    def read(self, text: str) -> Any:
        """The value; None for an empty document or one that cannot be read."""
        try:
            node = yaml.compose(text, Loader=_Loader)
            return None if node is None else self._value(node, ())
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            line = self.before + (mark.line + 1 if mark else 1)
            self.findings.append(Finding(self.file, line, f"not YAML ({problem}): correct it"))
        except RecursionError:
            self.findings.append(Finding(self.file, self.before + 1, "nested beyond reason: write it flatter"))
        except _Unreadable:
            pass
        return None

    def _note(self, node: yaml.Node, message: str) -> None:
        self.findings.append(Finding(self.file, self._line(node), message))

    def _line(self, node: yaml.Node) -> int:
        return int(self.before + node.start_mark.line + 1)

    def _value(self, node: yaml.Node, location: Location) -> Any:
        self.lines.setdefault(location, self._line(node))
        if len(location) > MAX_DEPTH or len(self.lines) > MAX_NODES:
            self._note(node, "nested or repeated beyond reason: write it out without aliases")
            raise _Unreadable
        if self.intrinsics and re.match("![A-Z]", node.tag):
            return self._intrinsic(node, location)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag != f"{PREFIX}{_TAGS[type(node)]}":
            return self._unknown(node)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*location, index)) for index, item in enumerate(node.value)]
        return self._mapping(node, location)

    def _mapping(self, node: yaml.Node, location: Location) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{PREFIX}merge":
                merged |= self._merged(value_node, location)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._note(key_node, "a key must be a word: write `key: value`")
                continue
            key = key_node.value
            if key in found:
                first = self.lines[(*location, key)]
                self._note(key_node, f"key {key!r} is given twice (first on line {first}): remove one")
            self.lines[(*location, key)] = self._line(key_node)
            found[key] = self._value(value_node, (*location, key))
        return {**merged, **found}

    def _merged(self, node: yaml.Node, location: Location) -> dict[str, Any]:
        """The keys of `<<: *other` or `<<: [*first, *second]`, the first winning."""
        nodes = reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Any] = {}
        for one in nodes:
            value = self._value(one, location)
            if not isinstance(value, dict):
                self._note(one, "only a mapping can be merged: correct it")
                continue
            found |= value
        return found

    def _intrinsic(self, node: yaml.Node, location: Location) -> dict[str, Any]:
        """A short CloudFormation tag in its long form."""
        word = node.tag[1:]
        name = word if word in ("Ref", "Condition") else f"Fn::{word}"
        plain = type(node)(f"{PREFIX}{_TAGS[type(node)]}", node.value, node.start_mark, node.end_mark)
        value = self._value(plain, (*location, name))
        return {name: value.split(".", 1) if word == "GetAtt" and isinstance(value, str) else value}

    def _scalar(self, node: Any) -> Any:
        tag, text = node.tag.removeprefix(PREFIX), node.value
        if tag in ("str", "!"):
            return text
        if tag == "null":
            return None
        if tag == "bool":
            return yaml.SafeLoader.bool_values[text.lower()]
        try:
            if tag == "int":
                return int(re.sub(r"^([-+]?)0(?=[0-7_])", r"\g<1>0o", text).replace("_", ""), 0)
            return float(text) if tag == "float" else self._unknown(node)
        except ValueError:
            self._note(node, f"{text[:40]!r} is no number that can be read: correct or quote it")
            return text

    def _unknown(self, node: yaml.Node) -> Any:
        self._note(node, f"the tag {node.tag} is not allowed: write a plain value")
        raise _Unreadable


_TAGS = {yaml.ScalarNode: "str", yaml.SequenceNode: "seq", yaml.MappingNode: "map"}

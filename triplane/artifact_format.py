"""What a record and a manifest are, and their bytes.

JSON objects <-> frozen dataclasses, checked strictly on the way in. The bytes are canonical (sorted keys, no times, no attempt), so that the same
inputs, recipe and stage versions give the same manifest. A schema version that this release does not know is refused, never guessed.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from triplane import hashing
from triplane.errors import Corrupt, Refused, UsageError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
RECORDS = "records"
KINDS = (
    "corpus",
    "documents",
    "tokenizer",
    "attributes",
    "selection",
    "tokens",
    "heldout",
    "mix",
    "run",
    "checkpoint",
    "evaluation",
    "classifier",
    "eval_items",
    "contamination_index",
    "contamination_report",
)
CONTENT_HASH = re.compile(r"-[0-9a-f]{12}(?=[._]|$)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True)
class FileEntry:
    """A data object: name relative to the artifact's folder, sha256 in hex, bytes, and rows and tokens where it has them."""

    __pydantic_config__ = _STRICT
    name: str
    sha256: str
    bytes: int
    rows: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Record:
    """One finished shard: its files and its counts (JSON values). `identity` guards a draft; in a manifest it is empty."""

    __pydantic_config__ = _STRICT
    shard: str
    files: tuple[FileEntry, ...]
    counts: dict[str, Any]
    identity: str = ""


@dataclass(frozen=True)
class Manifest:
    """A committed artifact: what made it (identity), what it was made of (inputs, parents) and every file it holds.

    `code_version` is informational; `identity` is the hash of kind, inputs, parents, recipe and stage versions only.
    """

    __pydantic_config__ = _STRICT
    schema_version: int
    kind: str
    name: str
    version: str
    identity: str
    inputs: dict[str, str]
    parents: tuple[str, ...]
    recipe: dict[str, Any]
    code_version: str
    stage_versions: dict[str, int]
    records: tuple[Record, ...]
    metadata: dict[str, Any]

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The files of all records, in shard order."""
        return tuple(file for record in self.records for file in record.files)

    @property
    def reference(self) -> str:
        """kind/name@version."""
        return f"{self.kind}/{self.name}@{self.version}"


def identity_of(
    kind: str,
    inputs: Mapping[str, str],
    parents: Iterable[str],
    recipe: Mapping[str, Any],
    stage_versions: Mapping[str, int],
) -> str:
    """The hash (64 hex digits) of all that makes an artifact. Raises TypeError, ValueError for what is no JSON value."""
    made_of = {
        "kind": kind,
        "inputs": dict(inputs),
        "parents": list(parents),
        "recipe": dict(recipe),
        "stage_versions": dict(stage_versions),
    }
    return hashing.identity(made_of)


F = TypeVar("F", Record, Manifest)


def to_bytes(value: Record | Manifest) -> bytes:
    """Canonical JSON with a final newline; numpy scalars become numbers. Raises ValueError for NaN and infinity."""
    plain = dataclasses.asdict(value, dict_factory=_without_defaults)
    return (json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain) + "\n").encode()


def _without_defaults(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dataclass's fields but for the optional ones that say nothing."""
    fields = dict(items)
    absent = {key for key in ("rows", "tokens") if fields.get(key, 0) is None}
    absent |= {"identity"} if "shard" in fields and not fields["identity"] else set()
    return {key: value for key, value in items if key not in absent}


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def record_from(data: bytes, where: str) -> Record:
    """Raises Corrupt."""
    return _checked(Record, data, where)


def manifest_from(data: bytes, where: str) -> Manifest:
    """Raises Corrupt, and Refused for a schema version of another release."""
    try:
        version = json.loads(data)["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(f"{where} is not a manifest: remove its folder and make the artifact again") from error
    if version != SCHEMA_VERSION:
        raise Refused(
            f"{where} has schema version {version!r} and this release reads {SCHEMA_VERSION}: use the release that wrote it"
        )
    return _checked(Manifest, data, where)


_ADAPTERS: dict[type, TypeAdapter[Any]] = {form: TypeAdapter(form) for form in (Record, Manifest)}


def _checked(form: type[F], data: bytes, where: str) -> F:
    try:
        value: F = _ADAPTERS[form].validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise Corrupt(
            f"{where} is not a {form.__name__.lower()} ({at}: {first['msg']}): make the artifact again"
        ) from error
    for file in value.files:
        if not is_inside(file.name):
            raise Corrupt(f"{where} names the file {file.name!r} outside its folder: do not use this artifact")
    return value


def is_inside(name: str) -> bool:
    """Whether a relative name stays in its folder."""
    return bool(name) and not name.startswith("/") and "\\" not in name and ".." not in name.split("/")


def split_reference(reference: str) -> tuple[str, str, str | None]:
    """kind/name@version or kind/name -> (kind, name, version or None). Raises UsageError."""
    kind, slash, rest = reference.partition("/")
    name, _, version = rest.partition("@")
    if not slash or kind not in KINDS or not _NAME.fullmatch(name) or ("@" in rest and not _NAME.fullmatch(version)):
        raise UsageError(
            f"{reference!r} is no reference: write kind/name or kind/name@version, the kind one of {', '.join(KINDS)}, "
            f"the rest of letters, digits and . _ + -"
        )
    return kind, name, version or None

"""Strict schemas: apiVersion and kind -> the schema of an object, and what an object has that the schema does not allow.

Custom resources: `schemas/KIND.json.xz`, the OpenAPI schemas of KubeRay, the Spark operator and Kueue with descriptions stripped
(Apache-2.0), of which only the kinds in use are read. Core kinds: the JSON schemas in the package `kubernetes-validate`. Strict means
that unknown keys are mistakes: an API server drops them without a word
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#field-pruning).
"""

import copy
import difflib
import functools
import json
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jsonschema
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from jobs.manifests.lines import Location, dotted

KUBERNETES = "1.35"
BUNDLED = f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict"
DEFINITIONS = "https://kubernetes.io/api/_definitions.json"
GROUPS = {
    "ray.io": ("RayCluster", "RayCronJob", "RayJob"),
    "sparkoperator.k8s.io": ("ScheduledSparkApplication", "SparkApplication"),
    "kueue.x-k8s.io": ("ClusterQueue", "LocalQueue", "ResourceFlavor"),
}
Mistake = tuple[Location, str]
NEAR, MAX_CORRECTIONS = 0.55, 5


@dataclass(frozen=True)
class Schema:
    """`structural`: the custom resource's own schema, with its rules and defaults; None for a core kind."""

    validator: jsonschema.Draft202012Validator
    structural: dict[str, Any] | None = None


@functools.cache
def of(api_version: str, kind: str) -> Schema | None:
    """The schema of a kind, read at its first use; None where none is known."""
    group, _, version = api_version.rpartition("/")
    if kind in GROUPS.get(group, ()):
        structural = _versions(kind).get(version)
        return None if structural is None else Schema(_validator(strict(structural)), structural)
    if "." in group and not group.endswith(".k8s.io"):
        return None
    try:
        content = schema_contents(f"{BUNDLED}/{kind.lower()}{_suffix(api_version)}", KUBERNETES)
    except FileNotFoundError:
        return None
    return Schema(_validator(content)) if _kind(content) == kind else None


def _suffix(api_version: str) -> str:
    """How the bundled files of an API version end: batch/v1 -> '-batch-v1.json', rbac.authorization.k8s.io/v1 -> '-rbac-v1.json'."""
    group, _, version = api_version.rpartition("/")
    return f"-{group.split('.')[0]}-{version}.json" if group else f"-{version}.json"


def _kind(content: dict[str, Any]) -> str:
    return str(content["properties"]["kind"].get("enum", [""])[0])


def kinds(api_version: str) -> list[str]:
    """The kinds of an API version that have a schema, for a suggestion."""
    group = api_version.rpartition("/")[0]
    if group in GROUPS:
        return list(GROUPS[group])
    folder, suffix = resources.files("kubernetes_validate").joinpath(BUNDLED), _suffix(api_version)
    files = [one for one in folder.iterdir() if one.name.endswith(suffix) and one.name.count("-") == suffix.count("-")]
    contents = [json.loads(one.read_bytes()) for one in files]
    found = {_kind(content) for content in contents if "kind" in content.get("properties", {})}
    return sorted(kind for kind in found if kind and not kind.endswith("List"))


def definition(name: str) -> jsonschema.Draft202012Validator:
    """A core type that is no kind, such as io.k8s.api.core.v1.PodTemplateSpec."""
    return _validator({"$ref": f"{DEFINITIONS}#/$defs/{name}"})


def versions(group: str, kind: str) -> list[str]:
    """The versions of a custom resource that have a schema; none for a kind that is unknown."""
    return sorted(_versions(kind)) if kind in GROUPS.get(group, ()) else []


def _versions(kind: str) -> dict[str, Any]:
    data = resources.files("jobs.manifests").joinpath("schemas", f"{kind}.json.xz").read_bytes()
    return dict(json.loads(lzma.decompress(data))["versions"])


@functools.cache
def _registry() -> Any:
    content = schema_contents(f"{BUNDLED}/_definitions.json", KUBERNETES)
    registry: Any = Registry()
    return registry.with_resource(DEFINITIONS, Resource.from_contents(content))


def _validator(schema: Any) -> jsonschema.Draft202012Validator:
    checker = jsonschema.FormatChecker(formats=())
    for bits in (32, 64):
        checker.checks(f"int{bits}")(lambda value, bits=bits: not isinstance(value, int) or _fits(value, bits))
    return jsonschema.Draft202012Validator(schema, registry=_registry(), format_checker=checker)


def _fits(value: int, bits: int) -> bool:
    return -(1 << bits - 1) <= value < 1 << bits - 1


def strict(structural: dict[str, Any]) -> dict[str, Any]:
    """A structural OpenAPI schema of a whole custom resource as JSON Schema that allows no unknown key."""
    schema = _strict(structural)
    schema["required"] = sorted({*schema.get("required", ()), "apiVersion", "kind", "metadata"})
    schema["properties"]["metadata"] = {"$ref": f"{DEFINITIONS}#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    return schema


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in schema.items() if not key.startswith("x-") and key not in _REPLACED}
    if schema.get("x-kubernetes-int-or-string"):
        kept["type"] = ["integer", "string"]
    elif "type" in schema:
        kept["type"] = [schema["type"], "null"] if schema.get("nullable") else schema["type"]
    if "properties" in schema:
        kept["properties"] = {name: _strict(inner) for name, inner in schema["properties"].items()}
        # An API server fills defaults in before it validates.
        given = {name for name, inner in schema["properties"].items() if "default" in inner}
        kept["required"] = [name for name in schema.get("required", ()) if name not in given]
    if "items" in schema:
        kept["items"] = _strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = _strict(schema["additionalProperties"])
    elif schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept["additionalProperties"] = False
    return kept


_REPLACED = {"type", "anyOf", "nullable", "properties", "items", "additionalProperties", "default"}


@dataclass(frozen=True)
class Checked:
    """`value` with misspelled keys put right; `mistakes` with locations as they were written; `written`: location of a key put right ->
    as it was written."""

    value: Any
    mistakes: list[Mistake]
    written: dict[Location, Location]

    def place(self, location: Location) -> Location:
        """A location in `value` as it was written."""
        for end in range(len(location), 0, -1):
            if location[:end] in self.written:
                return (*self.written[location[:end]], *location[end:])
        return location


def check(validator: jsonschema.Draft202012Validator, value: Any) -> Checked:
    """Everything that the schema does not allow. A misspelled key is one mistake and hides no other: what is under it is checked as what was
    meant."""
    checked = Checked(copy.deepcopy(value), [], {})
    for _ in range(MAX_CORRECTIONS):
        renamed = list(_misspelled(validator, checked.value))
        for location, meant in renamed:
            _put_right(checked, location, meant)
        if not renamed:
            break
    checked.mistakes.extend((checked.place(at), sentence) for at, sentence in _mistakes(validator, checked.value))
    return checked


def _put_right(checked: Checked, location: Location, meant: str) -> None:
    holder = functools.reduce(lambda inner, part: inner[part], location[:-1], checked.value)
    if meant not in holder:
        here = checked.place(location)
        checked.mistakes.append((here, f"unknown key {dotted(here)!r}: did you mean {meant!r}?"))
        holder[meant] = holder.pop(location[-1])
        checked.written[(*location[:-1], meant)] = here


def _misspelled(validator: jsonschema.Draft202012Validator, value: Any) -> Iterator[tuple[Location, str]]:
    """(location, key that was meant) of unknown keys that are near one that is known and not there."""
    for error in validator.iter_errors(value):
        if error.validator == "additionalProperties":
            absent = sorted(set(error.schema.get("properties", ())) - set(error.instance))
            for key in sorted(set(error.instance) - set(error.schema.get("properties", ()))):
                if close := difflib.get_close_matches(key, absent, 1, NEAR):
                    yield (*error.absolute_path, key), close[0]


def _mistakes(validator: jsonschema.Draft202012Validator, value: Any) -> Iterator[Mistake]:
    for error in validator.iter_errors(value):
        location: Location = tuple(error.absolute_path)
        if error.validator == "additionalProperties":
            known = sorted(error.schema.get("properties", ()))
            for key in sorted(set(error.instance) - set(known)):
                yield (*location, key), f"unknown key {dotted((*location, key))!r}{did_you_mean(key, known)}"
        else:
            yield location, _sentence(error, location)


def _sentence(error: Any, location: Location) -> str:
    where = dotted(location) or "the object"
    if error.validator == "required":
        missing = next(key for key in error.validator_value if repr(key) == error.message.split(" is a required")[0])
        return f"key {dotted((*location, missing))!r} is missing: add it"
    given = json.dumps(error.instance, default=str)[:60]
    if error.validator == "type":
        wanted = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        return f"{where} is {given}: write {' or '.join(_NAMES[one] for one in wanted if one != 'null')}"
    if error.validator in ("oneOf", "anyOf"):
        return f"{where} is {given}: write an integer or a string"
    if error.validator == "enum":
        return f"{where} is {given}: {one_of(str(error.instance), [str(one) for one in error.validator_value])}"
    if error.validator == "pattern" and "KMGTPE" in error.validator_value:
        return f"{where} is {given}, no quantity: write a number with a unit such as 500m or 2Gi"
    return f"{where} is {given}: {_BROKEN.get(error.validator, error.validator)} {error.validator_value}"


_NAMES = {"integer": "an integer", "string": "a string (quote it)", "object": "a mapping", "array": "a list"}
_NAMES |= {"boolean": "true or false", "number": "a number"}
_BROKEN = {
    "pattern": "it must match",
    "format": "it must be of format",
    "minimum": "it must be at least",
    "maximum": "it must be at most",
    "minLength": "its least length is",
    "maxLength": "its greatest length is",
    "minItems": "the least number of items is",
    "maxItems": "the greatest number of items is",
}


def did_you_mean(key: str, known: Sequence[str]) -> str:
    """': did you mean ...?', or the keys that are known where none is near."""
    close = difflib.get_close_matches(key, known, 1, NEAR)
    if close:
        return f": did you mean {close[0]!r}?"
    return f": known here are {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}" if known else ": remove it"


def one_of(value: str, allowed: Sequence[str]) -> str:
    """'did you mean ...?', or the values that are allowed where none is near."""
    close = difflib.get_close_matches(value, allowed, 1)
    return f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(allowed)}"

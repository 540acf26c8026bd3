"""The rules that custom resources carry beside their schemas: (structural schema, object) -> what breaks a rule.

`x-kubernetes-validations` in CEL (https://kubernetes.io/docs/reference/using-api/cel/), evaluated by cel-python after the schema's
defaults are filled in, as an API server does; `x-kubernetes-list-type` map and set allow no item twice. Rules that name `oldSelf` compare
with the object before an update; here there is none, so they are not evaluated (`transition_rules` counts them).
"""

import functools
from collections.abc import Iterator
from typing import Any

import celpy

from jobs.manifests.lines import Location, dotted
from jobs.manifests.schemas import Mistake

VALIDATIONS = "x-kubernetes-validations"


UNDECIDED = "cannot be evaluated"


def mistakes(schema: dict[str, Any], value: Any, is_valid: bool = True) -> Iterator[Mistake]:
    """(location, sentence) of each broken rule of a structural schema. A value that does not follow the schema (`is_valid` False) can
    leave a rule without an answer: those then say nothing."""
    for location, sentence in _broken(schema, defaulted(schema, value), ()):
        if is_valid or UNDECIDED not in sentence:
            yield location, sentence


def transition_rules(schema: dict[str, Any]) -> int:
    """How many rules of a structural schema need an object before."""
    own = sum("oldSelf" in rule["rule"] for rule in schema.get(VALIDATIONS, ()))
    inner = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    return own + sum(transition_rules(one) for one in inner if isinstance(one, dict))


def defaulted(schema: dict[str, Any], value: Any) -> Any:
    """The value with the schema's defaults where a key is absent."""
    if isinstance(value, list):
        return [defaulted(schema.get("items", {}), item) for item in value]
    if not isinstance(value, dict):
        return value
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    filled = {key: inner["default"] for key, inner in properties.items() if "default" in inner} | value
    rest = others if isinstance(others, dict) else {}
    return {key: defaulted(properties.get(key, rest), inner) for key, inner in filled.items()}


def _broken(schema: dict[str, Any], value: Any, location: Location) -> Iterator[Mistake]:
    for rule in schema.get(VALIDATIONS, ()):
        if "oldSelf" not in rule["rule"] and (why := _why_not(rule["rule"], value)) is not None:
            where = dotted(location) or "the object"
            yield location, f"{where} breaks a rule: {rule.get('message', rule['rule'])}{why}"
    if isinstance(value, list):
        yield from _repeated(schema, value, location)
        for index, item in enumerate(value):
            yield from _broken(schema.get("items", {}), item, (*location, index))
    elif isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        for key, inner in value.items():
            known = properties.get(key, others)
            if isinstance(known, dict):
                yield from _broken(known, inner, (*location, key))


def _why_not(rule: str, value: Any) -> str | None:
    """None where the rule holds; else why it does not, empty where it is plainly false."""
    try:
        holds = _program(rule).evaluate({"self": celpy.json_to_cel(value)})
    except (celpy.CELEvalError, ValueError, TypeError) as error:
        return f" (it {UNDECIDED}: {error.args[0] if error.args else error})"
    return None if holds else ""


@functools.cache
def _program(rule: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def _repeated(schema: dict[str, Any], items: list[Any], location: Location) -> Iterator[Mistake]:
    """Items given twice where a list is a set or a map."""
    kind, keys = schema.get("x-kubernetes-list-type"), schema.get("x-kubernetes-list-map-keys", ())
    if kind not in ("set", "map"):
        return
    seen: list[Any] = []
    for index, item in enumerate(items):
        identity = [item.get(key) for key in keys] if kind == "map" and isinstance(item, dict) else item
        if identity in seen:
            what = ", ".join(map(str, identity)) if isinstance(identity, list) else str(identity)
            yield (*location, index), f"{dotted((*location, index))} repeats {what}: remove one"
        seen.append(identity)

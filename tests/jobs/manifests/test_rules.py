"""CEL rules: true, false and undecided; defaults count; rules about an update are left out, and counted."""

from typing import Any

import pytest

from jobs.manifests import rules, schemas


def test_a_rule_that_is_false_or_cannot_be_evaluated() -> None:
    schema = {"properties": {"a": {rules.VALIDATIONS: [{"rule": "self.b < 3", "message": "b must be below 3"}]}}}
    assert list(rules.mistakes(schema, {"a": {"b": 2}})) == []
    assert list(rules.mistakes(schema, {"a": {"b": 3}})) == [(("a",), "a breaks a rule: b must be below 3")]
    (undecided,) = rules.mistakes(schema, {"a": {}})
    assert undecided[1] == "a breaks a rule: b must be below 3 (it cannot be evaluated: no such member in mapping: 'b')"
    assert list(rules.mistakes(schema, {"a": {}}, is_valid=False)) == []


def test_rules_are_found_in_lists_and_maps() -> None:
    rule = {rules.VALIDATIONS: [{"rule": "self != 'x'"}]}
    schema: dict[str, Any] = {"properties": {"a": {"items": rule}, "b": {"additionalProperties": rule}}}
    assert [at for at, _ in rules.mistakes(schema, {"a": ["y", "x"], "b": {"k": "x"}})] == [("a", 1), ("b", "k")]


def test_defaults_are_filled_in_first() -> None:
    schema = {"properties": {"a": {"default": 5}}, rules.VALIDATIONS: [{"rule": "self.a == 5"}]}
    assert list(rules.mistakes(schema, {})) == []
    assert rules.defaulted({"items": schema}, [{}, {"a": 1}]) == [{"a": 5}, {"a": 1}]


def test_rules_about_an_update_are_not_evaluated() -> None:
    schema = {"properties": {"a": {rules.VALIDATIONS: [{"rule": "self == oldSelf"}]}}}
    assert list(rules.mistakes(schema, {"a": 1})) == []
    assert rules.transition_rules(schema) == 1
    counts = {}
    for group, kinds in schemas.GROUPS.items():
        for kind in kinds:
            known = schemas.of(f"{group}/{schemas.versions(group, kind)[0]}", kind)
            assert known is not None and known.structural is not None
            counts[kind] = rules.transition_rules(known.structural)
    assert counts["RayJob"] == 3 and counts["LocalQueue"] == 1 and counts["SparkApplication"] == 0


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        ({"onSuccess": {"policy": "DeleteCluster"}, "onFailure": {"policy": "DeleteNone"}}, True),
        ({"onSuccess": {"policy": "DeleteCluster"}}, False),
        ({"deletionRules": [{"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED"}}]}, True),
        ({"deletionRules": [{"policy": "DeleteCluster", "condition": {}}]}, False),
    ],
)
def test_the_deletion_rules_of_a_ray_job(options: dict[str, Any], holds: bool) -> None:
    schema = schemas.of("ray.io/v1", "RayJob")
    assert schema is not None and schema.structural is not None
    found = list(rules.mistakes(schema.structural, {"spec": {"deletionStrategy": options}}))
    assert bool(found) is not holds

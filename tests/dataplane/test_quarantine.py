"""The slow path on lines that would end the build rather than the record."""

import sys

import pytest

from dataplane import quarantine
from dataplane.quarantine import NotADocument


def nested(depth: int, key: str) -> bytes:
    return b'{"id": "a", "text": "b", "%s": %s%s}' % (key.encode(), b"[" * depth, b"]" * depth)


@pytest.mark.parametrize("key", ["metadata", "other"])
@pytest.mark.parametrize("depth", [300, 900, 1020, 1023, 100_000])
def test_deep_nesting_is_a_bad_record(depth: int, key: str) -> None:
    with pytest.raises(NotADocument) as found:
        quarantine.parse(nested(depth, key))
    assert (found.value.reason, found.value.detail) == ("malformed_json", "nested too deeply")


def test_the_limit_does_not_depend_on_the_stack_of_the_caller() -> None:
    def deeper(levels: int) -> quarantine.Document:
        return deeper(levels - 1) if levels else quarantine.parse(nested(250, "metadata"))

    assert deeper(0) == deeper(sys.getrecursionlimit() // 2)
    assert deeper(0).metadata == "[" * 250 + "]" * 250

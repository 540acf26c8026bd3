"""Pickles read as data: what Python's own would give is written down, what would run is refused."""

import collections
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triplane.errors import Corrupt, Refused
from triplane.lm import pickled
from triplane.lm.pickled import Made, Name

NONE: frozenset[str] = frozenset()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


@given(value=VALUES, protocol=st.sampled_from([3, 4, 5]))
def test_plain_values_are_those_of_python(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)  # bytes are a call in protocol 2
    assert pickled.read(data, NONE, "x") == value


class Run:
    """What a hostile file holds."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_would_run_is_refused_and_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps([1, Run()], protocol)
    with pytest.raises(Refused, match="which does not belong there"):
        pickled.read(data, frozenset(["collections OrderedDict"]), "bad.pkl")
    assert not Path("ran").exists()
    pickle.loads(data)  # noqa: S301 (the control: Python itself does run it)
    assert Path("ran").exists()


def test_allowed_names_are_written_down_and_not_called() -> None:
    data = pickle.dumps(collections.OrderedDict(), 4)
    found = pickled.read(data, frozenset(["collections OrderedDict"]), "x")
    assert isinstance(found, Made) and found.what == Name("collections OrderedDict") and found.arguments == ()


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04", b"\x80\x04.", b"nonsense", b"\x80\x04K\x01K\x02.", b"\x80\x04h\x05.", b"\x80\x04s."]
)
def test_what_is_no_pickle_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        pickled.read(data, NONE, "x")


@pytest.mark.parametrize("data", [b"\x80\x02(S'a'\no.", b"\x80\x02\x82\x01.", b"\x80\x05\x97."])
def test_other_opcodes_are_refused(data: bytes) -> None:
    """Old ways to build objects, the extension registry, buffers of others: none is needed."""
    with pytest.raises(Refused, match="opcode"):
        pickled.read(data, NONE, "x")

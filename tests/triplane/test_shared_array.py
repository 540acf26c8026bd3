"""One file for all processes of a host, made once, gone with the last of them."""

import gc
import json
import multiprocessing
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from triplane import orders, shared_array
from triplane.shared_array import shared


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shared_array, "LEAST_BYTES", 400)
    monkeypatch.setenv("TRIPLANE_LOG", str(tmp_path / "log"))
    return tmp_path / f"triplane-{os.getuid()}"


class Maker:
    """Counts how often it is asked."""

    def __init__(self, value: int = 0) -> None:
        self.value, self.calls = value, 0

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return np.arange(self.value, self.value + 1000, dtype=np.uint32)


def test_the_second_maps_what_the_first_made(folder: Path) -> None:
    first, second = Maker(), Maker()
    one, other = shared("a", 1000, first), shared("a", 1000, second)
    assert (first.calls, second.calls) == (1, 0)
    np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="read-only"):
        one[0] = 1
    assert [path.name for path in folder.glob("*.u32")] == ["a.u32"]
    del one
    gc.collect()
    assert other[999] == 999 and list(folder.glob("*.u32"))  # still in use
    del other
    gc.collect()
    assert list(folder.glob("*.u32")) == []


def child(barrier, folder: str, results) -> None:  # type: ignore[no-untyped-def]
    tempfile.tempdir, shared_array.LEAST_BYTES = folder, 400
    maker = Maker()
    barrier.wait()
    array = shared("a", 1000, maker)
    barrier.wait()  # all have it
    results.put((maker.calls, int(array.sum())))


def test_of_many_processes_one_makes_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.SimpleQueue()
    processes = [context.Process(target=child, args=(barrier, str(tmp_path), results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join(20)
    assert sorted(calls for calls, _ in found) == [0, 0, 0, 1]
    assert {total for _, total in found} == {999 * 500}


def test_a_file_that_was_left_is_removed_and_one_in_use_is_not(folder: Path) -> None:
    used = shared("used", 1000, Maker(5))
    (folder / "left.u32").write_bytes(bytes(4000))
    (folder / "next.u32").write_bytes(b"half")  # of another size: made again
    maker = Maker(7)
    following = shared("next", 1000, maker)
    assert maker.calls == 1 and following[0] == 7 and used[0] == 5
    assert sorted(path.name for path in folder.glob("*.u32")) == ["next.u32", "used.u32"]


def test_where_no_file_can_be_each_has_its_own(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    maker = Maker()
    array = shared("a", 1000, maker)
    assert maker.calls == 1 and not isinstance(array, np.memmap) and list(folder.iterdir()) == []
    (event,) = (json.loads(line) for line in (tmp_path / "log").read_text().splitlines())
    assert event["event"] == "not shared" and "is not this user's alone" in event["reason"]


def test_a_small_array_is_not_shared(folder: Path) -> None:
    assert not isinstance(shared("a", 99, lambda: np.zeros(99, np.uint32)), np.memmap)
    assert not folder.exists()


def test_an_epoch_of_a_replayed_order_is_shared(folder: Path) -> None:
    expected = orders.epoch_indices(500, 3)
    array = orders.shared_epoch(500, 3)
    assert isinstance(array, np.memmap) and [path.name for path in folder.glob("*.u32")] == ["order-500-3-1.u32"]
    np.testing.assert_array_equal(array, expected)

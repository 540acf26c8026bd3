"""Leases: one holder at a time, takeover after expiry, and a number that fences the one who was replaced."""

import threading
import time
from pathlib import Path

import pytest

from triplane import lease, storage
from triplane.errors import Corrupt, TriplaneError, UsageError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.getfixturevalue("s3_root")) if request.param == "s3" else str(tmp_path)


def test_a_lease_is_held_renewed_and_taken_over(root: str) -> None:
    clock = Clock()
    first = lease.acquire(root, "evaluate/step-1", "a", 10, clock)
    assert first is not None and (first.generation, first.owner) == (1, "a")
    assert lease.acquire(root, "evaluate/step-1", "b", 10, clock) is None

    clock.now += 8
    assert first.renew()
    clock.now += 8  # 16 s after the start, 8 s after the renewal
    assert lease.acquire(root, "evaluate/step-1", "b", 10, clock) is None

    clock.now += 3
    second = lease.acquire(root, "evaluate/step-1", "b", 10, clock)
    assert second is not None and second.generation == 2
    assert (first.is_current(), second.is_current()) == (False, True)


def test_the_one_who_was_replaced_cannot_renew_or_release(root: str) -> None:
    clock = Clock()
    first = lease.acquire(root, "x", "a", 10, clock)
    clock.now += 11
    second = lease.acquire(root, "x", "b", 10, clock)
    assert first is not None and second is not None
    assert first.renew() is False
    first.release()
    assert lease.acquire(root, "x", "c", 10, clock) is None  # b's lease stands
    assert second.renew() is True


def test_an_expired_lease_that_nobody_took_can_be_renewed(root: str) -> None:
    clock = Clock()
    first = lease.acquire(root, "x", "a", 10, clock)
    clock.now += 60
    assert first is not None and first.is_current() and first.renew()
    assert lease.acquire(root, "x", "b", 10, clock) is None


def test_a_released_lease_is_free_at_once(root: str) -> None:
    first = lease.acquire(root, "x", "a", 3600)
    assert first is not None
    first.release()
    assert (first.is_current(), first.renew()) == (False, False)
    second = lease.acquire(root, "x", "b", 3600)
    assert second is not None and second.generation == 2


@pytest.mark.parametrize("contenders", [6])
def test_of_many_one_acquires(root: str, contenders: int) -> None:
    """Also with equal owner names, of which each put-if-absent then writes other bytes."""
    got: list[lease.Lease | None] = [None] * contenders
    barrier = threading.Barrier(contenders)

    def contend(number: int) -> None:
        barrier.wait()
        got[number] = lease.acquire(root, "x", "same name", 60)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(contenders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one is not None for one in got) == 1


def test_a_number_used_again_after_pruning_is_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A contender that listed generation 1 and then slept, while 2 and 3 came and 2 was pruned, makes 2 anew: it must not hold."""
    root, clock = str(tmp_path), Clock()
    for _ in range(3):
        assert lease.acquire(root, "x", "a", 10, clock)
        clock.now += 11
    assert lease.prune(root, 1e12) == ["leases/x/000000000001.json", "leases/x/000000000002.json"]
    stale = iter([1])
    highest = lease._highest
    monkeypatch.setattr(lease, "_highest", lambda url: next(stale, None) or highest(url))
    monkeypatch.setattr(lease, "_state", lambda url, number: lease._State("a", "n", 0.0, 10.0))
    assert lease.acquire(root, "x", "slow", 10, clock) is None


def test_held_looks_below_a_name_too(root: str) -> None:
    clock = Clock()
    assert not lease.is_held(root, "tokens/code@1", clock)
    held = lease.acquire(root, "tokens/code@1/shard-0", "a", 10, clock)
    assert held is not None
    assert lease.is_held(root, "tokens/code@1", clock)
    assert not lease.is_held(root, "tokens/code@2", clock)
    clock.now += 11
    assert not lease.is_held(root, "tokens/code@1", clock)


def test_pruning_keeps_the_highest_and_the_young(root: str) -> None:
    clock = Clock()
    for _ in range(3):
        assert lease.acquire(root, "x", "a", 10, clock)
        clock.now += 11
    assert lease.prune(root, 0.0) == []
    assert len(lease.prune(root, 1e12, dry_run=True)) == 2
    assert len(lease.prune(root, 1e12)) == 2
    assert storage.list_names(storage.join(root, "leases/x")) == ["000000000003.json"]
    last = lease.acquire(root, "x", "a", 10, clock)
    assert last is not None and last.generation == 4


def test_a_heartbeat_keeps_the_lease(tmp_path: Path) -> None:
    held = lease.acquire(str(tmp_path), "x", "a", 0.6)
    assert held is not None
    with held.heartbeat() as lost:
        time.sleep(1.5)  # 2.5 ttl
        assert lease.acquire(str(tmp_path), "x", "b", 0.6) is None
        assert not lost.is_set()
    time.sleep(0.8)
    assert lease.acquire(str(tmp_path), "x", "b", 0.6) is not None  # it ended with the body


def test_a_heartbeat_tells_that_the_lease_was_lost(tmp_path: Path) -> None:
    held = lease.acquire(str(tmp_path), "x", "a", 0.3)
    assert held is not None
    storage.put(storage.join(held.url, "000000000002.json"), held.state.to_bytes())
    with held.heartbeat() as lost:
        assert lost.wait(5)


def test_out_of_reach_a_lease_lasts_until_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = lease.acquire(str(tmp_path), "x", "a", 0.6)
    assert held is not None

    def fail(*_: object) -> None:
        raise TriplaneError("no route")

    monkeypatch.setattr(storage, "list_names", fail)
    started = time.monotonic()
    with held.heartbeat() as lost:
        assert lost.wait(5)
    assert time.monotonic() - started >= 0.55


def test_wrong_names_and_broken_leases_are_refused(tmp_path: Path) -> None:
    for name, ttl in (("../x", 1.0), ("", 1.0), ("x", 0.0)):
        with pytest.raises(UsageError):
            lease.acquire(str(tmp_path), name, "a", ttl)
    storage.put(str(tmp_path / "leases" / "x" / "000000000001.json"), b"not json")
    with pytest.raises(Corrupt, match="is not a lease"):
        lease.acquire(str(tmp_path), "x", "a", 1)


def test_with_sightings_no_wall_clock_is_asked(root: str) -> None:
    """A holder's clock may be a day ahead or behind, and jump: a contender goes by what it saw and its own monotonic clock."""
    wall, mine = Clock(), Clock()
    held = lease.acquire(root, "x", "a", 10, wall)
    assert held is not None
    seen = lease.Sightings(mine)

    def contend() -> lease.Lease | None:
        return lease.acquire(root, "x", "b", 10, lambda: 1e12, seen)

    assert contend() is None  # expired for ages, says the wall clock; seen for the first time
    mine.now += 9
    wall.now -= 86_400
    assert held.renew()
    mine.now += 9  # 18 s after the first look, yet the renewal is news
    assert contend() is None
    wall.now += 1e9
    mine.now += 9.9
    assert contend() is None
    mine.now += 0.2
    taken = contend()
    assert taken is not None and taken.generation == 2
    assert not held.renew() and not held.is_current()


def test_without_sightings_a_clock_that_is_ahead_takes_over_at_once(root: str) -> None:
    """The control of the test above."""
    assert lease.acquire(root, "x", "a", 10, Clock())
    assert lease.acquire(root, "x", "b", 10, lambda: 1e12) is not None


def test_a_released_lease_is_free_at_first_sight(root: str) -> None:
    held = lease.acquire(root, "x", "a", 3600)
    assert held is not None
    seen = lease.Sightings()
    assert lease.acquire(root, "x", "b", 3600, sightings=seen) is None
    held.release()
    assert lease.acquire(root, "x", "b", 3600, sightings=seen) is not None


def test_an_interrupt_after_the_put_leaves_no_lease(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        put_if_absent = storage.put_if_absent

        def interrupted(url: str, data: bytes) -> bool:
            put_if_absent(url, data)
            raise KeyboardInterrupt

        patched.setattr(storage, "put_if_absent", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lease.acquire(root, "x", "a", 3600)
    held = lease.acquire(root, "x", "b", 3600)
    assert held is not None and held.generation == 2


def test_an_interrupt_releases_nothing_of_another(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another made the same number in the meantime."""
    state = lease._State("other", "n", 1e12, 3600.0)

    def lost(url: str, data: bytes) -> bool:
        storage.put(url, state.to_bytes())
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(storage, "put_if_absent", lost)
        with pytest.raises(KeyboardInterrupt):
            lease.acquire(root, "x", "a", 3600)
    assert lease.acquire(root, "x", "b", 3600) is None

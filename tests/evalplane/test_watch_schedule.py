"""Fault rows 22 and 28: schedules that fire twice, late or again, and clocks that jump or disagree, come to one evaluation a checkpoint and suite."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from evalplane import shards, watch, watch_shards
from evalplane.watch import Asked, Watcher
from evalplane.watch_shards import Claimant
from tests.evalplane import watched_run
from tests.evalplane.watched_run import RUN, checkpoint, model
from triplane import artifact, lease, storage

SHARDS = 4  # of 8 items each


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(shards.of_task, "__defaults__", (8,))
    url = str(request.getfixturevalue("s3_root")) if request.param == "s3" else str(tmp_path / "root")
    watched_run.begin(url)
    watched_run.suite(url)
    return url


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each shard of each model was answered, by anybody."""
    counts: Counter[tuple[str, str]] = Counter()
    plain = shards.Asker.answer

    def counted(self: shards.Asker, shard: shards.Shard) -> shards.Answers:
        counts[self.prepared.asked.root, shard.name] += 1
        return plain(self, shard)

    monkeypatch.setattr(shards.Asker, "answer", counted)
    return counts


def watcher(root: str, owner: str = "w", ttl_seconds: float = 30.0) -> Watcher:
    asked = Asked(root, RUN, watched_run.load_suite("demo", watched_run.overrides(root)))
    claimant = Claimant(ttl_seconds, f"{owner}-{threading.get_ident()}")
    return Watcher(asked, watch.here("cpu"), claimant, wait=lambda _: time.sleep(0.02))


def nightly(clock: list[datetime], utc_offset: Callable[[datetime], timedelta]) -> Iterator[datetime]:
    """A schedule as simple as they come: fires whenever the wall clock on the wall shows 02:30."""
    for now in clock:
        local = now + utc_offset(now)
        if (local.hour, local.minute) == (2, 30):
            yield now


def quarters(start: datetime, hours: int) -> list[datetime]:
    return [start + timedelta(minutes=15 * i) for i in range(4 * hours)]


def germany(now: datetime) -> timedelta:
    """Summer time ends on 25 October 2026 and begins on 29 March, at 01:00 UTC."""
    is_summer = datetime(2026, 3, 29, 1) <= now < datetime(2026, 10, 25, 1)
    return timedelta(hours=2 if is_summer else 1)


def steady(now: datetime) -> timedelta:
    return timedelta(0)


AUTUMN, SPRING, DAY = datetime(2026, 10, 24, 22), datetime(2026, 3, 28, 22), datetime(2026, 6, 1)
CLOCKS = {
    "clocks go back: 02:30 comes twice": (quarters(AUTUMN, 12), germany, 2),
    "clocks go forward: 02:30 never comes, the next day it does": (quarters(SPRING, 36), germany, 1),
    "the clock is set back an hour": (quarters(DAY, 3) + quarters(DAY + timedelta(hours=2), 3), steady, 2),
    "the clock is set forward a week": (quarters(DAY, 3) + quarters(DAY + timedelta(days=7), 3), steady, 2),
}


@pytest.mark.parametrize("name", CLOCKS)
@pytest.mark.parametrize("root", ["local"], indirect=True)
def test_two_schedulers_whatever_their_clock_does(
    name: str, root: str, answered: Counter[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, utc_offset, expected = CLOCKS[name]
    fires = list(nightly(clock, utc_offset))
    assert len(fires) == expected
    checkpoint(root, 100, model(4))
    looks: list[watch.Look] = []
    for now in fires:
        stamp = (now - datetime(1970, 1, 1)).total_seconds()
        monkeypatch.setattr(lease.acquire, "__defaults__", (lambda stamp=stamp: stamp, None))
        both = [threading.Thread(target=lambda: looks.append(watcher(root).look())) for _ in range(2)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
    assert len(looks) == 2 * expected
    assert [len(look.news) for look in looks[2:]] == [0] * (2 * expected - 2)  # late and again: nothing new
    assert len(artifact.references(root, "evaluation")) == 1
    assert sorted(answered.values()) == [1] * SHARDS
    (folder,) = storage.folders(storage.join(root, "reports/small@v1"))
    assert [one for one in storage.list_names(storage.join(root, "reports/small@v1", folder)) if "tokens" in one] == [
        "tokens-000000000000100-000001.json"
    ]


@contextmanager
def skewed(monkeypatch: pytest.MonkeyPatch, offsets: dict[str, float], with_sightings: bool) -> Iterator[None]:
    """Each watcher's wall clock is off by so many seconds; without sightings it would be asked."""
    plain = lease.acquire

    def acquire(root: str, name: str, owner: str, ttl: float, sightings: Any = None) -> lease.Lease | None:
        offset = offsets[owner.partition("-")[0]]
        return plain(root, name, owner, ttl, lambda: time.time() + offset, sightings if with_sightings else None)

    with monkeypatch.context() as patched:
        patched.setattr(watch_shards.lease, "acquire", acquire)
        yield


@pytest.mark.parametrize("with_sightings", [True, False])
def test_clocks_that_disagree_by_a_day_take_nothing_from_each_other(
    with_sightings: bool, root: str, answered: Counter[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One watcher is slow at its first shard; the other's clock says that this lease expired yesterday. Without sightings, the control,
    the shard is answered twice; committed it is once either way."""
    checkpoint(root, 100, model(4))
    holding, go_on = threading.Event(), threading.Event()
    plain = shards.Asker.answer

    def slow(self: shards.Asker, shard: shards.Shard) -> shards.Answers:
        if threading.current_thread().name == "slow" and not holding.is_set():
            holding.set()
            assert go_on.wait(60)
        return plain(self, shard)

    monkeypatch.setattr(shards.Asker, "answer", slow)
    looks: dict[str, watch.Look] = {}
    with skewed(monkeypatch, {"slow": -86_400.0, "ahead": 86_400.0}, with_sightings):
        threads = [
            threading.Thread(target=lambda name=name: looks.update({name: watcher(root, name).look()}), name=name)
            for name in ("slow", "ahead")
        ]
        threads[0].start()
        assert holding.wait(60)
        threads[1].start()
        wanted = SHARDS - 1 if with_sightings else SHARDS
        end = time.monotonic() + 60
        while len(records(root)) < wanted:
            assert time.monotonic() < end
            time.sleep(0.02)
        go_on.set()
        for thread in threads:
            thread.join()
    assert sum(answered.values()) == (SHARDS if with_sightings else SHARDS + 1)
    assert len(records(root)) == SHARDS and len(artifact.references(root, "evaluation")) == 1
    first, second = (looks[name].news[0].evaluation for name in ("slow", "ahead"))
    assert first == second and first["counters"]["items"] == 32


def records(root: str) -> list[str]:
    found = storage.list_names(storage.join(root, "evaluation"))
    return [name for name in found if "/records/" in name and name.removesuffix(".json")[-5:].isdecimal()]


@pytest.mark.parametrize("root", ["local"], indirect=True)
def test_the_order_is_that_of_tokens_not_of_files(root: str) -> None:
    """A checkpoint written by a machine whose clock is years ahead is no newer for it, nor is one that came late."""
    for tokens, steps, year in ((300, 24, 2020), (200, 12, 2040)):
        url = checkpoint(root, tokens, model(steps))
        stamp = datetime(year, 1, 1).timestamp()
        for path in Path(url).rglob("*"):
            os.utime(path, (stamp, stamp))
    first = watcher(root).look()
    assert [(one.tokens, one.previous, one.regressions) for one in first.news] == [(200, None, ()), (300, 200, ())]
    checkpoint(root, 100, model(4))  # as a restore from a backup would
    (late,) = watcher(root).look().news
    assert (late.tokens, late.previous, late.lag_tokens) == (100, None, 0)

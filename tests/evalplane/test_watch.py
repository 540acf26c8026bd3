"""Watching a run: each committed checkpoint is evaluated once, whoever watches and however often, and what became worse is told."""

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evalplane import run, shards, watch, watch_shards
from evalplane.watch import Asked, News, Watcher
from evalplane.watch_shards import Claimant
from tests.evalplane import watched_run
from tests.evalplane.watched_run import RUN, checkpoint, checkpoint_url, model
from triplane import artifact, storage


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = str(request.getfixturevalue("s3_root")) if request.param == "s3" else str(tmp_path / "root")
    watched_run.begin(url)
    return url


@pytest.fixture
def local(tmp_path: Path) -> str:
    url = str(tmp_path / "root")
    watched_run.begin(url)
    return url


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.of_task, "__defaults__", (4,))


def watcher(root: str, told: list[News] | None = None, **changes: Any) -> Watcher:
    claimant = Claimant(changes.pop("ttl_seconds", 5.0))
    asked = Asked(root, RUN, watched_run.suite(root), **changes)
    return Watcher(
        asked, watch.here("cpu"), claimant, tell=[].append if told is None else told.append, wait=lambda _: None
    )


def objects(root: str) -> list[str]:
    return [name for name in storage.list_names(root) if not name.startswith("leases/")]


def test_each_new_checkpoint_is_evaluated_once(root: str, tmp_path: Path) -> None:
    told: list[News] = []
    checkpoint(root, 200, model(4))
    checkpoint(root, 1000, model(12))  # names sort as tokens do
    first = watcher(root, told).look()
    assert [(one.tokens, one.previous) for one in first.news] == [(200, None), (1000, 200)]
    assert list(first.news) == told and (first.finished, first.lag_tokens) == (False, 0)
    assert len(artifact.references(root, "evaluation")) == 2

    before = objects(root)
    again = watcher(root, told)
    assert again.look().news == () and objects(root) == before  # a schedule that fires again
    checkpoint(root, 3000, model(24))
    assert [(one.tokens, one.previous) for one in again.look().news] == [(3000, 1000)]
    assert len(artifact.references(root, "evaluation")) == 3

    tokenizer = storage.join(root, "tokenizer/small@t1")
    for news in told:
        url, alone_root = checkpoint_url(root, news.tokens), str(tmp_path / "alone")
        alone = run.evaluate(url, watched_run.suite(root), alone_root, tokenizer=tokenizer)
        assert news.evaluation["scores"] == alone.scores
        assert news.evaluation["reference"] == alone.reference
        assert artifact.verify(storage.join(root, news.evaluation["reference"])) == []
        assert news.regressions == ()
    bits = [one.evaluation["scores"]["held_out_bits_per_byte"]["value"] for one in told]
    assert bits == sorted(bits, reverse=True)


def test_the_report_has_every_checkpoint_in_every_form(root: str) -> None:
    for tokens, steps in ((100, 4), (200, 12)):
        checkpoint(root, tokens, model(steps))
    (_, last) = watcher(root).look().news
    folder, _, name = last.report.rpartition("/")
    assert name == "report.html" and folder.startswith(storage.join(root, "reports/small@v1/demo@"))
    page = storage.read(last.report).decode()
    assert page.startswith("<!doctype html>") and "bits per byte over tokens" in page and "<script" not in page
    markdown = storage.read(storage.join(folder, "report.md")).decode()
    assert "small-tokens-000000000000100 | small-tokens-000000000000200" in markdown
    whole = json.loads(storage.read(storage.join(folder, "report.json")))
    assert list(whole["evaluations"]) == ["100", "200"] and whole["regressions"] == {}
    # The run is not finished, so no manifest says what it started from; its marker does.
    spent = whole["evaluations"]["200"]["training"]
    assert (spent["run"], spent["run_tokens"], spent["tokens"]) == ("small@v1", 200, 200)
    assert storage.list_names(folder)[-2:] == [
        "tokens-000000000000100-000001.json",
        "tokens-000000000000200-000002.json",
    ]


def test_two_watchers_share_the_shards(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answered: Counter[str] = Counter()
    met = threading.Barrier(2)
    plain = shards.Asker.answer

    def counted(self: shards.Asker, shard: shards.Shard) -> shards.Answers:
        if not answered:
            met.wait(30)  # neither begins before both hold a lease
        answered[shard.name] += 1
        return plain(self, shard)

    monkeypatch.setattr(shards.Asker, "answer", counted)
    checkpoint(root, 100, model(4))
    looks: list[watch.Look] = []
    both = [threading.Thread(target=lambda: looks.append(watcher(root).look())) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(answered.values()) == [1] * 8  # 2 of arithmetic, 6 of documents
    first, second = (look.news[0] for look in looks)
    assert first.evaluation == second.evaluation
    assert len(artifact.references(root, "evaluation")) == 1


def test_storage_is_asked_a_bounded_number_of_times_a_shard(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured: what a watcher costs on a store that charges by request, for few shards and for many."""
    calls: Counter[str] = Counter()
    for name in ("entries", "read", "read_range", "put", "put_file", "put_if_absent", "modified", "exists", "folders"):
        plain = getattr(storage, name)
        monkeypatch.setattr(storage, name, lambda *a, _n=name, _p=plain: (calls.update([_n]), _p(*a))[1])
    monkeypatch.setattr(storage, "list_names", lambda url: [entry.name for entry in storage.entries(url)])
    per_shard = {}
    for size, count in ((4, 8), (1, 32)):  # 8 and 32 shards
        monkeypatch.setattr(shards.of_task, "__defaults__", (size,))
        checkpoint(local, 1000 * count, model(4))
        calls.clear()
        watcher(local).look()
        per_shard[count] = sum(calls.values()) / count
    checkpoint(local, 64_000, model(4))
    monkeypatch.setattr(watch_shards, "MANY_SHARDS", 8)
    calls.clear()
    watcher(local).look()
    grouped = sum(calls.values()) / 32
    print(per_shard, grouped)
    assert grouped < per_shard[32] <= 22
    calls.clear()
    watcher(local).look()
    assert sum(calls.values()) <= 25  # nothing new in three checkpoints

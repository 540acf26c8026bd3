"""Watching a run: each committed checkpoint is evaluated once, whoever watches and however often, and what became worse is told."""

import copy
import dataclasses
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from evalplane import cluster, data, models, run, shards, watch, watch_report, watch_run, watch_shards
from evalplane.watch import Asked, News, Watcher
from evalplane.watch_shards import Claimant, Damaged
from tests.evalplane import watched_run
from tests.evalplane.watched_run import RUN, checkpoint, checkpoint_url, model
from triplane import artifact, lease, metrics, storage
from triplane.errors import NotFound, UsageError
from triplane.lm.model import Olmo2
from triplane.progress import Progress


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
    monkeypatch.setattr(shards.of_task, "__defaults__", (8,))


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


def test_the_report_has_every_checkpoint_in_every_form(local: str) -> None:
    for tokens, steps in ((100, 4), (200, 12)):
        checkpoint(local, tokens, model(steps))
    (_, last) = watcher(local).look().news
    folder, _, name = last.report.rpartition("/")
    assert name == "report.html" and folder.startswith(storage.join(local, "reports/small@v1/demo@"))
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
    assert sorted(answered.values()) == [1] * 4  # 1 of arithmetic, 3 of documents
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
    for size, count in ((8, 4), (2, 16)):  # shards
        monkeypatch.setattr(shards.of_task, "__defaults__", (size,))
        checkpoint(local, 1000 * count, model(4))
        calls.clear()
        watcher(local).look()
        per_shard[count] = sum(calls.values()) / count
    checkpoint(local, 64_000, model(4))
    monkeypatch.setattr(watch_shards, "MANY_SHARDS", 4)
    calls.clear()
    watcher(local).look()
    grouped = sum(calls.values()) / 16
    print(per_shard, grouped)
    assert grouped < per_shard[16] <= 24
    calls.clear()
    watcher(local).look()
    assert sum(calls.values()) <= 25  # nothing new in three checkpoints


def test_a_watcher_that_died_before_it_told_is_told_for(local: str) -> None:
    """Evaluated by anybody, in no report yet: the next look publishes it, answers nothing again, and compares it."""
    checkpoint(local, 100, model(12))
    watcher(local).look()
    url = checkpoint(local, 200, model(4))
    made = run.evaluate(url, watched_run.suite(local), local)
    before = objects(f"{local}/evaluation")
    (news,) = watcher(local).look().news
    assert news.evaluation["reference"] == made.reference and objects(f"{local}/evaluation") == before
    assert [one.task for one in news.regressions] == ["held_out_bits_per_byte"]


def test_what_training_will_remove_or_has_not_committed_is_no_checkpoint(local: str) -> None:
    assert watcher(local).look() == watch.Look((), False, 0, 0, {})
    checkpoint(local, 100, model(4))
    checkpoint(local, 150, model(12), permanent=False)
    storage.put(storage.join(checkpoint_url(local, 200), "model-00000-aaaaaaaaaaaa.safetensors"), b"half")
    look = watcher(local).look()
    assert ([one.tokens for one in look.news], look.checkpoints) == ([100], 1)


def test_following_ends_with_the_run_and_tells_the_lag(
    local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIPLANE_LOG", str(tmp_path / "log.jsonl"))
    gauges: list[tuple[Any, ...]] = []
    monkeypatch.setattr(metrics, "gauge", lambda name, value, **labels: gauges.append((name, value, labels)))
    waited: list[float] = []

    def train_on(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 1:
            checkpoint(local, 100, model(4))
        if len(waited) == 3:  # two at once, and the end
            checkpoint(local, 250, model(12))
            checkpoint(local, 400, model(24))
            watched_run.finish(local, 400)

    watching = watcher(local)
    watching.wait = train_on
    looks = watching.follow(60.0)
    assert [[one.tokens for one in look.news] for look in looks] == [[100], [250, 400]]
    assert (waited, looks[-1].finished) == ([60.0] * 3, True)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    lags = [one["lag_tokens"] for one in lines if one["event"] == "evaluation lag"]
    assert lags == [100, 0, 0, 300, 150, 0]
    assert gauges == [("evaluation_lag_tokens", lag, {"run": RUN, "suite": "demo"}) for lag in lags]
    assert {(one["run"], one["suite"]) for one in lines if one["event"] == "evaluation lag"} == {(RUN, "demo")}


def test_what_is_leased_is_no_garbage(local: str) -> None:
    """`triplane gc` leaves a folder alone while somebody works in it."""
    made = run.plan(checkpoint(local, 100, model(4)), watched_run.suite(local), local)
    with Claimant().claimed(made, "00000") as held:
        assert held is not None and lease.is_held(local, made.draft.reference)
    assert not lease.is_held(local, made.draft.reference)


def test_the_lag_is_in_tokens() -> None:
    assert watch_run.lag_tokens({100, 400, 250}, {100}) == 300
    assert watch_run.lag_tokens({100}, ()) == 100 and watch_run.lag_tokens((), ()) == 0


def test_progress_counts_items_whoever_answered_them(local: str) -> None:
    checkpoint(local, 100, model(4))
    whole = watcher(local)
    made = run.plan(checkpoint_url(local, 100), whole.asked.suite, local)
    for shard in watch_shards.all_shards(made)[:2]:
        shards.commit(
            made.draft, shard, shards.Asker(made.prepared, run.load_backend(made.source, "cpu")).answer(shard)
        )
    with Progress() as whole.progress:
        whole.look()
    (bar,) = whole.progress.ended
    assert (bar.total, bar.done) == (32, 32)


def test_runs_are_found_by_name_and_a_wrong_one_says_what_is_near(local: str) -> None:
    for reference in ("small", "run/small", RUN):
        assert watch_run.find(local, reference) == RUN
    for wrong, near in (("smal", "run/small"), ("run/small@v2", "run/small@v1")):
        with pytest.raises(NotFound, match=f"did you mean {near}"):
            watch_run.find(local, wrong)
    with pytest.raises(NotFound, match="was begun at"):
        watch_run.find(local, "elsewhere")
    with pytest.raises(UsageError, match="is no run"):
        watch_run.find(local, "mix/small")
    watched_run.begin(local, "run/small@v2")
    with pytest.raises(UsageError, match=r"more than once: name one of run/small@v1, run/small@v2"):
        watch_run.find(local, "small")


def damage_manifest(root: str, url: str) -> None:
    storage.put(storage.join(url, "manifest.json"), b"{")


def damage_weights(root: str, url: str) -> None:
    (name,) = (name for name in storage.list_names(url) if name.endswith(".safetensors"))
    data = bytearray(storage.read(storage.join(url, name)))
    data[-5] ^= 1
    storage.put(storage.join(url, name), bytes(data))


def lose_weights(root: str, url: str) -> None:
    for name in storage.list_names(url):
        if name.endswith(".safetensors"):
            storage.delete(storage.join(url, name))


@pytest.mark.parametrize("damage", [damage_manifest, damage_weights, lose_weights])
def test_a_damaged_checkpoint_is_named_and_skipped_only_if_told(local: str, damage: Any) -> None:
    checkpoint(local, 100, model(4))
    damage(local, checkpoint(local, 200, model(12)))
    checkpoint(local, 300, model(24))
    told: list[News] = []
    with pytest.raises(
        Damaged, match=r"1 checkpoints of run/small@v1 are damaged.*tokens-000000000000200.*--skip-corrupt"
    ):
        watcher(local, told).look()
    assert [(one.tokens, one.previous) for one in told] == [(100, None), (300, 100)]  # the others are not held up
    with pytest.raises(Damaged):
        watcher(local, told).look()  # again: the schedule fails until somebody looks
    look = watcher(local, skip_corrupt=True).look()
    assert list(look.skipped) == [200] and look.news == () and "000200" in look.skipped[200]
    assert len(artifact.references(local, "evaluation")) == 2


def test_a_checkpoint_that_diverged_does_not_hold_up_the_others(local: str) -> None:
    checkpoint(local, 100, model(4))
    diverged = Olmo2(watched_run.config())
    diverged.load_state_dict({name: torch.full_like(one, torch.nan) for name, one in model(4).state_dict().items()})
    checkpoint(local, 200, diverged.eval())
    checkpoint(local, 300, model(24))
    told: list[News] = []
    with pytest.raises(Damaged, match=r"tokens-000000000000200 cannot be evaluated .*not (finite|a number)"):
        watcher(local, told).look()
    assert [(one.tokens, one.previous) for one in told] == [(100, None), (300, 100)]


def test_a_damaged_checkpoint_that_was_removed_is_forgotten(local: str) -> None:
    checkpoint(local, 100, model(4))
    url = checkpoint(local, 200, model(12))
    damage_manifest(local, url)
    watching = watcher(local)
    with pytest.raises(Damaged):
        watching.look()
    storage.delete(storage.join(url, "manifest.json"))
    assert watching.look() == watch.Look((), False, 1, 0, {})


def test_how_a_format_is_asked_is_found_once_a_model(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once a lease: it takes the prompts of all items."""
    found: Counter[str] = Counter()
    plain = shards.usable_shots
    monkeypatch.setattr(shards, "usable_shots", lambda format, *a: (found.update([format.kind]), plain(format, *a))[1])
    for tokens in (100, 200):
        checkpoint(local, tokens, model(4))
    assert len(watcher(local).look().news) == 2
    assert found == {"generate": 2, "bits_per_byte": 2}


def test_an_actor_reads_the_items_once(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One plan a model arrives, again for every few leases; the items are the same until other ones are asked for."""
    made = run.plan(checkpoint(local, 100, model(4)), watched_run.suite(local), local)
    other = run.of_model(made, models.locate(checkpoint(local, 200, model(12)), local))
    fewer = run.plan(made.source.url, watched_run.suite(local), local, limit=3)
    read: list[str] = []
    plain = data.prepare
    monkeypatch.setattr(data, "prepare", lambda task, *a: (read.append(task.name), plain(task, *a))[1])
    actor = cluster.Worker(torch.get_num_threads())
    for one in (made, made, other, fewer):
        arrived = copy.deepcopy(dataclasses.replace(one))
        actor.hold(arrived, "cpu")
        actor.answer(arrived, shards.Shard("arithmetic", "generate", 0, 0, 2), None)
        assert "arithmetic-generate-00000" in one.draft.records
    assert read == ["arithmetic", "arithmetic"]


def test_a_first_checkpoint_that_is_damaged_does_not_hide_the_others(local: str) -> None:
    damage_manifest(local, checkpoint(local, 100, model(4)))
    checkpoint(local, 200, model(12))
    look = watcher(local, skip_corrupt=True).look()
    assert [(one.tokens, one.previous, one.regressions) for one in look.news] == [(200, None, ())]


def test_data_that_is_missing_is_no_fault_of_a_checkpoint(local: str) -> None:
    checkpoint(local, 100, model(4))
    watching = watcher(local, skip_corrupt=True)
    storage.delete(storage.join(local, "data/items.jsonl"))
    with pytest.raises(NotFound, match=r"evaluation data .*items.jsonl is missing; looked for it at"):
        watching.look()
    assert artifact.references(local, "evaluation") == [] and storage.list_names(f"{local}/leases") == []


def test_a_failure_or_an_interrupt_lets_go_of_the_leases(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(local, 100, model(4))
    plain, calls = shards.Asker.answer, [0]

    def interrupted(self: shards.Asker, shard: shards.Shard) -> shards.Answers:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return plain(self, shard)

    monkeypatch.setattr(shards.Asker, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        watcher(local, ttl_seconds=3600).look()
    (news,) = watcher(local, ttl_seconds=3600).look().news  # at once, without waiting for an hour
    assert calls[0] == 5 and news.tokens == 100  # one stands, one was cut, three are answered now


def test_one_evaluation_a_checkpoint_suite_and_version(local: str) -> None:
    """Other items are another version: the run is evaluated on it from its first checkpoint on, beside the old report."""
    checkpoint(local, 100, model(4))
    (first,) = watcher(local).look().news
    storage.put(storage.join(local, "more.jsonl"), storage.read(storage.join(local, "data/items.jsonl")) * 2)
    (limited,) = watcher(local, limit=4).look().news
    assert first.report.rpartition("/")[0] != limited.report.rpartition("/")[0]
    assert len(artifact.references(local, "evaluation")) == 2
    assert (
        watch_report.newest(first.report.rpartition("/")[0]).evaluations[100]["reference"]
        == first.evaluation["reference"]
    )

"""The mix lock and the data order: what is taken, what a batch holds at a position, and what is refused."""

import dataclasses
import json
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triplane import artifact, mixture
from triplane.errors import Corrupt, Refused, UsageError
from triplane.mixture import MixLock, MixShard, Order

LENGTH = 8
TOKENIZER = "ab" * 32


def shard(source: str, number: int, instances: int, tail: int = 3) -> MixShard:
    name = f"tokens/{source}@1/part-{number:05d}-ff"
    return MixShard(
        source=source,
        tokens=f"{name}.npy",
        checksums=f"{name}.xxh3",
        mask=None,
        mask_checksums=None,
        provenance=f"{name}.csv.gz",
        num_tokens=instances * LENGTH + tail,
        num_instances=instances,
        sha256="0" * 64,
    )


SHARDS = [shard("web", 0, 50), shard("web", 1, 0), shard("web", 2, 37), shard("math", 0, 9), shard("math", 1, 4)]
SHARES = {"web": 0.7, "math": 0.3}
PINNED_BATCH = [30, 27, 53, 8, 25, 32, 3, 35]
PINNED_HASH = "5daef74b8f6a96fdbd65d35def0a31b3"


def planned(
    instances: int = 60, shares: dict[str, float] = SHARES, shards: list[MixShard] = SHARDS, **more: object
) -> MixLock:
    options = {"seed": 5, "tokenizer_sha256": TOKENIZER, "vocab_size": 100, "eos_id": 7, **more}
    return mixture.plan("m", LENGTH, instances * LENGTH, shares, shards, **options)


def taken(lock: MixLock, source: str) -> list[tuple[int, int]]:
    """(shard, instance) of a source's instances in the source's own order."""
    order = Order(lock, seed=0)
    numbers = np.arange(lock.num_instances)
    here = numbers[order.source_index(numbers) == [s.name for s in lock.sources].index(source)]
    return list(zip(*(column.tolist() for column in order.locate(here)), strict=True))


def test_plan_takes_the_share_of_each_source() -> None:
    lock = planned(60)
    assert [(s.name, s.num_available, s.num_taken) for s in lock.sources] == [("math", 13, 18), ("web", 87, 42)]
    assert lock.num_instances == 60 and lock.num_tokens == 480
    assert mixture.summary(lock)["math"] == {
        "available_tokens": 104,
        "planned_tokens": pytest.approx(144),
        "realised_tokens": 144,
        "repetitions": pytest.approx(18 / 13),
    }


@given(st.integers(1, 40), st.lists(st.integers(1, 1000), min_size=1, max_size=7))
def test_shares_are_met_within_one_instance(instances: int, weights: list[int]) -> None:
    shares = {f"s{i}": weight / sum(weights) for i, weight in enumerate(weights)}
    shards = [shard(source, 0, 40) for source in shares]
    lock = planned(instances, shares, shards)
    assert lock.num_instances == instances
    assert all(abs(s.num_taken - s.share * instances) < 1 for s in lock.sources)


def test_equal_remainders_go_to_the_first_name() -> None:
    lock = planned(5, {"b": 0.5, "a": 0.5}, [shard("a", 0, 9), shard("b", 0, 9)])
    assert [(s.name, s.num_taken) for s in lock.sources] == [("a", 3), ("b", 2)]


def test_a_smaller_mix_is_a_prefix_of_a_larger_one() -> None:
    small, large = planned(20), planned(40)
    for source in SHARES:
        few, many = taken(small, source), taken(large, source)
        assert len(few) < len(many) and many[: len(few)] == few
    reordered = taken(planned(40, seed=6), "web")
    assert reordered != taken(large, "web")[: len(reordered)]


def test_repetition_is_whole_copies_and_a_remainder() -> None:
    math = taken(planned(100), "math")  # 30 of 13
    everything = {(0, i) for i in range(9)} | {(1, i) for i in range(4)}
    assert len(math) == 30
    assert set(math[:13]) == everything and math[13:26] == math[:13] and math[26:] == math[:4]


def test_an_epoch_holds_every_taken_instance_once() -> None:
    lock = planned(60)
    order = Order(lock, seed=3)
    first, second = order.instances(0, 60), order.instances(60, 60)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(60))
    assert first.tolist() != second.tolist() and first.tolist() != list(range(60))
    assert Order(lock, seed=4).instances(0, 60).tolist() != first.tolist()
    assert np.array_equal(order.instances(50, 20), np.concatenate([first[50:], second[:10]]))


@given(st.integers(0, 300), st.integers(0, 150))
def test_positions_do_not_depend_on_how_they_are_asked(start: int, count: int) -> None:
    order = Order(planned(60), seed=3)
    whole = order.instances(0, 450)
    assert np.array_equal(Order(planned(60), seed=3).instances(start, count), whole[start : start + count])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_global_batch_is_independent_of_world_size(world_size: int) -> None:
    lock = planned(60)
    order = Order(lock, seed=1)
    ranks = [order.instances(3 * 16 + rank * 16 // world_size, 16 // world_size) for rank in range(world_size)]
    batch = order.batch(3, 16)
    assert np.array_equal(np.concatenate(ranks), batch)
    assert mixture.order_hash(np.concatenate(ranks)) == mixture.order_hash(batch)
    assert mixture.order_hash(batch[::-1]) != mixture.order_hash(batch)


def test_the_order_is_pinned() -> None:
    """Changing these numbers changes what a recorded run was trained on."""
    lock = planned(60)
    order = Order(lock, seed=1)
    batch = order.batch(2, 8)
    assert batch.tolist() == PINNED_BATCH
    assert mixture.order_hash(batch) == PINNED_HASH


def test_located_instances_lie_in_their_shards() -> None:
    lock = planned(100)
    order = Order(lock, seed=1)
    numbers = order.instances(0, 100)
    at, instance = order.locate(numbers)
    counts = np.array([s.num_instances for s in lock.shards])
    assert (instance >= 0).all() and (instance < counts[at]).all()
    sources = [lock.sources[i].name for i in order.source_index(numbers)]
    assert sources == [lock.shards[i].source for i in at.tolist()]


def test_the_lock_round_trips_canonically() -> None:
    lock = planned(60)
    assert MixLock.from_bytes(lock.to_bytes()) == lock
    assert MixLock.from_bytes(lock.to_bytes()).to_bytes() == lock.to_bytes()
    assert planned(60, dict(reversed(SHARES.items()))).to_bytes() == lock.to_bytes()


def changed(lock: MixLock, **values: object) -> bytes:
    return json.dumps(json.loads(lock.to_bytes()) | values).encode()


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"schema_version": 2}, Refused, "schema_version 2"),
        ({"schema_version": None}, Refused, "schema_version None"),
        ({"surprise": 1}, Corrupt, "surprise"),
        ({"sequence_length": "8"}, Corrupt, "sequence_length"),
        ({"sequence_length": 9}, Corrupt, "cannot hold"),
        ({"shards": []}, Corrupt, "plan the mix again"),
    ],
)
def test_a_lock_that_no_plan_gives_is_not_read(values: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        MixLock.from_bytes(changed(planned(), **values))


def test_a_wrong_count_in_the_lock_is_corrupt() -> None:
    sources = [dataclasses.asdict(source) for source in planned().sources]
    sources[0]["num_available"] += 1
    with pytest.raises(Corrupt, match="takes 18 and counts 14, its shards 13"):
        MixLock.from_bytes(changed(planned(), sources=sources))
    with pytest.raises(Corrupt, match="not a JSON object"):
        MixLock.from_bytes(planned().to_bytes()[:-5])


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"web": 0.7, "math": 0.3001}, "sum to 1.0001"),
        ({"web": 0.7, "code": 0.3}, "no shard"),
        ({"web": 1.3, "math": -0.3}, "math -0.3"),
        ({"web": float("nan")}, "web nan"),
        ({}, "sum to 0"),
    ],
)
def test_wrong_shares_are_refused(shares: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        planned(60, shares)


def test_wrong_shards_are_refused() -> None:
    with pytest.raises(UsageError, match="no instance of 8 tokens"):
        planned(shards=[shard("web", 0, 50), shard("math", 0, 0)])
    with pytest.raises(UsageError, match="not of 8 tokens"):
        planned(shards=[dataclasses.replace(SHARDS[0], num_instances=49), *SHARDS[3:]])
    with pytest.raises(UsageError, match="listed twice"):
        planned(shards=[*SHARDS, SHARDS[0]])


def test_repetition_has_a_limit() -> None:
    assert planned(150, max_repetitions=4).sources[0].num_taken == 45
    with pytest.raises(UsageError, match=r"repeat math 3\.46 times, at most 3 allowed"):
        planned(150, max_repetitions=3)


def test_a_lock_for_another_training_is_refused() -> None:
    mixture.require(planned(), LENGTH, TOKENIZER)
    with pytest.raises(Refused, match="not 4096"):
        mixture.require(planned(), sequence_length=4096)
    with pytest.raises(Refused, match="tokenized by"):
        mixture.require(planned(), tokenizer_sha256="cd" * 32)
    for number in (60, -1):
        with pytest.raises(UsageError, match=f"number {number} is none"):
            Order(planned(60), 0).locate(np.array([3, number]))


def test_a_committed_lock_loads_and_a_changed_one_does_not(tmp_path) -> None:
    lock = planned(60)
    draft = artifact.begin(str(tmp_path), "mix", "m", inputs={}, recipe={"x": 1}, stage_versions={"mix": 1})
    entry = draft.put_bytes(lock.to_bytes(), "lock", ".json")
    draft.record("lock", [entry], {"instances": 60})
    draft.commit({"lock": entry.name})
    assert mixture.load(draft.url) == lock
    path = tmp_path / draft.reference / entry.name
    assert mixture.load(str(path)) == lock
    path.write_bytes(changed(lock, eos_id=8))
    with pytest.raises(Corrupt, match="sha256"):
        mixture.load(draft.url)


def test_four_trillion_tokens_open_fast_and_small() -> None:
    shards = [
        dataclasses.replace(shard(f"s{i % 7}", i, 1), num_tokens=10**9 + i, num_instances=(10**9 + i) // 4096)
        for i in range(4000)
    ]
    shares = {f"s{i}": 1 / 7 for i in range(7)}
    lock = mixture.plan("big", 4096, 4 * 10**12, shares, shards, 0, TOKENIZER, 100, 7)
    data = lock.to_bytes()
    tracemalloc.start()
    begun = time.perf_counter()
    opened = MixLock.from_bytes(data)
    order = Order(opened, seed=0)
    at, _ = order.locate(order.batch(400_000, 2048))
    seconds = time.perf_counter() - begun
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened.num_instances == 4 * 10**12 // 4096
    assert len(np.unique(at)) > 1000
    assert seconds < 5 and peak < 200e6

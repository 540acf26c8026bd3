"""Data orders: AI2's exactly (their own loader, and OLMo's algorithm by hand), pure functions of position, defined at the end of an epoch."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triplane import orders
from triplane.errors import UsageError
from triplane.mixture import MixLock, MixShard, MixSource

LENGTH = 16
SIZES = {"web": [1000, 15, 333], "math": [160, 161], "code": [47]}


def lock_of(sizes: dict[str, list[int]] = SIZES, taken_more: int = 0) -> MixLock:
    """Each source's files of these many tokens, all taken once."""
    shards = [
        MixShard(source, f"{source}/{i}.npy", None, None, None, None, n, n // LENGTH, "")
        for source, counts in sizes.items()
        for i, n in enumerate(counts)
    ]
    held = {source: sum(n // LENGTH for n in counts) for source, counts in sizes.items()}
    sources = tuple(MixSource(source, 1, n, n + taken_more, 1.0) for source, n in held.items())
    return MixLock("m", LENGTH, "ab" * 32, 100, 7, sources, tuple(shards))


def olmo_positions(num_instances: int, seed: int, batch: int, world_size: int, epoch: int) -> list[list[int]]:
    """The global batches of OLMo's `IterableDataset` with drop_last: per rank as it slices them, put together again."""
    indices = np.arange(num_instances, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed=seed + epoch)).shuffle(indices)
    total = num_instances // world_size * world_size
    ranks = [indices[:total][rank::world_size] for rank in range(world_size)]
    each = batch // world_size
    steps = [[r[k * each : (k + 1) * each] for r in ranks] for k in range(len(ranks[0]) // each)]
    return [np.stack(parts, axis=1).reshape(-1).tolist() for parts in steps]


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_olmo_is_their_order_for_any_world_size(world_size: int) -> None:
    lock = lock_of()
    order = orders.make("olmo", lock, 6198)
    assert lock.num_instances == 62 + 0 + 20 + 10 + 10 + 2
    expected = [b for epoch in range(3) for b in olmo_positions(104, 6198, 8, world_size, epoch)]
    assert len(expected) == 3 * 13
    assert [order.batch(position, 8).tolist() for position in range(len(expected))] == expected
    assert orders.make("olmo", lock, 6199).batch(0, 8).tolist() == expected[13]  # epoch 1 is the next seed's epoch 0


@pytest.mark.parametrize(
    ("sizes", "batch", "digest"), [(SIZES, 8, "ec8ede402e8fe03f"), ({"web": [1003 * LENGTH]}, 24, "7dc593008f938ac0")]
)
def test_olmo_is_what_the_released_trainer_gave(sizes: dict[str, list[int]], batch: int, digest: str) -> None:
    """Golden: epochs 0 and 1 of `IterableDataset` of ai2-olmo 0.6.0 under torch's DataLoader with drop_last, seed 6198; the same for 1, 2 and 8
    ranks with 0 and 2 workers."""
    lock = lock_of(sizes)
    order = orders.make("olmo", lock, 6198)
    numbers = np.concatenate([order.batch(position, batch) for position in range(2 * (lock.num_instances // batch))])
    assert hashlib.sha256(numbers.astype("<u4").tobytes()).hexdigest().startswith(digest)


def test_the_index_array_is_pinned() -> None:
    """numpy's PCG64 and its shuffle are what the released runs used: these numbers must never change."""
    assert orders.epoch_indices(12, 6198).tolist() == PINNED
    assert orders.epoch_indices(12, 34521 + 1, 2).tolist() == PINNED_CHUNKS
    assert orders.epoch_indices(12, 6198).dtype == np.uint32


PINNED = [9, 4, 3, 2, 6, 0, 10, 11, 7, 8, 1, 5]  # numpy, by hand
PINNED_CHUNKS = [8, 9, 0, 1, 10, 11, 2, 3, 4, 5, 6, 7]  # OLMo-core's own lines


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_olmo_core_is_the_order_of_its_own_loader(tmp_path: Path, chunk: int) -> None:
    """Every epoch, batch, file and offset as OLMo-core 3.0.0 itself reads them, files and tails included."""
    batches, instances = olmo_core_batches(tmp_path, chunk, epochs=2)
    lock = lock_of()
    order = orders.make("olmo-core", lock, 34521, chunk)
    assert order.num_instances == instances
    tokens = {f"{s}/{i}.npy": content(s, i, n) for s, counts in SIZES.items() for i, n in enumerate(counts)}
    for position, expected in enumerate(batches):
        shards, numbers = order.locate(order.batch(position, 8))
        rows = [tokens[lock.shards[s].tokens][n * LENGTH :][:LENGTH] for s, n in zip(shards, numbers, strict=True)]
        np.testing.assert_array_equal(np.stack(rows), expected)


def content(source: str, number: int, count: int) -> np.ndarray:
    first = 100_000 * list(SIZES).index(source) + 10_000 * number
    return np.arange(first, first + count, dtype=np.uint32)


def olmo_core_batches(folder: Path, chunk: int, epochs: int) -> tuple[list[np.ndarray], int]:
    data_loader = pytest.importorskip("olmo_core.data.data_loader")
    numpy_dataset = pytest.importorskip("olmo_core.data.numpy_dataset")
    collator = pytest.importorskip("olmo_core.data.collator")
    paths = []
    for source, counts in SIZES.items():
        for i, count in enumerate(counts):
            paths.append(folder / f"{source}-{i}.npy")
            content(source, i, count).tofile(paths[-1])
    more = {} if chunk == 1 else {"max_target_sequence_length": LENGTH * chunk}
    dataset = numpy_dataset.NumpyFSLDataset(
        *paths, sequence_length=LENGTH, pad_token_id=0, eos_token_id=7, vocab_size=2**20, dtype=np.uint32, **more
    )
    loader = data_loader.NumpyDataLoaderBase.wrap_numpy_dataset(
        dataset,
        global_batch_size=8 * LENGTH,
        collator=collator.DataCollator(pad_token_id=0),
        work_dir=folder,
        seed=34521,
    )
    found = []
    for epoch in range(1, epochs + 1):
        loader.reshuffle(epoch)
        found += [batch["input_ids"].numpy() for batch in loader]
        loader.reset()
    assert len(found) == epochs * (len(dataset) // 8)
    return found, len(dataset)


@pytest.mark.parametrize("kind", ["olmo", "olmo-core"])
def test_no_batch_of_theirs_crosses_an_epoch(kind: str) -> None:
    order = orders.make(kind, lock_of(), 3)
    first, second = (np.concatenate([order.batch(e * 14 + k, 7) for k in range(14)]) for e in range(2))
    assert len(set(first.tolist())) == len(set(second.tolist())) == 14 * 7 and first.tolist() != second.tolist()
    assert orders.make(kind, lock_of(), 3).batch(14, 7).tolist() == second[:7].tolist()  # a restart exactly there


def test_a_batch_of_ours_goes_on_in_the_next_epoch() -> None:
    order = orders.make("feistel", lock_of(), 3)
    everything = np.concatenate([order.batch(k, 7) for k in range(30)])[: 2 * 104]
    assert sorted(everything[:104].tolist()) == sorted(everything[104:].tolist()) == list(range(104))
    assert order.batch(14, 7).tolist() == everything[98:105].tolist()  # 6 of this epoch, 1 of the next


@given(st.sampled_from(orders.KINDS), st.integers(0, 60), st.integers(1, 20))
def test_positions_do_not_depend_on_what_was_asked_before(kind: str, position: int, batch: int) -> None:
    used = orders.make(kind, lock_of(), 5)
    for other in (0, 59, position + 1):
        used.batch(other, batch)
    assert np.array_equal(used.batch(position, batch), orders.make(kind, lock_of(), 5).batch(position, batch))


@given(st.sampled_from(orders.KINDS), st.integers(0, 103))
def test_every_instance_lies_in_a_shard_of_its_source(kind: str, instance: int) -> None:
    lock = lock_of()
    order = orders.make(kind, lock, 5)
    (shard,), (number,) = order.locate(np.array([instance]))
    assert 0 <= number < lock.shards[shard].num_instances
    assert lock.sources[order.source_index(np.array([instance]))[0]].name == lock.shards[shard].source


def test_the_window_hash_is_of_the_indices() -> None:
    order = orders.make("olmo", lock_of(), 5)
    indices = np.concatenate([order.batch(position, 8) for position in range(3, 6)]).astype("<u4")
    assert orders.window_hash(order, 1, 8, 3) == hashlib.sha256(indices.tobytes()).hexdigest()
    hashes = {orders.window_hash(orders.make(kind, lock_of(), 5), w, 8, 3) for kind in orders.KINDS for w in (0, 1)}
    assert len(hashes) == 6


def test_orders_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="'pcg64' is unknown: use feistel, olmo or olmo-core"):
        orders.make("pcg64", lock_of(), 0)
    for kind, chunk in (("olmo", 2), ("feistel", 2), ("olmo-core", 0)):
        with pytest.raises(UsageError, match=f"no chunks of {chunk} instances"):
            orders.make(kind, lock_of(), 0, chunk)
    with pytest.raises(UsageError, match="takes 83 instances of the 82 of web"):
        orders.make("olmo", lock_of(taken_more=1), 0)
    with pytest.raises(UsageError, match="has 104 instances, a batch needs 105"):
        orders.make("olmo", lock_of(), 0).batch(0, 105)
    for number in (104, -1):
        with pytest.raises(UsageError, match=f"number {number} is none"):
            orders.make("olmo-core", lock_of(), 0).source_index(np.array([0, number]))
    with pytest.raises(UsageError, match="has 0 instances"):
        orders.make("olmo", lock_of({"web": [3]}), 0)

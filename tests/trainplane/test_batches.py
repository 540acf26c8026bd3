"""A global batch is a function of its position: not of ranks, not of what was read before; damage is seen; repetition is masked."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training_fixtures import write_mix
from trainplane.batches import Batch, Batches, batch_hash, interleaved
from triplane import artifact, mixture, orders, storage
from triplane.errors import Corrupt, UsageError


def lock_of(root: str) -> mixture.MixLock:
    return mixture.load(artifact.artifact_url(root, "mix/tiny"))


def batches(
    root: str, rank: int = 0, world_size: int = 1, order_seed: int = 7, instance_filter: bool = True
) -> Batches:
    return Batches(root, lock_of(root), order_seed, 8, instance_filter, rank, world_size)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, mixture.MixLock]:
    """A root and its lock, for the tests that change nothing; and the same lock with every source taken once."""
    folder = tmp_path_factory.mktemp("kept")
    root = storage.join(str(folder), "root")
    return root, write_mix(root, folder)


def whole(lock: mixture.MixLock) -> mixture.MixLock:
    """The lock with every source taken exactly once, as AI2's orders need it."""
    once = tuple(dataclasses.replace(source, num_taken=source.num_available) for source in lock.sources)
    return dataclasses.replace(lock, sources=once)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_share_one_global_batch(root: str, world_size: int) -> None:
    whole = batches(root).at(5)
    shares = [batches(root, rank, world_size).at(5) for rank in range(world_size)]
    hashes = interleaved(np.stack([share.row_hashes_B for share in shares]))
    assert batch_hash(hashes) == batch_hash(whole.row_hashes_B)
    assert {share.order_hash for share in shares} == {whole.order_hash}
    tokens = interleaved_rows([share.tokens_BT for share in shares])
    np.testing.assert_array_equal(tokens, whole.tokens_BT)


def interleaved_rows(shares: list[np.ndarray]) -> np.ndarray:
    return np.stack(shares, axis=1).reshape(-1, shares[0].shape[-1])


def test_positions_seeds_and_content_change_the_hash(root: str) -> None:
    one, other_position, other_seed = batches(root).at(0), batches(root).at(1), batches(root, order_seed=8).at(0)
    assert len({one.order_hash, other_position.order_hash, other_seed.order_hash}) == 3
    unmasked = next(p for p in range(20) if batches(root).at(p).is_masked_B.any())
    filtered, unfiltered = batches(root).at(unmasked), batches(root, instance_filter=False).at(unmasked)
    assert filtered.order_hash == unfiltered.order_hash
    assert batch_hash(filtered.row_hashes_B) != batch_hash(unfiltered.row_hashes_B)  # what was trained on differs


def test_rows_are_the_tokens_of_the_lock(root: str) -> None:
    batch = batches(root).at(3)
    lock = lock_of(root)
    order = mixture.Order(lock, 7)
    shards, numbers = order.locate(batch.instances)
    for row, shard, number in zip(batch.tokens_BT, shards, numbers, strict=True):
        ids = np.frombuffer(storage.read(storage.join(root, lock.shards[shard].tokens)), "<u4")
        np.testing.assert_array_equal(row, ids[number * 48 : (number + 1) * 48])
    assert batch.tokens_BT.dtype == np.int64
    assert sum(batch.tokens_by_source.values()) == 8 * 48


def test_repetitive_instances_are_masked_and_stay(root: str) -> None:
    """The source `loop` repeats one token; instances in which it does so 32 times are no target at all."""
    seen = [batches(root).at(position) for position in range(12)]
    masked = sum(int(batch.is_masked_B.sum()) for batch in seen)
    assert masked > 0
    for batch in seen:
        np.testing.assert_array_equal(batch.is_masked_B, ~batch.is_target_BT.any(1))
        assert (batch.tokens_BT[batch.is_masked_B] == 5).mean(1).tolist() == pytest.approx(
            [1.0] * batch.is_masked_B.sum(), abs=0.1
        )
    assert not any(batches(root, instance_filter=False).at(p).is_masked_B.any() for p in range(12))


def test_reading_ahead_gives_the_same_batches_in_order(root: str) -> None:
    expected = [batches(root).at(position).order_hash for position in range(2, 9)]
    for depth in (0, 1, 3, 50):
        assert [batch.order_hash for batch in batches(root).ahead(2, 9, depth)] == expected


def test_leaving_early_ends_the_reader(root: str) -> None:
    loader = batches(root).ahead(0, 10**9, 3)
    assert next(loader).position == 0
    loader.close()


def test_a_flipped_byte_is_named(root: str) -> None:
    shard = lock_of(root).shards[0]
    path = Path(root, shard.tokens)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match=r"even-00000.*block \d+"):
        for _ in batches(root).ahead(0, 60, 2):
            pass


def test_ranks_must_divide_the_batch(root: str) -> None:
    with pytest.raises(UsageError, match="3 workers cannot share a global batch of 8"):
        batches(root, 0, 3)


def content(parts: list[Batch]) -> tuple[str, str, list[list[int]]]:
    """What ranks 0, 1, ... read at one position, put together: order hash, batch hash, tokens."""
    (order_hash,) = {part.order_hash for part in parts}
    hashes = batch_hash(interleaved(np.stack([part.row_hashes_B for part in parts])))
    return order_hash, hashes, interleaved_rows([part.tokens_BT for part in parts]).tolist()


kinds = st.sampled_from(orders.KINDS)
worlds = st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), min_size=1, max_size=4)


@given(kind=kinds, first=st.integers(30, 40), world_sizes=worlds)
def test_growing_and_shrinking_changes_no_batch(
    kept: tuple[str, mixture.MixLock], kind: str, first: int, world_sizes: list[int]
) -> None:
    """A run that restarts at every position with another number of workers, over the end of an epoch too."""
    root, lock = kept[0], whole(kept[1])
    alone = Batches(root, lock, 5, 12, True, order=kind)
    for position, world_size in enumerate(world_sizes, first):
        parts = [Batches(root, lock, 5, 12, True, r, world_size, kind).at(position) for r in range(world_size)]
        assert content(parts) == content([alone.at(position)])


@pytest.mark.parametrize("kind", orders.KINDS)
def test_a_restart_at_the_end_of_an_epoch_skips_nothing(kept: tuple[str, mixture.MixLock], kind: str) -> None:
    root, lock = kept[0], whole(kept[1])
    made = Batches(root, lock, 5, 8, False, order=kind)
    held = lock.num_instances
    through = np.concatenate([batch.instances for batch in made.ahead(0, 2 * held // 8, 2)])
    in_epoch = held if kind == "feistel" else held // 8 * 8
    for epoch in (through[:in_epoch], through[in_epoch:][:in_epoch]):
        assert len(set(epoch.tolist())) == len(epoch) > held - 8
    boundary = in_epoch // 8
    again = np.concatenate([batch.instances for batch in made.ahead(boundary, boundary + 2, 2)])
    np.testing.assert_array_equal(again, through[boundary * 8 : boundary * 8 + 16])


def test_batches_come_from_object_storage(s3_root: str, tmp_path: Path) -> None:
    local = storage.join(str(tmp_path), "root")
    write_mix(local, tmp_path)
    write_mix(s3_root, tmp_path)
    for near, far in zip(batches(local).ahead(0, 6, 2), batches(s3_root).ahead(0, 6, 3), strict=True):
        assert content([near]) == content([far]) and near.position == far.position
    shard = lock_of(s3_root).shards[0]
    data = bytearray(storage.read(storage.join(s3_root, shard.tokens)))
    data[9] ^= 1
    storage.put(storage.join(s3_root, shard.tokens), bytes(data))
    with pytest.raises(Corrupt, match=r"s3://.*even-00000.*block 0 .*expected [0-9a-f]{16}, found [0-9a-f]{16}"):
        list(batches(s3_root).ahead(0, 60, 2))


def test_a_token_outside_the_vocabulary_is_named(kept: tuple[str, mixture.MixLock]) -> None:
    root, lock = kept
    small = Batches(root, dataclasses.replace(lock, vocab_size=60), 7, 8, True)
    with pytest.raises(Corrupt, match=r"-00000-.*\.npy holds token \d\d in instance \d+, the tokenizer has 60"):
        small.at(0)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_hash_of_every_window_is_logged_once(
    kept: tuple[str, mixture.MixLock], world_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions 995 to 2005 end two windows; rank 0 alone logs them, and they do not depend on ranks or on where the run began."""
    root, lock = kept
    monkeypatch.setenv("TRIPLANE_LOG", str(tmp_path / "log.jsonl"))
    made = [Batches(root, lock, 7, 2, False, rank, world_size) for rank in range(world_size)]
    indices = [np.concatenate([made[0].order.batch(p, 2) for p in range(w, w + 1000)]) for w in (0, 1000)]
    expected = [hashlib.sha256(numbers.astype("<u4").tobytes()).hexdigest() for numbers in indices]
    for one in made:
        assert sum(1 for _ in one.ahead(995, 2005, 2)) == 1010
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["stop"], row["sha256"]) for row in rows] == [(1000, expected[0]), (2000, expected[1])]
    assert made[-1].window_hash(999) == expected[0] and made[-1].window_hash(998) is None

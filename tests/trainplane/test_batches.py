"""A global batch is a function of its position: not of ranks, not of what was read before; damage is seen; repetition is masked."""

from pathlib import Path

import numpy as np
import pytest

from trainplane.batches import Batches, batch_hash, interleaved
from triplane import artifact, mixture, storage
from triplane.errors import Corrupt, UsageError


def lock_of(root: str) -> mixture.MixLock:
    return mixture.load(artifact.artifact_url(root, "mix/tiny"))


def batches(
    root: str, rank: int = 0, world_size: int = 1, order_seed: int = 7, instance_filter: bool = True
) -> Batches:
    return Batches(root, lock_of(root), order_seed, 8, instance_filter, rank, world_size)


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

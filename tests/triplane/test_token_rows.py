"""Many rows at once: what single reads give, each block read once, damage found, from local and from object storage."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from triplane import blocks, ranges, storage, tokens
from triplane.errors import Corrupt, NotFound
from triplane.token_rows import TokenRows
from triplane.tokens import Shard

SIZES = [30_000, 9_000, 4_096]


def write(root: str, folder: Path) -> tuple[list[Shard], list[np.ndarray]]:
    """Three shards, the second with a mask, on `root`; their tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, whole = [], []
    for number, size in enumerate(SIZES):
        ids = np.random.default_rng(number).integers(0, 1000, size - 1).astype(np.uint32)
        with tokens.ShardWriter(folder, f"part-{number}", 7, with_mask=number == 1) as writer:
            mask = ids % 2 == 0 if number == 1 else None
            writer.add(ids, np.array([0, len(ids)]), ["d"], ["s"], [1], mask)
            files = writer.close()
        for path in (files.tokens, files.checksums, files.mask, files.mask_checksums):
            if path is not None:
                storage.put_file(storage.join(root, path.name), path)
        masks = (f"{root}/part-1_mask.npy", f"{root}/part-1_mask.xxh3") if number == 1 else (None, None)
        shards.append(Shard(f"{root}/part-{number}.npy", f"{root}/part-{number}.xxh3", size, *masks))
        whole.append(np.r_[ids, np.uint32(7)])
    return shards, whole


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Shard], list[np.ndarray]]:
    folder = tmp_path_factory.mktemp("rows")
    return write(str(folder / "root"), folder)


row = st.integers(0, 2).flatmap(lambda s: st.tuples(st.just(s), st.integers(0, 2**20)))


@given(st.lists(row, min_size=1, max_size=20), st.integers(1, 4096))
def test_rows_are_what_single_reads_give(
    local: tuple[list[Shard], list[np.ndarray]], wanted: list[tuple[int, int]], count: int
) -> None:
    shards, whole = local
    numbers = np.array([shard for shard, _ in wanted])
    starts = np.array([start % (SIZES[shard] - count + 1) for shard, start in wanted])
    rows = TokenRows(lambda shard: shards[shard])
    expected = [whole[s][start : start + count] for s, start in zip(numbers, starts, strict=True)]
    np.testing.assert_array_equal(rows.read(numbers, starts, count), np.stack(expected))
    mask_1 = np.r_[whole[1][:-1] % 2 == 0, True]  # the EOS is trained on
    masks = [mask_1[t : t + count] if s == 1 else np.ones(count, bool) for s, t in zip(numbers, starts, strict=True)]
    np.testing.assert_array_equal(rows.read_masks(numbers, starts, count), np.stack(masks))


def test_touching_blocks_are_one_read_and_read_once(
    local: tuple[list[Shard], list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, _ = local
    seen: list[blocks.Run] = []
    real = blocks._read_local
    monkeypatch.setattr(blocks, "_read_local", lambda runs, page: seen.extend(runs) or real(runs, page))
    TokenRows(lambda shard: shards[shard]).read(np.array([0, 1, 0, 0, 0]), np.array([5000, 0, 100, 20_500, 4096]), 3000)
    assert [(run.file.url[-5], run.low // 16384, -(-run.high // 16384)) for run in seen] == [
        ("0", 0, 2),
        ("0", 5, 6),
        ("1", 0, 1),
    ]


def damage(url: str, byte: int) -> bytes:
    data = bytearray(storage.read(url))
    data[byte] ^= 4
    storage.put(url, bytes(data))
    return bytes(data)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_damage_names_file_block_expected_and_found(tmp_path: Path, place: str, request: pytest.FixtureRequest) -> None:
    root = str(tmp_path / "root") if place == "local" else request.getfixturevalue("s3_root")
    shards, whole = write(root, tmp_path)
    rows = TokenRows(lambda shard: shards[shard])
    numbers, starts = np.array([2, 0, 0]), np.array([0, 9000, 0])
    np.testing.assert_array_equal(rows.read(numbers, starts, 100)[1], whole[0][9000:9100])
    expected = int(np.frombuffer(storage.read(shards[0].url_checksums), "<u8")[2])
    data = damage(shards[0].url_tokens, 2 * 16384 + 9)
    found = xxh3_64_intdigest(data[2 * 16384 : 3 * 16384])
    with pytest.raises(Corrupt, match=f"part-0.npy block 2 .*expected {expected:016x}, found {found:016x}"):
        rows.read(numbers, starts, 100)
    assert len(rows.read(numbers[[0, 2]], starts[[0, 2]], 100)) == 2  # blocks beside it still read
    damage(shards[1].url_mask, 3)
    with pytest.raises(Corrupt, match=r"part-1_mask\.npy block 0 "):
        rows.read_masks(np.array([1]), np.array([0]), 100)
    storage.delete(shards[2].url_tokens)
    with pytest.raises(NotFound, match=r"part-2\.npy"):
        rows.read(numbers[:1], starts[:1], 100)


def test_without_checksums_nothing_is_verified(tmp_path: Path) -> None:
    shards, whole = write(str(tmp_path / "root"), tmp_path)
    damage(shards[0].url_tokens, 0)
    unverified = [dataclasses.replace(shard, url_checksums=None) for shard in shards]
    read = TokenRows(lambda shard: unverified[shard]).read(np.array([0]), np.array([0]), 3)
    assert read[0, 0] == whole[0][0] ^ 4 and read[0, 1:].tolist() == whole[0][1:3].tolist()


def test_pages_of_checksums_are_asked_for_once_and_kept_up_to_a_limit(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "PAGE_DIGESTS", 2)
    shards, whole = write(s3_root, tmp_path)
    asked: list[str] = []
    real = ranges.read
    monkeypatch.setattr(ranges, "read", lambda url, *at: asked.append(url) or real(url, *at))
    reader = blocks.BlockReader(kept_pages=2)
    file = tokens.token_file(shards[0])

    def read(*numbers: int) -> int:
        """Reads these blocks -> pages asked for."""
        before = sum(url.endswith("xxh3") for url in asked)
        for number, data in zip(
            numbers, reader.read([blocks.covering(file, n * 16384, 1) for n in numbers]), strict=True
        ):
            np.testing.assert_array_equal(data.view("<u4"), whole[0][number * 4096 : (number + 1) * 4096])
        return sum(url.endswith("xxh3") for url in asked) - before

    assert [read(0, 1, 2), read(3, 1), read(4), read(5), read(0), read(2)] == [2, 0, 1, 0, 0, 1]
    whole_file = blocks.covering(file, 0, file.size)  # a run over several pages
    (data,) = reader.read([whole_file])
    np.testing.assert_array_equal(data.view("<u4"), whole[0])


def test_a_page_that_failed_is_asked_for_again(s3_root: str, tmp_path: Path) -> None:
    shards, _ = write(s3_root, tmp_path)
    reader, run = blocks.BlockReader(), blocks.covering(tokens.token_file(shards[0]), 0, 1)
    sidecar = storage.read(shards[0].url_checksums)
    storage.delete(shards[0].url_checksums)
    with pytest.raises(NotFound, match=r"part-0\.xxh3"):
        list(reader.read([run]))
    storage.put(shards[0].url_checksums, sidecar)
    assert len(list(reader.read([run]))) == 1

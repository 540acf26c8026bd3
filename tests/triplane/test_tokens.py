"""Token shards: bytes that OLMo-core reads, ranges that are verified, provenance that round-trips, and every kind of damage."""

import copy
import csv
import gzip
import hashlib
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from triplane import artifact, mixture, tokens
from triplane.errors import Corrupt, LostRace, NotFound, UsageError
from triplane.tokens import Reader, Shard, ShardFiles, ShardWriter

EOS = 99_999
BLOCK_TOKENS = tokens.BLOCK_BYTES // tokens.TOKEN_BYTES


def write(
    folder: Path, documents: list[list[int]], ids: list[str] | None = None, with_mask: bool = False
) -> ShardFiles:
    folder.mkdir(parents=True, exist_ok=True)
    ids = ids or [f"d{i}" for i in range(len(documents))]
    with ShardWriter(folder, "part-00000", EOS, with_mask) as writer:
        for low in range(0, len(documents), 3):  # in several calls
            some = documents[low : low + 3]
            flat = np.array([token for document in some for token in document], np.uint32)
            offsets = np.cumsum([0, *map(len, some)])
            lines = range(low + 1, low + 1 + len(some))
            writer.add(
                flat,
                offsets,
                ids[low : low + 3],
                ["a.jsonl.zst"] * len(some),
                lines,
                flat % 2 == 0 if with_mask else None,
            )
        return writer.close()


def shard_of(files: ShardFiles) -> Shard:
    masks = (str(files.mask), str(files.mask_checksums)) if files.mask else (None, None)
    return Shard(str(files.tokens), str(files.checksums), files.num_tokens, *masks, str(files.provenance))


def random_documents(sizes: list[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, EOS, size).tolist() for size in sizes]


SIZES = [0, 5, 4095, 4096, 1, 9000, 3]


def test_a_shard_is_plain_arrays_and_rows(tmp_path: Path) -> None:
    files = write(tmp_path, [[1, 2, 3], [], [7]], with_mask=True)
    assert np.fromfile(files.tokens, "<u4").tolist() == [1, 2, 3, EOS, EOS, 7, EOS]
    assert files.mask is not None and files.mask.name == "part-00000_mask.npy"
    assert np.fromfile(files.mask, np.bool_).tolist() == [False, True, False, True, True, False, True]
    assert gzip.decompress(files.provenance.read_bytes()).decode().splitlines() == [
        "0,4,d0,a.jsonl.zst,1",
        "4,5,d1,a.jsonl.zst,2",
        "5,7,d2,a.jsonl.zst,3",
    ]
    assert np.fromfile(files.checksums, "<u8").tolist() == [xxh3_64_intdigest(files.tokens.read_bytes())]
    assert (files.num_tokens, files.num_documents) == (7, 3)


def test_sidecars_hold_one_checksum_a_block(tmp_path: Path) -> None:
    files = write(tmp_path, random_documents(SIZES), with_mask=True)
    for path, sidecar in [(files.tokens, files.checksums), (files.mask, files.mask_checksums)]:
        data = path.read_bytes()
        blocks = [data[i : i + 16384] for i in range(0, len(data), 16384)]
        assert np.fromfile(sidecar, "<u8").tolist() == [xxh3_64_intdigest(block) for block in blocks]


@given(st.lists(st.integers(0, 6000), max_size=6), st.data())
def test_every_range_reads_back(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
) -> None:
    documents = random_documents(sizes)
    files = write(tmp_path_factory.mktemp("shard"), documents, with_mask=True)
    whole = np.array([token for document in documents for token in [*document, EOS]], np.uint32)
    start = data.draw(st.integers(0, len(whole)))
    count = data.draw(st.integers(0, len(whole) - start))
    reader = Reader(shard_of(files))
    got, mask = reader.read(start, count), reader.read_mask(start, count)
    assert got.dtype == np.uint32 and got.flags.writeable and np.array_equal(got, whole[start : start + count])
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, ((whole % 2 == 0) | (whole == EOS))[start : start + count])


def test_equal_documents_give_equal_bytes_however_they_are_cut(tmp_path: Path) -> None:
    documents = random_documents(SIZES)
    split = write(tmp_path / "split", documents)
    flat = np.array([token for document in documents for token in document], np.uint32)
    (tmp_path / "whole").mkdir()
    with ShardWriter(tmp_path / "whole", "other-name", EOS) as writer:
        offsets = np.cumsum([0, *map(len, documents)])
        names = [f"d{i}" for i in range(len(documents))]
        writer.add(flat, offsets, names, ["a.jsonl.zst"] * len(documents), range(1, len(documents) + 1))
        whole = writer.close()
    for one, other in [
        (split.tokens, whole.tokens),
        (split.provenance, whole.provenance),
        (split.checksums, whole.checksums),
    ]:
        assert one.read_bytes() == other.read_bytes()


def test_the_writer_needs_the_memory_of_one_call(tmp_path: Path) -> None:
    ids, offsets = np.ones(1_000_000, np.uint32), np.arange(0, 1_000_001, 1000)
    columns = (["d"] * 1000, ["s"] * 1000, range(1, 1001))
    peaks = []
    for calls in (3, 12):
        tracemalloc.start()
        with ShardWriter(tmp_path, f"part-{calls}", EOS) as writer:
            for _ in range(calls):
                writer.add(ids, offsets, *columns)
            assert writer.close().num_tokens == calls * 1_001_000
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 30e6


def test_a_reader_travels_as_its_urls(tmp_path: Path) -> None:
    reader = Reader(shard_of(write(tmp_path, [[1, 2]])))
    assert copy.copy(reader).read(0, 3).tolist() == [1, 2, EOS]


def test_a_shard_without_a_mask_trains_on_everything(tmp_path: Path) -> None:
    assert Reader(shard_of(write(tmp_path, [[1, 2]]))).read_mask(1, 2).tolist() == [True, True]


def test_ranges_outside_the_shard_are_refused(tmp_path: Path) -> None:
    reader = Reader(shard_of(write(tmp_path, [[1, 2]])))
    for start, count in [(-1, 2), (2, 2), (0, -1)]:
        with pytest.raises(UsageError, match="holds 3 tokens"):
            reader.read(start, count)


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("block", [0, 2, 4])
def test_a_flipped_bit_is_found_where_it_is_read(tmp_path: Path, block: int) -> None:
    files = write(tmp_path, random_documents(SIZES))
    before = Reader(shard_of(files)).read(0, files.num_tokens)
    flip(files.tokens, block * tokens.BLOCK_BYTES + 5)
    data = files.tokens.read_bytes()[block * 16384 : (block + 1) * 16384]
    expected = int(np.fromfile(files.checksums, "<u8")[block])
    reader = Reader(shard_of(files))
    message = f"part-00000.npy block {block} .*expected {expected:016x}, found {xxh3_64_intdigest(data):016x}"
    for start in (block * BLOCK_TOKENS, min((block + 1) * BLOCK_TOKENS, files.num_tokens) - 1):
        with pytest.raises(Corrupt, match=message):
            reader.read(start, 1)
    other = (block + 1) % 5 * BLOCK_TOKENS  # blocks that were not touched still read
    assert np.array_equal(reader.read(other, 10), before[other : other + 10])


def test_damage_to_mask_and_sidecars_is_found(tmp_path: Path) -> None:
    files = write(tmp_path / "mask", random_documents(SIZES), with_mask=True)
    flip(files.mask, 17_000)
    reader = Reader(shard_of(files))
    assert len(reader.read_mask(0, 16_384)) == 16_384
    with pytest.raises(Corrupt, match=r"_mask.npy block 1 "):
        reader.read_mask(16_384, 1)
    flip(files.checksums, 8)
    with pytest.raises(Corrupt, match=r"part-00000.npy block 1 "):
        reader.read(BLOCK_TOKENS, 1)


@pytest.mark.parametrize("name", ["tokens", "checksums", "mask", "mask_checksums"])
@pytest.mark.parametrize("change", [-8, 8])
def test_a_file_of_another_length_is_corrupt(tmp_path: Path, name: str, change: int) -> None:
    files = write(tmp_path, random_documents(SIZES), with_mask=True)
    path = getattr(files, name)
    os.truncate(path, path.stat().st_size + change)
    reader = Reader(shard_of(files))
    with pytest.raises(Corrupt, match=f"{path.name} has .* bytes, expected"):
        (reader.read_mask if "mask" in name else reader.read)(0, 1)
    path.unlink()
    with pytest.raises(NotFound, match=path.name):
        (reader.read_mask if "mask" in name else reader.read)(0, 1)


names = st.lists(st.text(st.characters(exclude_categories=()), max_size=12), min_size=1, max_size=8)


@given(names)
def test_any_id_round_trips(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    files = write(tmp_path_factory.mktemp("shard"), [[1]] * len(ids), ids)
    found = list(tokens.provenance(shard_of(files)))
    assert [entry.id for entry in found] == ids
    assert [(entry.start, entry.end, entry.src, entry.loc) for entry in found] == [
        (2 * i, 2 * i + 2, "a.jsonl.zst", i + 1) for i in range(len(ids))
    ]


@pytest.mark.parametrize("name", ["", 'a"b', "a,b", "a\r\nb", "\r", "\0", "é\u2028", "\ud800", "x" * 200_000])
def test_awkward_ids_round_trip(tmp_path: Path, name: str) -> None:
    assert next(tokens.provenance(shard_of(write(tmp_path, [[1]], [name])))).id == name


def test_documents_of_a_token_range(tmp_path: Path) -> None:
    shard = shard_of(write(tmp_path, [[1, 2, 3], [], [7]]))
    assert [entry.id for entry in tokens.documents_in(shard, 3, 1)] == ["d0"]
    assert [entry.id for entry in tokens.documents_in(shard, 3, 3)] == ["d0", "d1", "d2"]
    assert tokens.documents_in(shard, 4, 0) == []


@pytest.mark.parametrize(
    "rows", [["0,4,a,s,1"], ["0,4,a,s,1", "5,7,b,s,2"], ["0,4,a,s,1", "4,9,b,s,2"], ["0,x,a,s,1"], ["0,7"]]
)
def test_provenance_that_does_not_cover_the_tokens_is_corrupt(tmp_path: Path, rows: list[str]) -> None:
    files = write(tmp_path, [[1, 2, 3], [], [7]])
    files.provenance.write_bytes(gzip.compress("\n".join(rows).encode()))
    with pytest.raises(Corrupt, match=r"csv\.gz"):
        list(tokens.provenance(shard_of(files)))


def test_truncated_provenance_is_corrupt(tmp_path: Path) -> None:
    files = write(tmp_path, random_documents([3] * 500))
    for keep in (len(files.provenance.read_bytes()) - 4, 100, 5):
        files.provenance.write_bytes(files.provenance.read_bytes()[:keep])
        with pytest.raises(Corrupt, match=r"csv\.gz"):
            list(tokens.provenance(shard_of(files)))


def test_the_writer_refuses_columns_that_disagree(tmp_path: Path) -> None:
    ids, offsets = np.array([1, 2], np.uint32), np.array([0, 2])
    with ShardWriter(tmp_path, "a", EOS) as writer:
        for wrong in ([0, 1], [1, 2], [0, 3, 2]):
            with pytest.raises(UsageError, match="offsets must rise from 0 to 2"):
                writer.add(ids, np.array(wrong), ["d"], ["s"], [1])
        with pytest.raises(UsageError, match="1 documents need"):
            writer.add(ids, offsets, ["d", "e"], ["s"], [1])
        with pytest.raises(UsageError, match="mask"):
            writer.add(ids, offsets, ["d"], ["s"], [1], np.ones(2, np.bool_))
    with ShardWriter(tmp_path, "b", EOS, with_mask=True) as writer, pytest.raises(UsageError, match="mask"):
        writer.add(ids, offsets, ["d"], ["s"], [1])


def begin(root: Path | str) -> artifact.Draft:
    return artifact.begin(
        str(root), "tokens", "web", inputs={"x": "1"}, recipe={"a": 1}, stage_versions={"tokenize": 1}
    )


METADATA = {"source": "web", "tokenizer": {"sha256": "ab" * 32, "eos_id": EOS, "vocab_size": 100_278}}


def committed(root: Path | str, folder: Path, with_mask: bool = False) -> artifact.Manifest:
    draft = begin(root)
    for i, sizes in enumerate([SIZES, [], [50, 7000]]):
        files = write(folder / str(i), random_documents(sizes, seed=i), with_mask=with_mask)
        tokens.write_artifact_shard(draft, files, f"part-{i:05d}", {"tokens": files.num_tokens})
    return draft.commit(METADATA)


@pytest.mark.parametrize("with_mask", [False, True])
def test_an_artifact_reads_back_in_shard_order(tmp_path: Path, with_mask: bool) -> None:
    manifest = committed(tmp_path / "root", tmp_path / "scratch", with_mask)
    assert [record.counts["tokens"] for record in manifest.records] == [sum(SIZES) + 7, 0, 7052]
    first, last = tokens.shards(str(tmp_path / "root"), manifest)
    assert (first.num_tokens, last.num_tokens) == (sum(SIZES) + 7, 7052)
    digest = hashlib.sha256(Path(first.url_tokens).read_bytes()).hexdigest()
    assert Path(first.url_tokens).name == f"part-00000-{digest[:12]}.npy"
    assert first.url_provenance == first.url_tokens.replace(".npy", ".csv.gz")
    assert Reader(last).read(0, 50).tolist() == random_documents([50, 7000], seed=2)[0]
    assert (last.url_mask is not None) == with_mask
    assert Reader(last).read_mask(0, 50).tolist() == [
        not with_mask or t % 2 == 0 for t in Reader(last).read(0, 50).tolist()
    ]
    assert [entry.id for entry in tokens.provenance(last)] == ["d0", "d1"]
    assert artifact.verify(artifact.artifact_url(str(tmp_path / "root"), manifest.reference)) == []


def test_the_rows_of_a_mix_open_the_same_shards(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    manifest = committed(root, tmp_path / "scratch", with_mask=True)
    rows = mixture.source_shards(root, manifest, "web", 100, "ab" * 32)
    assert [row.num_instances for row in rows] == [172, 70]
    assert all(row.tokens.startswith("tokens/web@") and (tmp_path / "root" / row.tokens).exists() for row in rows)
    assert [mixture.token_shard(root, row) for row in rows] == tokens.shards(root, manifest)
    with pytest.raises(mixture.Refused, match="was made by tokenizer abab"):
        mixture.source_shards(root, manifest, "web", 100, "cd" * 32)


def test_a_second_attempt_with_other_documents_is_an_error_not_an_overwrite(tmp_path: Path) -> None:
    draft = begin(tmp_path / "root")
    files = write(tmp_path / "one", [[1, 2], [3]])
    record = tokens.write_artifact_shard(draft, files, "part-00000", {})
    assert tokens.write_artifact_shard(draft, write(tmp_path / "same", [[1, 2], [3]]), "part-00000", {}) == record
    with pytest.raises(LostRace, match="other documents for the same tokens"):
        tokens.write_artifact_shard(draft, write(tmp_path / "renamed", [[1, 2], [3]], ["x", "y"]), "part-00000", {})
    with pytest.raises(LostRace, match="not deterministic"):
        tokens.write_artifact_shard(draft, write(tmp_path / "other", [[1, 2], [4]]), "part-00000", {})
    stored = Path(draft.url) / next(entry.name for entry in record.files if entry.name.endswith(".csv.gz"))
    assert stored.read_bytes() == files.provenance.read_bytes()


def test_ranges_are_verified_on_object_storage(s3_root: str, tmp_path: Path) -> None:
    from triplane import storage

    manifest = committed(s3_root, tmp_path, with_mask=True)
    shard = tokens.shards(s3_root, manifest)[1]
    reader = Reader(shard)
    whole = np.fromfile(tmp_path / "2" / "part-00000.npy", "<u4")
    assert np.array_equal(reader.read(4000, 200), whole[4000:4200]) and reader.read(4000, 200).flags.writeable
    assert reader.read_mask(0, 5).tolist() == [t % 2 == 0 for t in whole[:5].tolist()]
    assert [entry.id for entry in tokens.documents_in(shard, 51, 1)] == ["d1"]
    data = bytearray(storage.read(shard.url_tokens))
    data[4 * 5000] ^= 1
    storage.put(shard.url_tokens, bytes(data))
    assert np.array_equal(reader.read(0, 100), whole[:100])
    with pytest.raises(Corrupt, match="block 1 "):
        reader.read(5000, 1)
    storage.put(shard.url_checksums, storage.read(shard.url_checksums)[:-1])
    with pytest.raises(Corrupt, match=r"xxh3 holds 7 of the 8 bytes"):
        Reader(shard).read(5000, 1)


def test_olmo_core_reads_our_shards_unchanged(tmp_path: Path) -> None:
    numpy_dataset = pytest.importorskip("olmo_core.data.numpy_dataset")
    utils = pytest.importorskip("olmo_core.data.utils")
    root = str(tmp_path / "root")
    manifest = committed(root, tmp_path / "scratch", with_mask=True)
    ours = tokens.shards(root, manifest)
    options = {"pad_token_id": 0, "eos_token_id": EOS, "vocab_size": 100_278, "dtype": np.uint32}
    dataset = numpy_dataset.NumpyFSLDataset(
        *(shard.url_tokens for shard in ours),
        sequence_length=256,
        label_mask_paths=[shard.url_mask for shard in ours],
        **options,
    )
    dataset.prepare()
    lock = mixture.plan(
        "m",
        256,
        256 * len(dataset),
        {"web": 1.0},
        mixture.source_shards(root, manifest, "web", 256, "ab" * 32),
        0,
        "",
        0,
        0,
    )
    assert lock.num_instances == len(dataset) == 67 + 27
    readers = [Reader(shard) for shard in ours]
    for at in range(len(dataset)):
        shard, instance = (0, at) if at < 67 else (1, at - 67)
        item = dataset[at]
        assert np.array_equal(item["input_ids"].numpy(), readers[shard].read(instance * 256, 256))
        assert np.array_equal(item["label_mask"].numpy(), readers[shard].read_mask(instance * 256, 256))
    assert dataset.fingerprint == olmo_fingerprint([Path(shard.url_tokens) for shard in ours])
    for shard in ours:  # document boundaries from the .csv.gz beside the tokens, and by looking for EOS
        spans = [(entry.start, entry.end) for entry in tokens.provenance(shard)]
        assert list(utils.iter_document_indices(shard.url_tokens, use_array_if_local=False)) == spans
        assert list(utils.iter_document_indices(shard.url_tokens, eos_token_id=EOS, dtype=np.uint32)) == spans


def olmo_fingerprint(paths: list[Path]) -> str:
    """OLMo-core's rule, by hand: settings, then the base name and size of each file in order."""
    text = "class=NumpyFSLDataset"
    text += f"vocab_size=100278,pad_token_id=0,eos_token_id={EOS},dtype={np.uint32},"
    text += "max_target_sequence_length=None,bos_token_id=None,"
    text += "".join(f"path={path.name},size={path.stat().st_size}," for path in paths)
    return hashlib.sha256(text.encode()).hexdigest()


def test_plain_csv_reads_the_rows(tmp_path: Path) -> None:
    files = write(tmp_path, [[1], [2]], ['quote"and,comma', "line\nbreak"])
    with gzip.open(files.provenance, "rt", newline="") as text:
        assert [row[2] for row in csv.reader(text)] == ['quote"and,comma', "line\nbreak"]

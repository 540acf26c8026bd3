"""AI2's file lists as locks: their paths in their order, their instance counts, no checksums and no pretence of them."""

from pathlib import Path

import numpy as np
import pytest

from trainplane.batches import Batches
from triplane import artifact, mixture, path_list
from triplane.errors import Corrupt, NotFound, UsageError
from triplane.path_list import ListedFile

OLMO = """
seed: 6198
data:
  memmap_dtype: uint32
  paths:
    # ProofPile 2
    - http://olmo-data.org/preprocessed/proof-pile-2/arxiv/train/part-00-00000.npy
    - http://olmo-data.org/preprocessed/proof-pile-2/arxiv/train/part-01-00000.npy
    - http://olmo-data.org/preprocessed/pes2o/part-00-00000.npy
"""


def test_an_olmo_configuration_is_a_list() -> None:
    files = path_list.parse(OLMO, "OLMo2-7B-stage1.yaml")
    assert [file.path.rpartition("/")[2] for file in files] == [
        "part-00-00000.npy",
        "part-01-00000.npy",
        "part-00-00000.npy",
    ]
    assert path_list._sources(files) == ["proof-pile-2/arxiv/train"] * 2 + ["pes2o"]
    assert path_list.parse("- a/b.npy\n", "list.yml") == [ListedFile("", "a/b.npy")]


@pytest.mark.parametrize("mix", ["OLMo-mix-0625-official", "OLMo-midtraining-mix-0625-100B", "dolma17"])
def test_an_olmo_core_mix_is_the_list_that_it_builds(mix: str) -> None:
    mixes = pytest.importorskip("olmo_core.data.mixes")
    text = Path(mixes.__file__).with_name(f"{mix}.txt").read_text()
    paths, labels = mixes.DataMix(mix).build("s3://ai2-llm", "allenai/dolma3-tokenizer")
    files = path_list.parse(text, f"{mix}.txt", "allenai/dolma3-tokenizer")
    assert [f"s3://ai2-llm/{file.path}" for file in files] == paths and [file.label for file in files] == labels
    sources = path_list._sources(files)
    assert [source.partition("#")[0] for source in sources] == labels
    runs = [source for i, source in enumerate(sources) if not i or sources[i - 1] != source]
    assert len(set(runs)) == len(runs)


def write(folder: Path, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    found = {}
    for number, (name, count) in enumerate(sizes.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        found[name] = np.arange(count, dtype=np.uint32) + 1000 * number
        found[name].tofile(path)
    return found


SIZES = {"a/0.npy": 40, "a/1.npy": 7, "b/0.npy": 33, "tiny/0.npy": 3}


def lock_of(root: Path, files: list[ListedFile]) -> mixture.MixLock:
    return path_list.make_lock(files, str(root), "theirs", 8, "ab" * 32, 10_000, 7)


def test_a_list_is_read_unverified_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every instance of every file, twice of the file that is named twice; the log says that nothing was verified."""
    data = write(tmp_path / "root", SIZES)
    names = [*SIZES, "a/0.npy"]
    lock = lock_of(tmp_path / "root", [ListedFile("", name) for name in names])
    assert [(s.name, s.num_taken) for s in lock.sources] == [("a", 5), ("b", 4), ("tiny", 0), ("a#2", 5)]
    assert (lock.num_unverified, len(lock.shards)) == (5, 5)
    assert mixture.MixLock.from_bytes(lock.to_bytes()) == lock
    rows = np.concatenate([data[name][: data[name].size // 8 * 8].reshape(-1, 8) for name in names])
    monkeypatch.setenv("TRIPLANE_LOG", str(tmp_path / "log.jsonl"))
    for order in ("olmo", "olmo-core", "feistel"):
        batches = Batches(str(tmp_path / "root"), lock, 3, 2, False, order=order)
        seen = np.concatenate([batches.at(position).tokens_BT for position in range(7)])
        assert sorted(seen.tolist()) == sorted(rows.tolist())
    assert '"unverified"' in (tmp_path / "log.jsonl").read_text()
    path = tmp_path / "root" / "b/0.npy"  # a changed token is not noticed, which is why it is said
    path.write_bytes(path.read_bytes()[:-4] + b"\1\0\0\0")
    assert len(batches.at(0).tokens_BT) == 2
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(Corrupt, match="has 128 bytes, expected 132"):
        for position in range(7):
            batches.at(position)


def test_a_committed_list_is_a_mix(tmp_path: Path) -> None:
    root = str(tmp_path)
    write(tmp_path, SIZES)
    lock = lock_of(tmp_path, [ListedFile("x", name) for name in SIZES])
    manifest = path_list.commit(root, lock, "OLMo2-7B-stage1.yaml")
    assert path_list.commit(root, lock, "OLMo2-7B-stage1.yaml").reference == manifest.reference
    assert mixture.load(artifact.artifact_url(root, manifest.reference)) == lock
    assert manifest.metadata["unverified_shards"] == 4


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("data: {paths: [a.npy]}", "x.yaml", "memmap_dtype None"),
        ("data: {memmap_dtype: uint16, paths: [a.npy]}", "x.yaml", "memmap_dtype uint16"),
        ("data: {memmap_dtype: uint32, paths: [a.npy], label_mask_paths: [b.npy]}", "x.yaml", "label masks: True"),
        ("data: {memmap_dtype: uint32}", "x.yaml", "no list of paths"),
        ("seed: [", "x.yaml", "is not YAML"),
        ("# nothing\n\n", "x.txt", "lists no file"),
        ("web,preprocessed/{TOKENIZER}/a.npy", "x.txt", "name the tokenizer|and the tokenizer"),
        ("web,a.json", "x.txt", "lists a.json"),
    ],
)
def test_lists_that_cannot_be_replayed_are_refused(text: str, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        path_list.parse(text, name)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"a.npy": 3})
    with pytest.raises(NotFound, match=r"b\.npy is in the list and does not exist"):
        lock_of(tmp_path, [ListedFile("", "a.npy"), ListedFile("", "b.npy")])
    with pytest.raises(UsageError, match="hold no instance of 8 tokens"):
        lock_of(tmp_path, [ListedFile("", "a.npy")])
    (tmp_path / "a.npy").write_bytes(b"12345")
    with pytest.raises(Corrupt, match="5 bytes, which is no whole number"):
        lock_of(tmp_path, [ListedFile("", "a.npy")])

"""`verify` finds every kind of damage, in files in general and in token shards in particular."""

import csv
import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import xxhash

from triplane import artifact, storage, tokens
from triplane.artifact import Draft, FileEntry

TOKENS = np.arange(10_000, dtype="<u4")
ROWS = b"0,4000,a,in.jsonl,1\n4000,10000,b,in.jsonl,2\n"


def block_sums(data: bytes) -> bytes:
    blocks = (data[start : start + 16384] for start in range(0, len(data), 16384))
    return b"".join(xxhash.xxh3_64_intdigest(block).to_bytes(8, "little") for block in blocks)


def token_artifact(
    root: Path, tokens: bytes = TOKENS.tobytes(), rows: bytes = ROWS, sums: bytes | None = None, num_rows: int = 2
) -> Draft:
    draft = artifact.begin(str(root), "tokens", "code", inputs={}, recipe={}, stage_versions={})
    mask = np.ones(TOKENS.size, np.bool_).tobytes()
    files = [
        draft.put_bytes(tokens, "part-00000", ".npy", tokens=TOKENS.size),
        draft.put_bytes(gzip.compress(rows, mtime=0), "part-00000", ".csv.gz", rows=num_rows),
        draft.put_bytes(block_sums(tokens) if sums is None else sums, "part-00000", ".xxh3"),
        draft.put_bytes(mask, "part-00000", "_mask.npy"),
        draft.put_bytes(block_sums(mask), "part-00000", "_mask.xxh3"),
    ]
    draft.record("part-00000", files, {"tokens": TOKENS.size})
    draft.commit({"num_tokens": TOKENS.size})
    return draft


def test_a_good_artifact_has_no_problems(tmp_path: Path, s3_root: str) -> None:
    assert artifact.verify(token_artifact(tmp_path).url) == []
    draft = artifact.begin(s3_root, "documents", "x", inputs={}, recipe={}, stage_versions={})
    draft.record("s", [draft.put_bytes(bytes(3 << 20), "part", ".bin")], {})
    draft.commit({})
    assert artifact.verify(draft.url) == []
    storage.put(storage.join(draft.url, artifact.load_url(draft.url).files[0].name), bytes(3 << 20) + b"x")
    assert len(artifact.verify(draft.url)) == 2  # length and sha256


@pytest.mark.parametrize("at", [0, 20_000, 39_999])
def test_one_flipped_bit_is_found(tmp_path: Path, at: int) -> None:
    draft = token_artifact(tmp_path)
    path = next(Path(draft.url).glob("part-00000-????????????.npy"))
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    problems = artifact.verify(draft.url)
    assert len(problems) == 2
    assert f"{path.name} has sha256" in problems[0]
    assert problems[1] == f"{path.name} differs from its sidecar in block {at // 16384} (16 KiB each)"


def test_shards_of_the_token_writer_are_understood(tmp_path: Path) -> None:
    writer = tokens.ShardWriter(tmp_path, "gas_mask-00000", eos_id=7, with_mask=True)
    ids, ends = np.arange(9000, dtype=np.uint32), np.array([0, 4000, 9000])
    writer.add(ids, ends, ["a", "b"], ["x", "x"], [1, 2], np.ones(ids.size, np.bool_))
    draft = artifact.begin(str(tmp_path / "root"), "tokens", "code", inputs={}, recipe={}, stage_versions={})
    tokens.write_artifact_shard(draft, writer.close(), "s", {})
    manifest = draft.commit({})
    assert artifact.verify(draft.url) == []
    for file in (
        manifest.files
    ):  # any file of them, changed in the middle, is noticed by its hash and by the file it belongs to
        path = Path(draft.url, file.name)
        good = path.read_bytes()
        path.write_bytes(good[: len(good) // 2] + b"\xaa" + good[len(good) // 2 + 1 :])
        assert len(artifact.verify(draft.url)) == 2, file.name
        path.write_bytes(good)


def test_ids_may_be_of_any_length(tmp_path: Path) -> None:
    csv.field_size_limit(131_072)  # Python's own, which `verify` in a process of its own begins with
    rows = ROWS.replace(b",a,", b"," + b"a" * 200_000 + b",")
    assert artifact.verify(token_artifact(tmp_path, rows=rows).url) == []


def test_checkpoints_of_a_run_are_read_too(tmp_path: Path) -> None:
    run = artifact.begin(str(tmp_path), "run", "small", inputs={}, recipe={}, stage_versions={})
    files = []
    for number in ("8", "16"):
        url = storage.join(run.url, "checkpoints", f"tokens-{number}")
        saved = artifact.begin(run.url, "checkpoint", "small", inputs={}, recipe={}, stage_versions={}, url=url)
        files.append(Path(url, saved.put_bytes(b"weights", "model", ".safetensors").name))
        entry = artifact.FileEntry(files[-1].name, hashlib.sha256(b"weights").hexdigest(), 7)
        saved.record("checkpoint", [entry], {})
        if number == "8":
            saved.commit({})
    run.commit({"checkpoint": "checkpoints/tokens-8"})
    files[1].write_bytes(b"a checkpoint that was never committed is not the run's")
    assert artifact.verify(run.url) == []
    files[0].write_bytes(b"wEights")
    (problem,) = artifact.verify(run.url)
    assert problem.startswith(f"checkpoints/tokens-8: {files[0].name} has sha256 ")
    (files[0].parent / "manifest.json").unlink()
    (problem,) = artifact.verify(run.url)
    assert problem.startswith("checkpoints/tokens-8: ") and "does not exist" in problem


def test_an_edited_recipe_is_found(tmp_path: Path) -> None:
    draft = artifact.begin(str(tmp_path), "mix", "x", inputs={}, recipe={"share": 0.5}, stage_versions={})
    draft.commit({})
    path = Path(draft.url, "manifest.json")
    path.write_text(path.read_text().replace("0.5", "0.6"))
    (problem,) = artifact.verify(draft.url)
    assert problem.startswith(f"manifest.json has identity {draft.identity}, but") and problem.endswith("it was edited")


def test_missing_and_short_files_are_named(tmp_path: Path) -> None:
    draft = token_artifact(tmp_path)
    sidecar = next(Path(draft.url).glob("part-00000-????????????.xxh3"))
    sidecar.unlink()
    path = next(Path(draft.url).glob("part-00000-????????????.npy"))
    path.write_bytes(path.read_bytes()[:-4])
    problems = artifact.verify(draft.url)
    assert f"{sidecar.name} is missing: make the artifact again" in problems
    assert f"{path.name} holds 39996 bytes, expected 40000" in problems


def test_a_manifest_may_claim_files_that_never_were(tmp_path: Path) -> None:
    draft = artifact.begin(str(tmp_path), "documents", "x", inputs={}, recipe={}, stage_versions={})
    draft.record("s", [FileEntry("part-000000000000.bin", "0" * 64, 1)], {})
    draft.commit({})
    assert artifact.verify(draft.url) == ["part-000000000000.bin is missing: make the artifact again"]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (b"0,4000,a,x,1\n4000,9999,b,x,2\n", "covers 9999 tokens, expected 10000"),
        (b"0,4000,a,x,1\n4001,10000,b,x,2\n", "document 'b' spans [4001, 10000) after token 4000"),
        (b"0,4000,a,x,1\n4000,3000,b,x,2\n", "document 'b' spans [4000, 3000) after token 4000"),
        (b"0,10000,a,x,1\n", "holds 1 rows, expected 2"),
        (b"0,4000,a,x,1\nx,10000,b,x,2\n", "holds the row ['x', '10000', 'b', 'x', '2'], not start,end,id,src,loc"),
        (
            b"0,4000,a,x,1\n4000,4000,b,x,2\n4000,10000,c,x,3\n",
            "spans [4000, 4000)",
        ),  # not even EOS: the reader refuses it
    ],
)
def test_token_rows_must_be_contiguous_and_cover_the_tokens(tmp_path: Path, rows: bytes, problem: str) -> None:
    (found,) = artifact.verify(token_artifact(tmp_path, rows=rows).url)
    assert problem in found


def test_a_sidecar_of_other_bytes_is_found(tmp_path: Path) -> None:
    (found,) = artifact.verify(token_artifact(tmp_path, sums=block_sums(TOKENS.tobytes())[:-8] + bytes(8)).url)
    assert "differs from its sidecar in block 2" in found
    (found,) = artifact.verify(token_artifact(tmp_path / "b", sums=b"").url)
    assert "has 3 blocks, its sidecar 0" in found


def test_a_record_that_says_otherwise_is_found(tmp_path: Path) -> None:
    draft = token_artifact(tmp_path)
    path = Path(draft.url, "records", "part-00000.json")
    text = path.read_text()
    path.write_text(text.replace('"tokens":10000}', '"tokens":1}', 1))
    assert artifact.verify(draft.url) == ["records/part-00000.json differs from the manifest: one of them was edited"]
    path.unlink()
    assert artifact.verify(draft.url) == []  # a copy needs no records


def test_what_is_not_committed_is_a_problem(tmp_path: Path) -> None:
    (problem,) = artifact.verify(str(tmp_path))
    assert "manifest.json does not exist" in problem

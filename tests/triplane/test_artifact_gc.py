"""`collect_garbage` removes what nothing names, and nothing else."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triplane import artifact, artifact_gc, lease, storage, tokens
from triplane.artifact import Draft

HOUR = 3600.0
LONG_AGO = time.time() - 10 * HOUR


def draft(root: str, kind: str = "documents", **where: Any) -> Draft:
    return artifact.begin(root, kind, "x", inputs={}, recipe={}, stage_versions={}, **where)


def age(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.getfixturevalue("s3_root")) if request.param == "s3" else str(tmp_path)


def test_only_what_nothing_names_goes(root: str) -> None:
    made = draft(root)
    kept, lost = made.put_bytes(b"kept", "part", ".bin"), made.put_bytes(b"lost", "part", ".bin")
    made.record("s", [kept], {})
    storage.put(storage.join(made.url, "notes.txt"), b"no content hash in the name: not ours to remove")
    before = storage.list_names(made.url)
    assert artifact.collect_garbage(root, True, -60) == [f"{made.reference}/{lost.name}"]
    assert storage.list_names(made.url) == before
    assert artifact.collect_garbage(root, False, -60) == [f"{made.reference}/{lost.name}"]
    assert storage.list_names(made.url) == [name for name in before if name != lost.name]
    made.commit({})
    assert artifact.collect_garbage(root, False, -60) == []
    assert artifact.verify(made.url) == []


def test_a_manifest_without_its_records_still_names_files(root: str) -> None:
    made = draft(root)
    made.record("s", [made.put_bytes(b"kept", "part", ".bin")], {})
    made.commit({})
    storage.delete(storage.join(made.url, "records/s.json"))
    assert artifact.collect_garbage(root, False, -60) == []


def test_the_young_stay(tmp_path: Path) -> None:
    made = draft(str(tmp_path))
    old = made.put_bytes(b"old", "part", ".bin")
    age(tmp_path)
    made.put_bytes(b"young", "part", ".bin")
    assert artifact.collect_garbage(str(tmp_path), False, HOUR) == [f"{made.reference}/{old.name}"]


def test_what_a_crashed_attempt_left_is_young_again_when_it_is_put_again(tmp_path: Path) -> None:
    writer = tokens.ShardWriter(tmp_path, "part-00000", eos_id=7, with_mask=True)
    writer.add(np.arange(9, dtype=np.uint32), np.array([0, 9]), ["a"], ["x"], [1], np.ones(9, np.bool_))
    files, root = writer.close(), tmp_path / "root"
    made = artifact.begin(str(root), "tokens", "x", inputs={}, recipe={}, stage_versions={})
    tokens._upload(made, files)  # and then it crashed
    age(root)
    entries = tokens._upload(made, files)
    assert artifact.collect_garbage(str(root), False, HOUR) == []  # between upload and record
    made.record("s", entries, {})
    made.commit({})
    assert artifact.verify(made.url) == []


def test_a_live_lease_protects_its_artifact(tmp_path: Path) -> None:
    made, root = draft(str(tmp_path)), str(tmp_path)
    lost = made.put_bytes(b"lost", "part", ".bin")
    age(tmp_path)
    held = lease.acquire(root, f"{made.reference}/shard-0", "worker", 60)
    assert held is not None
    assert artifact.collect_garbage(root, False, HOUR) == []
    held.release()
    assert artifact.collect_garbage(root, False, HOUR) == [f"{made.reference}/{lost.name}"]


def test_checkpoints_inside_a_run_name_their_own_files(tmp_path: Path) -> None:
    run = draft(str(tmp_path), "run")
    url = storage.join(run.url, "checkpoints", "tokens-000000000001024")
    saved = draft(str(tmp_path), "checkpoint", url=url)
    saved.record("rank-0", [saved.put_bytes(b"w", "model/rank-0", ".safetensors")], {})
    saved.commit({})
    crashed = draft(str(tmp_path), "checkpoint", url=url.replace("1024", "2048"))
    half = crashed.put_bytes(b"half", "model/rank-0", ".safetensors")
    storage.put(storage.join(run.url, "ledger", "rows-00000.jsonl"), b"{}\n")
    removed = artifact.collect_garbage(str(tmp_path), False, -60)
    assert removed == [f"{run.reference}/checkpoints/tokens-000000000002048/{half.name}"]
    assert artifact.verify(url) == []


def test_a_folder_that_cannot_be_understood_is_left_alone(tmp_path: Path) -> None:
    made = draft(str(tmp_path))
    made.put_bytes(b"lost", "part", ".bin")
    made.commit({})
    path = Path(made.url, "manifest.json")
    good = path.read_text()
    for broken in (good.replace('"schema_version":1', '"schema_version":7'), "{"):
        path.write_text(broken)
        assert artifact.collect_garbage(str(tmp_path), False, -60) == []
    path.write_text(good)
    assert len(artifact.collect_garbage(str(tmp_path), False, -60)) == 1


def test_a_shard_finished_since_the_listing_is_spared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = draft(str(tmp_path))
    late = made.put_bytes(b"late", "part", ".bin")
    named, calls = artifact_gc._named, []

    def record_after_the_first_look(*arguments: Any) -> set[str] | None:
        found = named(*arguments)
        if not calls:
            made.record("s", [late], {})
        calls.append(1)
        return found

    monkeypatch.setattr(artifact_gc, "_named", record_after_the_first_look)
    assert artifact.collect_garbage(str(tmp_path), False, -60) == []
    assert made.commit({}).files == (late,) and artifact.verify(made.url) == []


def test_temporaries_and_replaced_leases_go_too(tmp_path: Path) -> None:
    for _ in range(2):
        held = lease.acquire(str(tmp_path), "x", "a", 60)
        assert held is not None
        held.release()
    left = ".y.0123456789abcdef.partial"
    (tmp_path / left).write_bytes(b"ha")
    (tmp_path / "movie.partial").write_bytes(b"a user's own file")
    assert artifact.collect_garbage(str(tmp_path), False, HOUR) == []
    age(tmp_path)
    assert artifact.collect_garbage(str(tmp_path), False, HOUR) == [left, "leases/x/000000000001.json"]
    assert (tmp_path / "movie.partial").exists()

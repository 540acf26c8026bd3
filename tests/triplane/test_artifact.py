"""Artifacts: invisible until committed, named by what makes them, and the same bytes after any kill."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triplane import artifact, artifact_format, storage
from triplane.artifact import Draft, FileEntry, Manifest, Record
from triplane.errors import Corrupt, LostRace, NotFound, Refused, UsageError


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.getfixturevalue("s3_root")) if request.param == "s3" else str(tmp_path / "root")


def begin(root: str, **changes: Any) -> Draft:
    made_of: dict[str, Any] = {
        "inputs": {"in/a.jsonl": "aa" * 32},
        "recipe": {"threshold": 0.5},
        "stage_versions": {"tokenize": 1},
    }
    return artifact.begin(root, "documents", "code", **(made_of | changes))


def test_shards_become_visible_with_the_manifest(root: str, tmp_path: Path) -> None:
    draft = begin(root, parents=["documents/raw@1"])
    assert draft.url == storage.join(root, "documents", f"code@{draft.identity[:12]}")
    (tmp_path / "b").write_bytes(b"beta")
    one = draft.put_bytes(b"alpha", "part-00001", ".bin", rows=1)
    zero = draft.put_file(tmp_path / "b", "part-00000", ".bin", rows=2, tokens=4)
    assert zero.name == "part-00000-f44e64e75f39.bin" and (zero.bytes, zero.rows, zero.tokens) == (4, 2, 4)
    draft.record("s1", [one], {"kept": 1, "mean": 0.25, "by_reason": {"short": 3}})
    draft.record("s0", [zero], {"kept": 2})

    assert list(draft.records) == ["s0", "s1"]
    assert artifact.committed(draft) is None and artifact.references(root, "documents") == []
    with pytest.raises(NotFound, match="holds no committed artifact"):
        artifact.load(root, draft.reference)

    manifest = draft.commit({"num_rows": 3})
    assert artifact.committed(draft) == manifest == artifact.load(root, "documents/code")
    assert [file.name for file in manifest.files] == [zero.name, one.name]
    assert manifest.records[1].counts == {"kept": 1, "mean": 0.25, "by_reason": {"short": 3}}
    assert (manifest.reference, manifest.parents) == (draft.reference, ("documents/raw@1",))
    assert storage.read(storage.join(draft.url, zero.name)) == b"beta"


def test_the_first_attempt_at_a_shard_stands(root: str) -> None:
    draft = begin(root)
    first, late = draft.put_bytes(b"first", "part", ".bin"), draft.put_bytes(b"late", "part", ".bin")
    assert draft.record("s", [first], {"n": 1}).files == (first,)
    standing = draft.record("s", [late], {"n": 2})
    assert standing.files == (first,) and standing.counts == {"n": 1}
    assert storage.read(storage.join(draft.url, first.name)) == b"first"  # the late bytes have a name of their own


def test_a_commit_again_is_fine_and_one_of_something_else_is_a_lost_race(root: str) -> None:
    mine = begin(root, version="v1")
    mine.record("s", [], {})
    manifest = mine.commit({"a": 1})
    assert mine.commit({"a": 1}) == manifest == begin(root, version="v1").commit({"a": 1})
    other = begin(root, version="v1", recipe={"threshold": 0.6})
    for attempt in (lambda: artifact.committed(other), lambda: other.commit({}), lambda: other.records):
        with pytest.raises(
            LostRace, match=r"documents/code@v1 at .* belongs to other inputs, recipe or stage"
        ) as caught:
            attempt()
        assert caught.value.exit_code == 3
    assert artifact.load(root, "documents/code@v1") == manifest


def test_unfinished_shards_of_another_recipe_are_not_taken_over(root: str) -> None:
    """A version the user chose, a crash, another recipe: the shards that lie there are of the first one."""
    begin(root, version="v1").record("s0", [], {"kept": 1})
    other = begin(root, version="v1", recipe={"threshold": 0.6})
    with pytest.raises(LostRace):
        other.record("s0", [], {"kept": 2})
    with pytest.raises(LostRace):
        other.commit({})
    with pytest.raises(NotFound):
        artifact.load(root, "documents/code@v1")


def test_of_two_committers_of_one_name_one_wins(root: str) -> None:
    drafts = [begin(root, version="v1", recipe={"n": n}) for n in range(4)]
    outcomes: dict[int, str] = {}
    barrier = threading.Barrier(len(drafts))

    def commit(n: int) -> None:
        barrier.wait()
        try:
            outcomes[n] = drafts[n].commit({}).identity
        except LostRace:
            outcomes[n] = "lost"

    threads = [threading.Thread(target=commit, args=(n,)) for n in range(len(drafts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [n for n, outcome in outcomes.items() if outcome != "lost"]
    assert artifact.load(root, "documents/code@v1").recipe == {"n": winner}


def test_identity_is_of_what_makes_it_and_of_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = begin(str(tmp_path)).identity
    assert begin("/elsewhere", version="v9").identity == base
    changes: list[dict[str, Any]] = [
        {"inputs": {"in/a.jsonl": "bb" * 32}},
        {"recipe": {"threshold": 0.51}},
        {"stage_versions": {"tokenize": 2}},
        {"parents": ["documents/x@1"]},
    ]
    identities = {begin(str(tmp_path), **change).identity for change in changes}
    assert len(identities) == 4 and base not in identities
    monkeypatch.setattr(artifact, "_code_version", lambda: "99.0")
    upgraded = begin(str(tmp_path))
    assert upgraded.identity == base and upgraded.commit({}).code_version == "99.0"


def test_versions_are_listed_newest_first(tmp_path: Path) -> None:
    root = str(tmp_path)
    for version, when in (("b", 100), ("a", 100), ("c", 50), ("d", 200)):
        draft = begin(root, version=version)
        draft.commit({})
        os.utime(storage.local_path(storage.join(draft.url, "manifest.json")), (when, when))
    begin(root, version="unfinished").record("s", [], {})
    names = [f"documents/code@{version}" for version in "dabc"]
    assert artifact.references(root, "documents", "code") == names == artifact.references(root, "documents")
    assert artifact.artifact_url(root, "documents/code") == storage.join(root, "documents/code@d")
    with pytest.raises(NotFound, match=r"no committed documents/cod at .* \(did you mean code\?\)"):
        artifact.load(root, "documents/cod")


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    draft = begin(str(tmp_path))
    draft.commit({})
    path = storage.local_path(storage.join(draft.url, "manifest.json"))
    path.write_text(path.read_text().replace('"schema_version":1', '"schema_version":2'))
    for read in (lambda: artifact.load(str(tmp_path), draft.reference), lambda: artifact.verify(draft.url)):
        with pytest.raises(Refused, match="schema version 2 and this release reads 1"):
            read()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"kind"', '"kinds"', "is not a manifest"),
        ('"bytes":1', '"bytes":"1"', "is not a manifest"),
        ("part-", "../part-", "outside its folder"),
        ("{", "", "is not a manifest"),
        ("{", "[" * 5000, "is not a manifest"),
    ],
)
def test_a_broken_manifest_is_corrupt(tmp_path: Path, old: str, new: str, words: str) -> None:
    draft = begin(str(tmp_path))
    draft.record("s", [draft.put_bytes(b"x", "part", ".bin")], {})
    draft.commit({})
    path = storage.local_path(storage.join(draft.url, "manifest.json"))
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(Corrupt, match=words):
        artifact.load(str(tmp_path), draft.reference)


def test_a_file_that_is_not_what_its_manifest_says_is_corrupt(root: str) -> None:
    draft = begin(root)
    entry = draft.put_bytes(b"alpha", "data", ".bin")
    assert artifact.read(draft.url, entry) == b"alpha"
    assert artifact.describe(draft.url, entry.name) == entry
    for damaged in (b"alphb", b"alph", b"alpha ", b""):
        storage.put(storage.join(draft.url, entry.name), damaged)
        with pytest.raises(Corrupt, match=rf"data-.*\.bin holds {len(damaged)} bytes with sha256 .*, expected 5 with"):
            artifact.read(draft.url, entry)
        assert artifact.describe(draft.url, entry.name).sha256 == hashlib.sha256(damaged).hexdigest()
    storage.delete(storage.join(draft.url, entry.name))
    with pytest.raises(NotFound):
        artifact.read(draft.url, entry)
    with pytest.raises(NotFound):
        artifact.describe(draft.url, entry.name)


@pytest.mark.parametrize(
    "reference", ["code", "document/code", "documents/co de", "documents/../x", "documents/a@", "documents/"]
)
def test_wrong_references_are_explained(tmp_path: Path, reference: str) -> None:
    with pytest.raises(UsageError, match="is no reference: write kind/name"):
        artifact.load(str(tmp_path), reference)


def test_names_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        begin(str(tmp_path)).put_bytes(b"", "../x", ".bin")
    with pytest.raises(UsageError):
        begin(str(tmp_path)).record("../s", [], {})


def test_an_artifact_may_lie_inside_another(tmp_path: Path) -> None:
    run = artifact.begin(str(tmp_path), "run", "tiny", inputs={}, recipe={}, stage_versions={})
    url = storage.join(run.url, "checkpoints", "tokens-000000000001024")
    draft = artifact.begin(str(tmp_path), "checkpoint", "tiny", inputs={}, recipe={}, stage_versions={}, url=url)
    draft.record("model", [draft.put_bytes(b"w", "model/rank-0", ".safetensors")], {})
    assert draft.commit({"step": 1}) == artifact.load_url(url)
    assert artifact.references(str(tmp_path), "run") == []


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
entries = st.builds(
    FileEntry,
    name=st.text("abc/-_.", min_size=1).filter(artifact_format.is_inside),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    bytes=st.integers(0, 2**60),
    rows=st.none() | st.integers(0, 2**40),
    tokens=st.none() | st.integers(0, 2**40),
)
records = st.builds(
    Record,
    shard=st.text(),
    files=st.lists(entries, max_size=3).map(tuple),
    counts=st.dictionaries(st.text(), json_values),
)
manifests = st.builds(
    Manifest,
    schema_version=st.just(1),
    kind=st.just("mix"),
    name=st.text(),
    version=st.text(),
    identity=st.text(),
    inputs=st.dictionaries(st.text(), st.text()),
    parents=st.lists(st.text(), max_size=2).map(tuple),
    recipe=st.dictionaries(st.text(), json_values),
    code_version=st.text(),
    stage_versions=st.dictionaries(st.text(), st.integers(0, 9)),
    records=st.lists(records, max_size=3).map(tuple),
    metadata=st.dictionaries(st.text(), json_values),
)


@given(manifest=manifests)
def test_a_manifest_is_read_as_it_was_written(manifest: Manifest) -> None:
    data = artifact_format.to_bytes(manifest)
    assert artifact_format.manifest_from(data, "x") == manifest
    assert artifact_format.to_bytes(artifact_format.manifest_from(data, "x")) == data


def test_numpy_counts_are_numbers_and_nan_is_refused(tmp_path: Path) -> None:
    import numpy as np

    draft = begin(str(tmp_path))
    assert draft.record("s", [], {"n": np.int64(3), "x": np.float64(0.5)}).counts == {"n": 3, "x": 0.5}
    with pytest.raises(ValueError):
        draft.record("t", [], {"x": float("nan")})


# ---- kills ----

MAKE = """
import pathlib, os, sys, time
from triplane import artifact, storage
root, pause_at, marker, scratch = sys.argv[1:]
calls = {}
def paused(function, name, only=lambda *a: True):
    def wrapped(*arguments):
        if only(*arguments):
            calls[name] = calls.get(name, 0) + 1
            if f"{name} {calls[name]}" == pause_at:
                pathlib.Path(marker).touch()
                time.sleep(600)
        return function(*arguments)
    return wrapped
os.fsync = paused(os.fsync, "sync", lambda d: os.fstat(d).st_size > 1 << 19)
storage.put_if_absent = paused(storage.put_if_absent, "commit")
draft = artifact.begin(root, "documents", "killed", inputs={"a": "b"}, recipe={"x": 1}, stage_versions={"make": 1})
if artifact.committed(draft) is None:
    done = draft.records
    for shard in range(3):
        if f"s{shard}" in done:
            continue
        path = pathlib.Path(scratch)
        path.write_bytes(bytes([shard]) * (1 << 20))
        draft.record(f"s{shard}", [draft.put_file(path, f"part-{shard:05d}", ".bin", rows=shard)], {"rows": shard})
        print("made", shard)
    draft.commit({"rows": 3})
"""


def _make(root: str, folder: Path, pause_at: str = "never") -> subprocess.Popen[str]:
    script = [sys.executable, "-c", MAKE, root, pause_at, str(folder / "paused"), str(folder / "scratch")]
    return subprocess.Popen(script, stdout=subprocess.PIPE, text=True)


def _kill_when_paused(process: subprocess.Popen[str], marker: Path) -> None:
    deadline = time.monotonic() + 60
    while not marker.exists():
        assert process.poll() is None and time.monotonic() < deadline, "the writer ended before it was killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def _objects(root: str) -> dict[str, bytes]:
    return {name: storage.read(storage.join(root, name)) for name in storage.list_names(root)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    process = _make(str(folder / "root"), folder)
    assert process.communicate()[0] == "made 0\nmade 1\nmade 2\n" and process.returncode == 0
    return _objects(str(folder / "root"))


@pytest.mark.parametrize(
    ("where", "pause_at", "made_after", "leftovers"),
    [
        ("local", "sync 2", "made 1\nmade 2\n", 1),  # the second shard's bytes are half-way: a temporary stays
        ("local", "commit 2", "made 1\nmade 2\n", 0),  # its object is there, its record not
        ("local", "commit 4", "", 0),  # all records are there, the manifest not
        ("s3", "commit 2", "made 1\nmade 2\n", 0),
    ],
)
def test_after_a_kill_the_same_command_gives_the_same_bytes(
    where: str,
    pause_at: str,
    made_after: str,
    leftovers: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    undisturbed: dict[str, bytes],
) -> None:
    root = str(request.getfixturevalue("s3_root")) if where == "s3" else str(tmp_path / "root")
    _kill_when_paused(_make(root, tmp_path, pause_at), tmp_path / "paused")
    assert artifact.references(root, "documents") == []
    with pytest.raises(NotFound):
        artifact.load(root, "documents/killed")
    assert len(storage.leftovers(root)) == leftovers

    again = _make(root, tmp_path)
    assert again.communicate()[0] == made_after and again.returncode == 0
    assert _objects(root) == undisturbed
    manifest = artifact.load(root, "documents/killed")
    assert artifact.verify(artifact.artifact_url(root, manifest.reference)) == []
    assert len(artifact.collect_garbage(root, False, -60.0)) == leftovers
    assert (_objects(root), storage.leftovers(root)) == (undisturbed, [])


def test_a_draft_travels_as_strings(tmp_path: Path) -> None:
    draft = begin(str(tmp_path))
    assert all(isinstance(value, str) for value in dataclasses.asdict(draft).values())
    assert Draft(**json.loads(json.dumps(dataclasses.asdict(draft)))) == draft

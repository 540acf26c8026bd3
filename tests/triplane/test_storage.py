"""Storage: whole objects or none, ranges, listings, and the one commit there is, on a local disk and on a real S3 server."""

import errno
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triplane import storage
from triplane.errors import Corrupt, NotFound, TriplaneError, UsageError


@pytest.fixture(params=["local", "file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3_root"))
    return str(tmp_path / "root") if request.param == "local" else (tmp_path / "root with space").as_uri()


def test_what_was_put_is_read_back(root: str, tmp_path: Path) -> None:
    url = storage.join(root, "a/b", "c.bin")
    storage.put(url, b"0123456789")
    assert storage.read(url) == b"0123456789"
    assert storage.read_range(url, 3, 4) == b"3456"
    assert storage.read_range(url, 10, 0) == b""
    assert (storage.size(url), storage.exists(url), storage.exists(storage.join(root, "a"))) == (10, True, False)
    with storage.open_stream(url) as stream:
        assert (stream.read(4), stream.read(), stream.read()) == (b"0123", b"456789", b"")
    storage.download(url, tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == b"0123456789"
    storage.put(url, b"")
    assert storage.read(url) == b""


def test_a_range_beyond_the_end_is_corrupt(root: str) -> None:
    url = storage.join(root, "short")
    storage.put(url, b"0123456789")
    with pytest.raises(Corrupt, match=r"holds 2 of the 5 bytes asked for at 8"):
        storage.read_range(url, 8, 5)
    with pytest.raises(Corrupt, match=r"holds 0 of the 1 bytes asked for at 99"):
        storage.read_range(url, 99, 1)


def test_what_is_absent_is_not_found(root: str) -> None:
    url = storage.join(root, "absent")
    for call in (storage.read, storage.size, storage.open_stream, storage.modified):
        with pytest.raises(NotFound, match="absent does not exist"):
            call(url)
    with pytest.raises(NotFound):
        storage.read_range(url, 0, 1)
    storage.delete(url)
    assert (storage.exists(url), storage.list_names(root), storage.folders(root)) == (False, [], [])


def test_listings_are_sorted_recursive_and_relative(root: str) -> None:
    for name in ("b/2.json", "b/10.json", "a.json", "b/c/d é.json", "bb/x"):
        storage.put(storage.join(root, name), name.encode())
    assert storage.list_names(root) == sorted(["a.json", "b/10.json", "b/2.json", "b/c/d é.json", "bb/x"])
    assert storage.list_names(storage.join(root, "b")) == ["10.json", "2.json", "c/d é.json"]
    assert storage.folders(root) == ["b", "bb"]
    assert storage.read(storage.join(root, "b", "c/d é.json")) == "b/c/d é.json".encode()
    storage.delete(storage.join(root, "b/2.json"))
    assert storage.list_names(storage.join(root, "b")) == ["10.json", "c/d é.json"]


def test_put_if_absent_writes_once(root: str) -> None:
    url = storage.join(root, "records", "s.json")
    assert storage.put_if_absent(url, b"first") is True
    assert storage.put_if_absent(url, b"second") is False
    assert storage.put_if_absent(url, b"first") is False  # equal content is still someone else's
    assert storage.read(url) == b"first"
    storage.delete(url)
    assert storage.put_if_absent(url, b"second") is True


def contest(url: str, writers: int) -> list[bool]:
    """What each of some writers is told that put their own number in the same place at the same time."""
    outcomes, barrier = [False] * writers, threading.Barrier(writers)

    def write(number: int) -> None:
        barrier.wait()
        outcomes[number] = storage.put_if_absent(url, b"%d" % number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_of_many_writers_one_is_told_true(root: str) -> None:
    url = storage.join(root, "contested")
    outcomes = contest(url, 8)
    assert outcomes.count(True) == 1
    assert storage.read(url) == b"%d" % outcomes.index(True)


def test_a_rename_in_place_of_the_link_would_tell_all_of_them_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: look, then rename, is no commit."""
    barrier, replace = threading.Barrier(4), os.replace

    def rename(source: Path, target: Path) -> None:
        barrier.wait()
        replace(source, target)

    monkeypatch.setattr(os, "link", rename)
    assert contest(str(tmp_path / "x"), 4) == [True] * 4


def test_names_are_joined_and_schemes_known(tmp_path: Path) -> None:
    assert storage.join("s3://b/x/", "a/b", "/c") == "s3://b/x/a/b/c"
    assert storage.join("/data", "", "a") == "/data/a"
    assert storage.join("/", "a") == "/a"
    assert [storage.is_local(url) for url in ("/a", "a", "file:///a", "s3://b/a", "gs://b/a")] == [True] * 3 + [
        False
    ] * 2
    assert storage.local_path("file:///a%20b/c") == Path("/a b/c")
    with pytest.raises(UsageError, match="not a local path"):
        storage.local_path("s3://b/a")
    with pytest.raises(UsageError, match="unknown scheme hdfs://"):
        storage.read("hdfs://a")
    with pytest.raises(UsageError, match="names no bucket"):
        storage.read("s3:///a")


@given(data=st.binary(max_size=300), cuts=st.tuples(st.integers(0, 300), st.integers(0, 300)))
def test_any_range_is_the_slice_or_corrupt(tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: Any) -> None:
    url = str(tmp_path_factory.getbasetemp() / "ranges.bin")
    storage.put(url, data)
    start, length = cuts
    if start + length <= len(data) or length == 0:
        assert storage.read_range(url, start, length) == data[start : start + length]
    else:
        with pytest.raises(Corrupt):
            storage.read_range(url, start, length)


# ---- local: full disks, kills ----


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB. Mounting needs root, so elsewhere the test is left to the file size limit below."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(full_disk: Path, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(3 << 20))
    storage.put(str(full_disk / "kept"), b"before")
    for write in (
        lambda: storage.put(str(full_disk / "kept"), bytes(3 << 20)),
        lambda: storage.put_if_absent(str(full_disk / "new"), bytes(3 << 20)),
        lambda: storage.put_file(str(full_disk / "file"), big),
        lambda: storage.download(str(big), full_disk / "copy"),
    ):
        with pytest.raises(TriplaneError, match=r"no space is left to write .*: free some or choose another root"):
            write()
    assert _names(full_disk) == ["kept"]
    assert storage.read(str(full_disk / "kept")) == b"before"


WRITE_TOO_MUCH = """
import resource, signal, sys
from triplane import storage
from triplane.errors import TriplaneError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    storage.put_if_absent(sys.argv[1], bytes(200_000))
except TriplaneError as error:
    print(error)
"""


def test_a_limit_on_file_size_is_the_same_sentence(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WRITE_TOO_MUCH, tmp_path / "x"], capture_output=True, text=True)
    assert done.stdout.startswith("no space is left to write") and "File too large" in done.stdout
    assert _names(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # of this process: unchanged


def test_a_failed_sync_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "a").mkdir()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(TriplaneError, match=r"cannot write .*x \(Input/output error\)"):
        storage.put(str(tmp_path / "a" / "x"), b"data")
    assert _names(tmp_path) == []


def test_a_file_where_a_folder_should_be_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TriplaneError, match="cannot write") as caught:
        storage.put(str(tmp_path / "file" / "x"), b"")
    assert not isinstance(caught.value, NotFound)


def test_a_file_system_without_links_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(TriplaneError, match=r"x has no hard links, which a commit needs"):
        storage.put_if_absent(str(tmp_path / "x"), b"data")
    assert _names(tmp_path) == []


def test_the_folder_is_synced_after_the_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that a power cut asks for: content, then the name, then the folder that holds the name."""
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def seen_fsync(descriptor: int) -> None:
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"
        steps.append(f"sync {kind}")
        fsync(descriptor)

    def seen_link(source: Path, target: Path) -> None:
        steps.append("link")
        link(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "link", seen_link)
    assert storage.put_if_absent(str(tmp_path / "x"), b"data")
    assert steps == ["sync file", "link", "sync folder"]


def test_temporaries_are_leftovers_and_not_objects(tmp_path: Path) -> None:
    storage.put(str(tmp_path / "a" / "x"), b"data")
    (tmp_path / "a" / ".y.0123456789abcdef.partial").write_bytes(b"ha")
    others = ["a/.y.0123.partial", "a/movie.partial", "a/y.0123456789abcdef.partial"]  # not ours: objects as any
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    assert storage.list_names(str(tmp_path)) == sorted([*others, "a/x"])
    (left,) = storage.leftovers(str(tmp_path))
    assert (left.name, left.bytes) == ("a/.y.0123456789abcdef.partial", 2)
    storage.delete_leftover(str(tmp_path), left)
    assert storage.leftovers(str(tmp_path)) == [] and len(_names(tmp_path)) == 4


def test_a_writer_that_is_killed_leaves_a_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", lambda *_: None)
    monkeypatch.setattr(Path, "unlink", lambda *_: None)
    storage.put(str(tmp_path / "x.npy"), b"data")
    assert [left.bytes for left in storage.leftovers(str(tmp_path))] == [4]
    assert storage.list_names(str(tmp_path)) == []


def test_a_file_of_a_task_gets_a_second_name_and_a_users_file_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    synced: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), sync(descriptor)))
    for folder, is_linked in (("triplane-abc_1234", True), ("mine", False), ("triplane-abc_1234/deep", False)):
        source, target = tmp_path / folder / "file", tmp_path / "root" / folder / "object"
        source.parent.mkdir()
        source.write_bytes(b"whole")
        storage.put_file(str(target), source)
        storage.put_file(str(target), source)  # replaces itself
        assert target.read_bytes() == source.read_bytes() == b"whole"
        assert (target.stat().st_ino == source.stat().st_ino) is is_linked
        assert {target.stat().st_ino, target.parent.stat().st_ino} <= set(synced)
        assert [path.name for path in target.parent.glob(".*")] == []
        source.unlink()
        assert target.read_bytes() == b"whole"


def test_where_there_are_no_links_a_file_of_a_task_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "link", refuse)
    source = tmp_path / "triplane-abcdefgh" / "file"
    source.parent.mkdir()
    source.write_bytes(b"whole")
    storage.put_file(str(tmp_path / "object"), source)
    assert (tmp_path / "object").read_bytes() == b"whole"
    assert (tmp_path / "object").stat().st_ino != source.stat().st_ino

"""What only S3 has: multipart uploads, ETags, buckets and endpoints, clients and forks."""

import os
import tracemalloc
from pathlib import Path

import pytest

from triplane import retry, storage, storage_s3
from triplane.errors import Corrupt, NotFound, TriplaneError


def test_a_large_file_goes_up_in_parts(s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_s3, "ONE_PUT_BYTES", 1 << 20)
    monkeypatch.setattr(storage_s3, "PART_BYTES", 5 << 20)
    data = bytes(range(256)) * (11 * 4096) + b"tail"
    (tmp_path / "big").write_bytes(data)
    url = storage.join(s3_root, "big")
    storage.put_file(url, tmp_path / "big")
    bucket, key = storage_s3.split(url)
    assert storage_s3.client().head_object(Bucket=bucket, Key=key)["ETag"].endswith('-3"')  # three parts
    assert storage.read(url) == data
    assert storage.leftovers(s3_root) == []


def test_large_objects_pass_through_little_memory(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_s3, "ONE_PUT_BYTES", 1 << 20)
    monkeypatch.setattr(storage_s3, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(storage_s3, "STREAM_BYTES", 4 << 20)
    url, length = storage.join(s3_root, "big"), 60 << 20
    with (tmp_path / "big").open("wb") as file:
        file.truncate(length)
    storage_s3.client()  # its modules are not what is measured
    tracemalloc.start()
    try:
        storage.put_file(url, tmp_path / "big")
        sent = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        storage.download(url, tmp_path / "back")
        received = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert storage.size(url) == (tmp_path / "back").stat().st_size == length
    assert sent < 40 << 20 and received < 16 << 20  # four parts; a few reads of 4 MiB


def test_an_upload_that_fails_is_aborted(s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_s3, "ONE_PUT_BYTES", 1)
    (tmp_path / "big").write_bytes(b"data")
    url = storage.join(s3_root, "big")

    def fail(*_: object) -> None:
        raise TriplaneError("parts failed")

    monkeypatch.setattr(storage_s3, "_upload_parts", fail)
    with pytest.raises(TriplaneError, match="parts failed"):
        storage.put_file(url, tmp_path / "big")
    assert (storage.leftovers(s3_root), storage.exists(url)) == ([], False)


def test_an_unfinished_upload_is_a_leftover(s3_root: str) -> None:
    bucket, key = storage_s3.split(storage.join(s3_root, "tokens/x.npy"))
    storage_s3.client().create_multipart_upload(Bucket=bucket, Key=key)
    (left,) = storage.leftovers(s3_root)
    assert left.name.startswith("tokens/x.npy?") and storage.list_names(s3_root) == []
    storage.delete_leftover(s3_root, left)
    storage.delete_leftover(s3_root, left)  # gone already: fine
    assert storage.leftovers(s3_root) == []


def test_a_stream_notices_that_its_object_was_replaced(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_s3, "STREAM_BYTES", 4)
    url = storage.join(s3_root, "x")
    storage.put(url, b"01234567")
    with storage.open_stream(url) as stream:
        assert stream.read(4) == b"0123"
        storage.put(url, b"abcdefgh")
        with pytest.raises(Corrupt, match="was replaced while it was read"):
            stream.read(4)


def test_a_missing_bucket_and_a_wrong_endpoint_are_named(
    s3_root: str, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound, match="bucket no-such-bucket-here does not exist at http"):
        storage.list_names("s3://no-such-bucket-here/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv(retry.DEADLINE_VARIABLE, "0.2")
    with pytest.raises(TriplaneError, match=r"read s3://.* failed \d+ times in .*: check the endpoint"):
        storage.read(storage.join(s3_root, "x"))


def test_one_client_an_endpoint_and_another_after_a_fork(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = storage_s3.client()
    assert storage_s3.client() is mine
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert storage_s3.client() is not mine
    monkeypatch.undo()
    with storage_s3._lock:  # as if another thread of the parent held it at the fork
        child = os.fork()
        if child == 0:
            fresh = storage_s3.client() is not mine and storage.list_names(s3_root) == []
            os._exit(0 if fresh else 1)
    assert os.waitpid(child, 0)[1] == 0

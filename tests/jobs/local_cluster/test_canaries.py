"""The search for secrets finds one in plain files and in compressed ones, and each once; the look for listeners tells loopback from the rest."""

import gzip
import io
import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.jobs.local_cluster import canaries, listening

SECRET = {"key": "canary-Zk3/vT9+qLw0pXs8RmYb"}


def parquet(raw: bytes) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": [raw.decode()] * 9}), stream, compression="zstd")
    return stream.getvalue()


FORMS = {"plain": bytes, "gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress, "parquet": parquet}


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_found_and_nothing_else(tmp_path: Path, form: str) -> None:
    (tmp_path / "a").mkdir()
    for name, text in (("with", f"before {SECRET['key']} after"), ("without", "before canary-Zk3 after")):
        (tmp_path / "a" / name).write_bytes(FORMS[form](text.encode()))
    assert canaries.found_in(canaries.files(tmp_path), SECRET) == [f"{tmp_path}/a/with: key"]
    assert canaries.found_in(canaries.files(tmp_path, but=[tmp_path / "a" / "with"]), SECRET) == []


def test_a_file_that_is_cut_off_is_searched_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"x" * 1000)[:20] + SECRET["key"].encode())
    assert len(canaries.found_in(canaries.files(tmp_path), SECRET)) == 1


@pytest.mark.parametrize(
    ("family", "address", "loopback"),
    [
        (socket.AF_INET, "127.0.0.1", True),
        (socket.AF_INET, "0.0.0.0", False),
        (socket.AF_INET6, "::1", True),
        (socket.AF_INET6, "::ffff:127.0.0.1", True),
        (socket.AF_INET6, "::", False),
    ],
)
def test_a_listener_is_seen_where_it_listens(family: int, address: str, loopback: bool) -> None:
    with socket.socket(family) as server:
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((address, 0))
        assert listening.of([os.getpid()]) == [] or server.getsockname()[1] not in {
            one.port for one in listening.of([os.getpid()])
        }
        server.listen()
        (found,) = [one for one in listening.of([os.getpid()]) if one.port == server.getsockname()[1]]
        assert (found.address, found.is_loopback, found.pid) == (address, loopback, os.getpid())

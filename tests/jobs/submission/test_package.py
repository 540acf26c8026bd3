"""The wheel that is sent: the same bytes for the same files, what pip takes for a wheel, and nothing that lies beside the packages."""

import csv
import functools
import hashlib
import io
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

import jobs
from jobs.submission import package

ROOT = Path(jobs.__file__).parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_holds_the_packages_and_nothing_else() -> None:
    names = package.entries()
    tops = {name.split("/")[0] for name in names}
    (about,) = tops - set(package.PACKAGES)
    assert about.startswith("triplane-") and about.endswith(".dist-info")
    assert {"jobs/train.py", "jobs/recipes/models/tiny.yaml", "evalplane/suites.yaml"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or "/." in name or name.startswith(".")]
    assert "triplane = jobs.cli:app" in names[f"{about}/entry_points.txt"].decode()


def test_hidden_files_and_caches_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "jobs/__init__.py",
        "jobs/__pycache__/x.nbc",
        "jobs/.git/config",
        ".git/HEAD",
        "data/big",
        "jobs/.env",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    monkeypatch.setattr(jobs, "__file__", str(tmp_path / "jobs" / "__init__.py"))
    assert [name for name in package.entries() if ".dist-info" not in name] == ["jobs/__init__.py"]


def test_the_record_is_right() -> None:
    files = package.entries()
    (record,) = [name for name in files if name.endswith("/RECORD")]
    rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(files[record].decode()))}
    assert set(rows) == set(files)
    assert rows.pop(record) == ["", ""]
    for name, (digest, size) in rows.items():
        wanted = urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        assert (digest, int(size)) == (f"sha256={wanted}", len(files[name])), name


def test_it_is_built_once_for_a_content(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "entries", functools.cache(package.entries))  # a file may be edited meanwhile
    first = package.wheel()
    assert first.parent.parent == cache / "triplane" / "wheels"
    before, written = first.read_bytes(), first.stat().st_mtime_ns
    assert package.wheel() == first and first.stat().st_mtime_ns == written
    first.unlink()
    assert package.wheel().read_bytes() == before
    assert package.wheel(".zip").read_bytes() == before
    assert [path.name for path in first.parent.iterdir() if path.suffix not in (".whl", ".zip")] == []
    with zipfile.ZipFile(first) as archive:
        assert archive.testzip() is None


def test_another_content_is_another_wheel() -> None:
    files = {"a": b"1", "b": b"2"}
    assert package.digest(files) == package.digest(dict(reversed(files.items())))
    assert package.archive(files) == package.archive(dict(reversed(files.items())))
    assert (
        len({package.digest(one) for one in (files, {"a": b"1"}, {"a": b"2", "b": b"1"}, {"a": b"1", "b": b"3"})}) == 4
    )


@pytest.mark.parametrize(
    ("bytes_", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1234, "1.2 kB"), (704_604, "704.6 kB"), (2_000_000_000, "2000.0 MB")],
)
def test_sizes(bytes_: int, said: str) -> None:
    assert package.size(bytes_) == said

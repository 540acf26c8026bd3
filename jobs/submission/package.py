"""The code that is sent with a job: our packages as a wheel, built from the files this process imports.

A checkout or an installation -> the same bytes for the same files (no time, no order of a file system in it), without an index, a compiler or a
scratch copy; whatever lies beside the packages (.git, data, runs) is not looked at. Source: the wheel format,
https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

import base64
import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import jobs
from triplane.errors import TriplaneError

PACKAGES = ("triplane", "dataplane", "trainplane", "evalplane", "jobs")
DISTRIBUTION = "triplane"
NO_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest a ZIP archive can say


def entries() -> dict[str, bytes]:
    """Every file of the wheel by its name inside. TriplaneError when this is no installed distribution (`pip install -e .` makes one)."""
    found = _sources(Path(jobs.__file__).parent.parent)
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise TriplaneError(f"{DISTRIBUTION} is not installed here: run `pip install -e .` in its checkout") from error
    folder = f"{DISTRIBUTION}-{distribution.version}.dist-info"
    about = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    found[f"{folder}/METADATA"] = about.encode()
    found[f"{folder}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: triplane\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    found[f"{folder}/entry_points.txt"] = (distribution.read_text("entry_points.txt") or "").encode()
    found[f"{folder}/RECORD"] = _record(found, f"{folder}/RECORD")
    return found


def file_name() -> str:
    return f"{DISTRIBUTION}-{metadata.version(DISTRIBUTION)}-py3-none-any.whl"


def digest(files: Mapping[str, bytes]) -> str:
    """64 hex digits of names and contents."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\n{hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return total.hexdigest()


def archive(files: Mapping[str, bytes]) -> bytes:
    """A ZIP archive of the files: the same bytes for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, NO_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            opened.writestr(entry, files[name])
    return buffer.getvalue()


def wheel(suffix: str = ".whl") -> Path:
    """The wheel as a file, built once for its content. `suffix`: `.zip` for what looks at names (a wheel is a ZIP archive)."""
    files = entries()
    path = _cache() / digest(files)[:16] / (file_name().removesuffix(".whl") + suffix)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
            scratch.write(archive(files))
        os.replace(scratch.name, path)  # two that build at once write the same bytes
    return path


def size(num_bytes: int) -> str:
    """1234567 -> '1.2 MB'."""
    value = float(num_bytes)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000 or unit == "MB":
            break
        value /= 1000
    return f"{num_bytes} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def _sources(root: Path) -> dict[str, bytes]:
    found = {}
    for package in PACKAGES:
        for path in (root / package).rglob("*"):
            parts = path.relative_to(root).parts
            if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
                found["/".join(parts)] = path.read_bytes()
    return found


def _record(files: Mapping[str, bytes], itself: str) -> bytes:
    lines = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in sorted(files.items())
    ]
    return "\n".join([*lines, f"{itself},,", ""]).encode()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triplane" / "wheels"

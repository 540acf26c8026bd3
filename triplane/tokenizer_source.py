"""Where a `tokenizer.json` is: a path, a folder, an artifact, a URL or a Hub id -> its bytes.

Source: `huggingface_hub.hf_hub_download`, which serves its cache first and asks `HF_ENDPOINT` (https://huggingface.co).
"""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from triplane import storage
from triplane.errors import NotFound, UsageError

FILE = "tokenizer.json"
DEFAULT_ENDPOINT = "https://huggingface.co"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def read(source: str) -> bytes:
    """The bytes of a tokenizer.json. Raises UsageError that names every place looked at, Corrupt for an artifact that was changed."""
    if _is_file(source):
        looked = [source]
        found = _read_if_there(source)
    else:
        looked = [storage.join(source, FILE), storage.join(source, "manifest.json")]
        found = _read_if_there(looked[0]) or _read_artifact(source)
        if found is None and _HUB_ID.fullmatch(source) and not Path(source).exists():
            found = _download(source, looked)
    if found is None:
        raise UsageError(
            f"no tokenizer at {' or '.join(looked)}: give a {FILE}, a folder or artifact that holds one, or a Hub id"
        )
    return found


def _is_file(source: str) -> bool:
    return source.endswith(".json") or (storage.is_local(source) and storage.local_path(source).is_file())


def endpoint() -> str:
    """The Hub that `HF_ENDPOINT` names. Raises UsageError if that is no http(s) URL."""
    value = os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise UsageError(f"HF_ENDPOINT is {value!r}: set it to an http(s) URL such as {DEFAULT_ENDPOINT}, or unset it")
    return value.rstrip("/")


def _read_if_there(url: str) -> bytes | None:
    try:
        return storage.read(url)
    except NotFound:
        return None


def _read_artifact(folder: str) -> bytes | None:
    """The one .json data object that an artifact's manifest names."""
    if not storage.exists(storage.join(folder, "manifest.json")):
        return None
    from triplane import artifact

    entries = [entry for entry in artifact.load_url(folder).files if entry.name.endswith(".json")]
    return artifact.read(folder, entries[0]) if len(entries) == 1 else None


def _download(hub_id: str, looked: list[str]) -> bytes:
    import huggingface_hub  # half a second, and only Hub ids need it

    hub = endpoint()
    try:
        return Path(huggingface_hub.hf_hub_download(hub_id, FILE, endpoint=hub)).read_bytes()
    except Exception as error:  # offline, no such repository, no right, no network: each its own class
        raise UsageError(
            f"no tokenizer at {' or '.join(looked)}, and the Hub at {hub} did not give {hub_id}/{FILE} ({type(error).__name__}): "
            f"check the name and the network, or download {FILE} once and give its path"
        ) from error

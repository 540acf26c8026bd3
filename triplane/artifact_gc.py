"""Removes what crashed attempts left: data objects that no record and no manifest names.

A root URL -> the names removed (or, in a dry run, that would be). Only objects whose name carries a content hash, temporaries and
unfinished uploads are ever candidates; a folder under a live lease, one with a manifest that cannot be read, and whatever is younger
than the limit stay. Source: design decision 4 (docs/adr).
"""

import time

from triplane import lease, storage
from triplane.artifact_format import CONTENT_HASH, KINDS, MANIFEST, RECORDS, manifest_from, record_from
from triplane.errors import Corrupt, NotFound, Refused
from triplane.storage import Entry


def collect_garbage(root: str, dry_run: bool, older_than_seconds: float) -> list[str]:
    """Names relative to `root`, sorted. `older_than_seconds` must exceed the time between an upload and its record."""
    limit = time.time() - older_than_seconds
    removed = []
    for kind in KINDS:
        for folder in storage.folders(storage.join(root, kind)):
            reference = f"{kind}/{folder}"
            if not lease.is_held(root, reference):
                removed += _collect_folder(root, reference, limit, dry_run)
    removed += _collect_leftovers(root, limit, dry_run)
    removed += lease.prune(root, limit, dry_run)
    return sorted(removed)


def _collect_folder(root: str, reference: str, limit: float, dry_run: bool) -> list[str]:
    url = storage.join(root, reference)
    entries = storage.entries(url)
    old = [entry for entry in entries if entry.modified <= limit and CONTENT_HASH.search(entry.name.rsplit("/", 1)[-1])]
    named = _named(url, entries) if old else set()
    if named is None:
        return []
    garbage = [entry.name for entry in old if entry.name not in named]
    if garbage and not dry_run:
        garbage = _remove(url, garbage, limit)
    return [f"{reference}/{name}" for name in garbage]


def _remove(url: str, names: list[str], limit: float) -> list[str]:
    """Looks again first: an attempt may have been finished since the listing."""
    named = _named(url, storage.entries(url))
    removed = []
    for name in names if named is not None else []:
        target = storage.join(url, name)
        if name not in (named or ()) and _is_older(target, limit):
            storage.delete(target)
            removed.append(name)
    return removed


def _is_older(url: str, limit: float) -> bool:
    try:
        return storage.modified(url) <= limit
    except NotFound:
        return False


def _named(url: str, entries: list[Entry]) -> set[str] | None:
    """What the records and manifests below a folder name (checkpoints nest); None if one of them cannot be understood."""
    named = set()
    try:
        for name in (entry.name for entry in entries):
            if (folder := _described_folder(name)) is not None:
                files = _files(storage.join(url, name))
                named |= {f"{folder}{file}" for file in files}
    except (Corrupt, Refused, NotFound):
        return None
    return named


def _described_folder(name: str) -> str | None:
    """The folder (with its slash, '' for the top) that a manifest or record describes; None for any other object."""
    if name == MANIFEST or name.endswith(f"/{MANIFEST}"):
        return name.removesuffix(MANIFEST)
    head, found, _ = f"/{name}".partition(f"/{RECORDS}/")
    return f"{head}/".removeprefix("/") if found and name.endswith(".json") else None


def _files(url: str) -> list[str]:
    data = storage.read(url)
    described = manifest_from(data, url) if url.endswith(f"/{MANIFEST}") else record_from(data, url)
    return [file.name for file in described.files]


def _collect_leftovers(root: str, limit: float, dry_run: bool) -> list[str]:
    old = [entry for entry in storage.leftovers(root) if entry.modified <= limit]
    if not dry_run:
        for entry in old:
            storage.delete_leftover(root, entry)
    return [entry.name for entry in old]

"""Which checkpoints of a run stay. Permanent ones do; an ephemeral one goes when a newer checkpoint stands.

(run, its newest checkpoint) -> the folders removed. The manifest goes first, so that no reader finds half a checkpoint; then the record,
so that no restart commits it again; then the files. Its ledger rows are in the next checkpoint too, until a permanent one has taken them.
"""

import json
from collections.abc import Iterable

from trainplane import checkpoint
from triplane import artifact, storage
from triplane.artifact import Draft, Manifest
from triplane.artifact_format import MANIFEST, RECORDS
from triplane.errors import NotFound
from triplane.lm.model_source import CHECKPOINTS
from triplane.progress import log


def is_permanent(manifest: Manifest) -> bool:
    """Checkpoints of earlier releases do not say, and are."""
    return bool(manifest.metadata.get("permanent", True))


def remove_superseded(run: Draft, newest_tokens: int) -> list[str]:
    """Removes ephemeral checkpoints older than the newest, but for those that another run went on from -> their names."""
    removed = []
    kept: set[str] | None = None
    for name in storage.folders(storage.join(run.url, CHECKPOINTS)):
        url = storage.join(run.url, CHECKPOINTS, name)
        if name >= checkpoint.folder_name(newest_tokens) or (manifest := _manifest(url)) is None:
            continue
        if not is_permanent(manifest):
            kept = _gone_on_from(run) if kept is None else kept
            if manifest.identity not in kept:
                remove(url)
                log("removed checkpoint", run=run.reference, checkpoint=name)
                removed.append(name)
    return removed


def _manifest(url: str) -> Manifest | None:
    try:
        return artifact.load_url(url)
    except NotFound:
        return None


def _gone_on_from(run: Draft) -> set[str]:
    """Identities of the checkpoints that runs of this name, begun with another recipe, went on from."""
    runs = run.url.rpartition("/")[0]
    found = set()
    for folder in storage.folders(runs):
        started = storage.join(runs, folder, "started.json")
        if folder.startswith(f"{run.name}@") and storage.exists(started):
            found.add(json.loads(storage.read(started))["inputs"].get("continues_identity"))
    return found - {None}


def remove(url: str) -> None:
    """Removes a checkpoint, so that a reader finds all of it or nothing, and a crash leaves either or objects that `triplane gc` removes."""
    names = storage.list_names(url)
    for name in sorted(names, key=_place):
        storage.delete(storage.join(url, name))


def _place(name: str) -> int:
    return 0 if name == MANIFEST else 1 if name.startswith(f"{RECORDS}/") else 2


def set_aside(urls: Iterable[str]) -> None:
    """Makes checkpoints that cannot be read no checkpoints any more, their files untouched: training comes to their token counts again."""
    for url in urls:
        for name in storage.list_names(url):
            if _place(name) < 2:
                storage.delete(storage.join(url, name))

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
from triplane.lm.model_source import CHECKPOINTS, checkpoint_folders
from triplane.progress import log


def is_permanent(manifest: Manifest) -> bool:
    """Checkpoints of earlier releases do not say, and are."""
    return bool(manifest.metadata.get("permanent", True))


def remove_superseded(run: Draft, newest_tokens: int, settled: set[str] | None = None) -> list[str]:
    """Removes ephemeral checkpoints older than the newest, but for those that another run went on from -> their names.

    `settled`: names that need no look any more, which this adds to. Handed in again, a commit late in a run reads one manifest and not that of
    each checkpoint before it.
    """
    settled = set() if settled is None else settled
    removed = []
    for name in checkpoint_folders(run.url):
        if name in settled or name >= checkpoint.folder_name(newest_tokens):
            continue
        url = storage.join(run.url, CHECKPOINTS, name)
        manifest = _manifest(url)
        if manifest is not None and not is_permanent(manifest) and manifest.identity not in _gone_on_from(run):
            remove(url)
            log("removed checkpoint", run=run.reference, checkpoint=name)
            removed.append(name)
        settled.add(name)
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

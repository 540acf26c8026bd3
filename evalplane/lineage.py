"""What a model was trained on: from a checkpoint through its runs and mixes to the sources of a build.

In: a root and the URL of a checkpoint of ours. Out: its sources as `triplane.contamination_status.pair`, nothing for a Hugging Face folder or an
endpoint. A part that is gone, that is no source of a build, or that does not say what it was made of (released weights, a mix of listed files) is
named too, as nobody searched it.
"""

import json
import re
from collections.abc import Iterable

from triplane import artifact, contamination_status, storage
from triplane.errors import NotFound, TriplaneError

_RUN = re.compile(r"checkpoint/(?P<run>[^@/]+@[^@/]+)\.tokens-\d+|(?P<inside>run/[^/]+)/checkpoints/.+")
STARTED = "started.json"  # what a run that is not finished was begun with
FOLLOWED = ("run", "checkpoint", "mix")


def sources(root: str, url: str) -> list[str]:
    """Of everything the checkpoint and those it started from were trained on, also after its own tokens were seen; each once."""
    try:
        waiting = _trained_on(artifact.load_url(url).parents)
    except TriplaneError:
        return []
    found: dict[str, None] = {}
    seen: set[str] = set()
    while waiting:
        reference = _artifact_of(waiting.pop())
        kind = reference.partition("/")[0]
        if reference in seen:
            continue
        seen.add(reference)
        if kind == "tokens":
            found[_source(root, reference)] = None
        elif kind in FOLLOWED and (parents := _parents(root, reference)):
            waiting += parents
        else:
            found[reference] = None
    return sorted(found)


def _artifact_of(reference: str) -> str:
    """The run of a checkpoint that lies in one."""
    inside = _RUN.fullmatch(reference)
    return reference if inside is None else inside["inside"] or f"run/{inside['run']}"


def _trained_on(parents: Iterable[str]) -> list[str]:
    return [one for one in parents if not one.startswith("tokenizer/")]


def _parents(root: str, reference: str) -> list[str]:
    """Nothing where the artifact is gone, or does not say."""
    try:
        return _trained_on(artifact.load(root, reference).parents)
    except NotFound:
        pass
    try:
        begun = json.loads(storage.read(storage.join(root, reference, STARTED)))
        return [value for name, value in begun["inputs"].items() if not name.endswith("_identity")]
    except (NotFound, ValueError, LookupError, TypeError, AttributeError):
        return []


def _source(root: str, tokens: str) -> str:
    """The selection and the attributes that tokens were made by; their own name where they are not of a build."""
    try:
        manifest = artifact.load(root, tokens)
        selection = manifest.metadata.get("selection")
        parents = () if selection is None else artifact.load(root, selection).parents
    except NotFound:
        return tokens
    mine = [one for one in parents if one.startswith(f"attributes/{manifest.name}@")]
    return contamination_status.pair(str(selection), mine[0]) if mine else tokens

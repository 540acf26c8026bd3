"""A training run as storage shows it to whoever watches it. Read only.

(root, reference) -> the run, its committed checkpoints, whether it is over, what a checkpoint cost. Of the trainer nothing is imported; what
both know is the layout: `run/NAME@VERSION/` with `started.json`, `checkpoints/tokens-N/manifest.json`, and `manifest.json` at its end.
"""

import difflib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from evalplane import models, training
from evalplane.models import Model
from triplane import artifact, storage
from triplane.artifact_format import MANIFEST, split_reference
from triplane.errors import Corrupt, NotFound, TriplaneError, UsageError
from triplane.lm.model_source import CHECKPOINTS, checkpoint_folders

KIND = "run"
STARTED = "started.json"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint that stays; `tokens` seen by its run."""

    url: str
    tokens: int
    model: Model


@dataclass
class Found:
    """What a look at a run's checkpoints found: by tokens, the sound ones and what is wrong with the others."""

    sound: dict[int, Checkpoint] = field(default_factory=dict)
    damaged: dict[int, TriplaneError] = field(default_factory=dict)


def find(root: str, reference: str) -> str:
    """NAME, run/NAME or run/NAME@VERSION -> run/NAME@VERSION, begun or finished. NotFound with the nearest names, UsageError where a name
    has several versions: which one is meant is never decided by a clock."""
    kind, name, version = split_reference(reference if "/" in reference else f"{KIND}/{reference}")
    if kind != KIND:
        raise UsageError(f"{reference} is no run: write run/NAME or run/NAME@VERSION")
    begun = storage.folders(storage.join(root, KIND))
    matching = [one for one in begun if one == f"{name}@{version}" or (version is None and one.startswith(f"{name}@"))]
    if len(matching) > 1:
        raise UsageError(
            f"{reference} was begun more than once: name one of {', '.join(f'run/{one}' for one in matching)}"
        )
    if not matching:
        wanted, names = (
            (name, {one.partition("@")[0] for one in begun}) if version is None else (f"{name}@{version}", begun)
        )
        near = difflib.get_close_matches(wanted, sorted(names), 3)
        hint = f"; did you mean {' or '.join(f'run/{one}' for one in near)}?" if near else ""
        raise NotFound(f"no run/{wanted} was begun at {root}{hint}: check name and root, or start the run")
    return f"{KIND}/{matching[0]}"


def is_finished(root: str, run: str) -> bool:
    """Whether the run has committed its end: no checkpoint comes after that."""
    return storage.exists(storage.join(root, run, MANIFEST))


def look(
    root: str, run: str, tokenizer: str | None, known: Found, told: Collection[int] = (), only_one: bool = False
) -> None:
    """Adds to `known` the checkpoints committed since, or one of them, but for those already told of. Those that training will remove again,
    and those that are not committed yet, are none. Raises UsageError where no tokenizer is recorded and none is given."""
    url = storage.join(root, run)
    for name in checkpoint_folders(url):
        tokens = tokens_of(name)
        if tokens in known.sound or tokens in told:
            continue
        if only_one and known.sound:
            return
        where = storage.join(url, CHECKPOINTS, name)
        try:
            if artifact.load_url(where).metadata.get("permanent", True):
                known.sound[tokens] = Checkpoint(where, tokens, models.locate(where, root, tokenizer))
                known.damaged.pop(tokens, None)
        except NotFound:
            known.damaged.pop(tokens, None)  # removed since
        except Corrupt as error:
            known.damaged[tokens] = error


def tokens_of(folder: str) -> int:
    """tokens-000000000001000 -> 1000."""
    return int(folder.rpartition("tokens-")[2])


def lag_tokens(checkpoints: Collection[int], evaluated: Collection[int]) -> int:
    """How far scores are behind training: tokens of the newest checkpoint minus those of the newest one evaluated (0 while there is none)."""
    return max(checkpoints, default=0) - max(evaluated, default=0)


def trained(root: str, run: str, url: str) -> dict[str, Any] | None:
    """What was spent on a checkpoint, as `report.load_scores` says it, of an unfinished run too. None where its parents do not say."""
    spent = training.of_checkpoint(root, url) or _unfinished(root, run, url)
    return None if spent is None else {**asdict(spent), "flops": spent.flops}


def _unfinished(root: str, run: str, url: str) -> training.Training | None:
    """From the marker that a run leaves when it begins, as it has no manifest yet."""
    try:
        metadata = artifact.load_url(url).metadata
        inputs = json.loads(storage.read(storage.join(root, run, STARTED)))["inputs"]
        before = _tokens_before(root, inputs.get("parent"))
        tokens = metadata["tokens_seen"]
        parameters = training.num_parameters(metadata["model_config"])
        return None if before is None else training.Training(run.partition("/")[2], tokens, tokens + before, parameters)
    except (TriplaneError, LookupError, TypeError, ValueError):
        return None


def _tokens_before(root: str, parent: str | None) -> int | None:
    """Tokens of the checkpoint that a run started from; None where it is none of a run, or does not say."""
    if parent is None:
        return 0
    run, _, folder = parent.removeprefix("checkpoint/").rpartition(".")
    spent = training.of_checkpoint(root, storage.join(root, KIND, run, CHECKPOINTS, folder))
    return None if spent is None else spent.tokens


def ascending(found: Found) -> Sequence[Checkpoint]:
    """By tokens: the order of training, whatever any clock says."""
    return [found.sound[tokens] for tokens in sorted(found.sound)]

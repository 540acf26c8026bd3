"""What a task is called: our name, olmes' (`arc_challenge:mc::olmes`), a format (`arc_easy:mc`) or a part (`mmlu_anatomy:rc`) of it.

In: a name and the heads of all tasks. Out: the task file, and the one format or part that is meant. olmes' names are
CORE[:VARIANT][:FORMAT]::REGIME[:full] (olmes b532dd5, `oe_eval/configs/tasks.py`); `rc` is our `cloze`, `bpb` asks the bits per byte of the
gold, `full` scores every row where a thousand are drawn.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from triplane.errors import UsageError

BITS_PER_BYTE = "bpb"
_FORMATS = {"rc": "cloze"}


@dataclass(frozen=True)
class Head:
    """A task file's name, its name in olmes, what olmes puts before a part's name, variant and regime; its formats and parts."""

    name: str
    olmes: str
    olmes_part: str
    variant: str
    regime: str
    formats: tuple[str, ...]
    parts: tuple[str, ...]
    is_documents: bool
    is_sampled: bool


@dataclass(frozen=True)
class Meant:
    """The file `tasks/{task}.yaml`, the only format or part asked for (None is all of them), and whether no sample is drawn."""

    task: str
    format: str | None = None
    part: str | None = None
    is_full: bool = False


def resolve(name: str, heads: Sequence[Head], suites: Sequence[str]) -> Meant:
    """What `name` means. UsageError with the nearest names when nothing, or when two things, are called so."""
    found = [meant for head in heads for meant in _meanings(name, head)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name!r} may be {' or '.join(one.task for one in found)}: write the task's own name")
    known = sorted({*suites, *(head.name for head in heads)})
    raise UsageError(f"no suite or task is named {name!r}{_nearest(name, heads, known)}; known are {', '.join(known)}")


def _meanings(name: str, head: Head) -> Iterator[Meant]:
    unsampled = name.removesuffix(":full")
    front, _, regime = unsampled.partition("::")
    core, *modifiers = front.split(":")
    is_full = unsampled != name
    if regime not in ("", head.regime) or (is_full and not head.is_sampled):
        return
    for part in _parts(core, head):
        rest = list(modifiers)
        if head.variant in rest:
            rest.remove(head.variant)
        elif head.variant and core != head.name:
            continue
        formats = [_FORMATS.get(one, one) for one in rest]
        if not formats:
            yield Meant(head.name, None, part, is_full)
        elif len(formats) == 1 and _has(head, formats[0]):
            yield Meant(head.name, formats[0], part, is_full)


def _parts(core: str, head: Head) -> Iterator[str | None]:
    if core and core in (head.name, head.olmes):
        yield None
    for prefix in {head.name, head.olmes_part} - {""}:
        if core.startswith(f"{prefix}_") and core.removeprefix(f"{prefix}_") in head.parts:
            yield core.removeprefix(f"{prefix}_")


def _has(head: Head, format: str) -> bool:
    asks_words = {"cloze", "generate", "gold", BITS_PER_BYTE} & set(head.formats)
    return format in head.formats or (format == BITS_PER_BYTE and bool(asks_words) and not head.is_documents)


def _nearest(name: str, heads: Sequence[Head], known: Sequence[str]) -> str:
    core = re.split(r":+", name)[0]
    for head in heads:
        if core and core in (head.name, head.olmes):
            regime = f" and is {head.regime}'s" if head.olmes else ""
            return f" (the task {head.name} has the formats {', '.join(head.formats)}{regime})"
    in_parts = [f"{head.name}_{part}" for head in heads for part in head.parts]
    every = [*known, *in_parts, *(head.olmes for head in heads if head.olmes)]
    near = difflib.get_close_matches(name, known, 2) or difflib.get_close_matches(core, every, 2)
    return f" (did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?)" if near else ""


def as_artifact(name: str) -> str:
    """A name that an artifact or a file may have: `arc_easy:mc::olmes` -> `arc_easy-mc-olmes`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")

"""AI2's own lists of `.npy` files as a mix lock: paths in their order, instances counted from file sizes, nothing to verify them by.

An OLMo configuration (`data.paths` of its YAML), an OLMo-core mix (lines `label,path` with `{TOKENIZER}`) or plain lines -> a `MixLock` that takes
every file once, for the orders `olmo` and `olmo-core`. A file that is named twice is read twice, as they do. A source is the label, or the folder
below the list's common one; one that comes again later is `name#2`. The files have no checksums: the lock says so, and so does who reads it.

Source: allenai/OLMo configs/official-1124, OLMo-core 3.0.0 `olmo_core.data.mixes`; instances per file as `NumpyFSLDataset` counts them.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import yaml

from triplane import artifact, ranges, storage
from triplane.errors import Corrupt, NotFound, UsageError
from triplane.mixture import MixLock, MixShard, MixSource, summary

SIZES_AT_ONCE = 64
TOKEN_BYTES = 4
VERSION = 1


class ListedFile(NamedTuple):
    """One line: the source it is counted under ("" if the list names none), and its path or URL."""

    label: str
    path: str


def parse(text: str, name: str, tokenizer: str | None = None) -> list[ListedFile]:
    """The files of a list in its order. `tokenizer` replaces {TOKENIZER}. `name` ends in .yaml, .yml or anything else for lines.

    Raises UsageError for what cannot be replayed: no paths, tokens that are not uint32, label masks, an unreplaced {TOKENIZER}.
    """
    files = _from_yaml(text, name) if name.endswith((".yaml", ".yml")) else _from_lines(text)
    if tokenizer is not None:
        files = [file._replace(path=file.path.replace("{TOKENIZER}", tokenizer)) for file in files]
    if not files:
        raise UsageError(f"{name} lists no file: give an OLMo configuration, an OLMo-core mix or one path a line")
    odd = next((file.path for file in files if not file.path.endswith(".npy") or "{" in file.path), None)
    if odd is not None:
        raise UsageError(f"{name} lists {odd}: name .npy files, and the tokenizer if the paths hold {{TOKENIZER}}")
    return files


def _from_lines(text: str) -> list[ListedFile]:
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.rpartition(",") for line in lines if line and not line.startswith("#"))
    return [ListedFile(label.strip(), path.strip()) for label, _, path in pairs]


def _from_yaml(text: str, name: str) -> list[ListedFile]:
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(
            f"{name} is not YAML ({str(error).splitlines()[0]}): give the file as AI2 published it"
        ) from error
    if isinstance(value, dict) and isinstance(data := value.get("data"), dict):
        if data.get("memmap_dtype") != "uint32" or data.get("label_mask_paths"):
            raise UsageError(
                f"{name} has data.memmap_dtype {data.get('memmap_dtype')} (absent: uint16), label masks: "
                f"{bool(data.get('label_mask_paths'))}; only uint32 tokens without label masks are replayed"
            )
        value = data.get("paths")
    if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
        raise UsageError(f"{name} has no list of paths: give data.paths, as in OLMo's configurations, or a list alone")
    return [ListedFile("", path) for path in value]


def below(base: str | None, files: Sequence[ListedFile]) -> list[ListedFile]:
    """The files, those whose path is no URL put below `base` if there is one."""
    return [
        file if base is None or _is_absolute(file.path) else file._replace(path=storage.join(base, file.path))
        for file in files
    ]


def make_lock(
    files: Sequence[ListedFile],
    root: str,
    name: str,
    sequence_length: int,
    tokenizer_sha256: str,
    vocab_size: int,
    eos_id: int,
) -> MixLock:
    """Asks each file for its size. Paths that are no URL lie below `root`. Raises NotFound, Corrupt for half a token."""
    with ThreadPoolExecutor(SIZES_AT_ONCE, "size") as pool:
        urls = [file.path if _is_absolute(file.path) else storage.join(root, file.path) for file in files]
        sizes = list(pool.map(_size, urls))
    shards = [
        MixShard(source, file.path, None, None, None, None, num_tokens, num_tokens // sequence_length, "")
        for source, file, num_tokens in zip(_sources(files), files, sizes, strict=True)
    ]
    counts = [(source, sum(s.num_instances for s in group)) for source, group in groupby(shards, lambda s: s.source)]
    total = sum(count for _, count in counts)
    if not total:
        raise UsageError(f"the files of {name} hold no instance of {sequence_length} tokens: use a shorter sequence")
    sources = tuple(MixSource(source, 0, count, count, count / total) for source, count in counts)
    return MixLock(name, sequence_length, tokenizer_sha256, vocab_size, eos_id, sources, tuple(shards))


def _is_absolute(path: str) -> bool:
    return "://" in path or path.startswith("/")


def _size(url: str) -> int:
    try:
        found = ranges.size(url)
    except NotFound as error:
        raise NotFound(f"{url} is in the list and does not exist: correct the root, or read from a mirror") from error
    if found % TOKEN_BYTES:
        raise Corrupt(f"{url} has {found} bytes, which is no whole number of uint32 tokens: copy it again")
    return found // TOKEN_BYTES


def _sources(files: Sequence[ListedFile]) -> list[str]:
    """The source of each file: its label, or the folders in which it differs from the others; numbered when it comes again."""
    folders = [PurePosixPath(file.path).parent.parts for file in files]
    shared = 0
    while all(len(parts) > shared for parts in folders) and len({parts[shared] for parts in folders}) == 1:
        shared += 1
    named = [file.label or "/".join(parts[shared:]) or "files" for file, parts in zip(files, folders, strict=True)]
    runs: dict[str, int] = {}
    found: list[str] = []
    for source, group in groupby(named):
        runs[source] = runs.get(source, 0) + 1
        found += [source if runs[source] == 1 else f"{source}#{runs[source]}"] * len(list(group))
    return found


def commit(root: str, lock: MixLock, listed: str) -> artifact.Manifest:
    """Commits a lock as `mix/{name}@...`, so that a run can name it; `listed` says where the list came from. Metadata say "unverified"."""
    data = lock.to_bytes()
    draft = artifact.begin(
        root,
        "mix",
        lock.name,
        inputs={"lock": hashlib.sha256(data).hexdigest()},
        recipe={"list": listed, "sequence_length_tokens": lock.sequence_length},
        stage_versions={"path_list": VERSION},
    )
    if (standing := artifact.committed(draft)) is not None:
        return standing
    entry = draft.put_bytes(data, "lock", ".json", tokens=lock.num_tokens)
    draft.record("lock", [entry], {"instances": lock.num_instances, "tokens": lock.num_tokens})
    return draft.commit(
        {
            "lock": entry.name,
            "sources": summary(lock),
            "sequence_length": lock.sequence_length,
            "num_instances": lock.num_instances,
            "unverified_shards": lock.num_unverified,
        }
    )

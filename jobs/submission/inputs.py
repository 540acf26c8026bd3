"""What a job would read, looked for before it is sent: (inspected recipe, root) -> findings at the keys that name what is missing.

Documents, tokenizers, mixes and their shards, checkpoints, models, evaluation data, and names that another run has. Nothing is written, no
weights are read. A root of None cannot be used: then only what needs none is looked at. `runs_in`: the job runs in this folder (`here`), in a
folder of a cluster, which may share this machine's disks, or in pods, which have none of its files.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from jobs.manifests.finding import Finding
from triplane import storage
from triplane.errors import NotFound, TriplaneError
from triplane.recipe import Problem
from triplane.recipe_inspection import Inspection

RunsIn = Literal["here", "cluster", "pods"]
TOKEN_BYTES = 4  # of a token in a shard, uint32
SHOWN = 3
ARTIFACTS = ("run/", "tokenizer/")
LOADERS = ("transformers:", "vllm:")  # what may stand before a model's folder


def finding(problem: Problem) -> Finding:
    """A recipe's problem as a finding: its place is file:line, or an override."""
    file, _, line = problem.place.rpartition(":")
    is_line = line.isdecimal() and bool(file)
    return Finding(file if is_line else problem.place, int(line) if is_line else 0, problem.message)


class _Notes:
    """The findings of one recipe, each noted at a key. `silent`: (scheme, host) of stores that failed to answer."""

    def __init__(self, inspection: Inspection[Any]):
        self.inspection, self.found, self.silent = inspection, list[Finding](), set[tuple[str, ...]]()

    def note(self, message: str, *location: str | int) -> None:
        one = finding(Problem(self.inspection.place(*location), message))
        if one not in self.found and not self.inspection.is_about_broken(message):
            self.found.append(one)

    @contextlib.contextmanager
    def at(self, *location: str | int) -> Iterator[None]:
        """An error inside the body is a finding at a key."""
        try:
            yield
        except TriplaneError as error:
            self.note(str(error), *location)


def of_build(inspection: Inspection[Any], root: str | None, runs_in: RunsIn) -> list[Finding]:
    """Of a build: its sources' documents, its tokenizer, and what no field says alone."""
    from dataplane import build

    notes, value = _Notes(inspection), inspection.value
    if not _is_out_of_reach(notes, value.get("tokenizer"), runs_in, "tokenizer"):
        with notes.at("tokenizer"):
            _tokenizer(value.get("tokenizer"), root)
    if inspection.likely is not None:
        for index, source in enumerate(inspection.likely.sources):
            if not _is_out_of_reach(notes, source.documents, runs_in, "sources", index, "documents"):
                _documents(notes, source, index)
        _build_misfits(notes, inspection.likely)
    if root is not None and inspection.recipe is not None and not inspection.problems and not notes.found:
        with notes.at():
            build.plan(inspection.recipe, root)
    return notes.found


def _is_out_of_reach(notes: _Notes, url: Any, runs_in: RunsIn, *location: str | int) -> bool:
    """Whether it is a file or folder that is there, but not for the job; then it is noted."""
    path = _here(url)
    if path is None or runs_in == "here" or (runs_in == "cluster" and path.is_absolute()):
        return False
    if runs_in == "pods":
        notes.note(f"{url} is of this machine, and pods do not have it: copy it to the object store", *location)
    else:
        notes.note(f"{url} is of this folder, and the job runs in another: write {path.absolute()}", *location)
    return True


def _here(url: Any) -> Path | None:
    """The path of what this machine has at a URL; artifacts are at the root."""
    if not isinstance(url, str) or url.startswith(ARTIFACTS):
        return None
    for loader in LOADERS:
        url = url.removeprefix(loader)
    is_path = url and ("://" not in url or url.startswith("file://"))
    path = storage.local_path(url) if is_path else None
    return path if path is not None and path.exists() else None


def _documents(notes: _Notes, source: Any, index: int) -> None:
    from dataplane import ingestion
    from dataplane.recipe import UNPINNED

    host = urlsplit(source.documents)[:2]
    if source.documents == UNPINNED or host in notes.silent:  # of the first, the check of names and columns speaks
        return
    try:
        ingestion.listing(source.model_copy(update={"documents": storage.absolute(source.documents)}))
    except TriplaneError as error:
        if type(error) is TriplaneError:  # it may not answer at all, and each source would wait for it as long
            notes.silent.add(host)
        notes.note(str(error), "sources", index, "documents")


def _tokenizer(location: Any, root: str | None) -> None:
    from triplane import artifact
    from triplane.tokenizer import Tokenizer

    is_artifact = isinstance(location, str) and location.startswith("tokenizer/")
    if isinstance(location, str) and not (is_artifact and root is None):
        url = artifact.artifact_url(root or "", location) if is_artifact else location
        Tokenizer.load(url).eos_id  # noqa: B018 - one without an end-of-text token is refused


def _build_misfits(notes: _Notes, build: Any) -> None:
    """`dataplane.recipe.checked` says one thing at a time: it is asked about each source, rule and mix by itself."""
    from dataplane.recipe import checked

    plain = tuple(
        one.model_copy(
            update={
                "documents": "x",
                "taggers": ("ngram_repetition",),
                "rules": (),
                "exact_dedup": False,
                "near_dedup": None,
                "label_mask": None,
                "suffixes": (),
            }
        )
        for one in build.sources
    )
    for index, source in enumerate(build.sources):
        alone = {"sources": (source.model_copy(update={"rules": ()}),), "mixes": ()}
        before = len(notes.found)
        with notes.at("sources", index):
            checked(build.model_copy(update=alone))
        for number, rule in enumerate(source.rules if len(notes.found) == before else ()):
            with notes.at("sources", index, "rules", number):
                checked(build.model_copy(update={**alone, "sources": (source.model_copy(update={"rules": (rule,)}),)}))
    for index, mix in enumerate(build.mixes):
        with notes.at("mixes", index):
            checked(build.model_copy(update={"sources": plain, "mixes": (mix,)}))
    if not notes.found:
        with notes.at():
            checked(build)


def of_run(inspection: Inspection[Any], root: str | None, runs_in: RunsIn) -> list[Finding]:
    """Of a training run, all of which is at the root: its mix with every shard, the checkpoint it starts from, whether its name is another's."""
    from trainplane import plan as plans
    from triplane import artifact, mixture

    if root is None:
        return []

    notes, value = _Notes(inspection), inspection.value if isinstance(inspection.value, dict) else {}
    mix, parent = _dig(value, "data", "mix"), value.get("init_from")
    if isinstance(mix, str):
        with notes.at("data", "mix"):
            lock = mixture.load(artifact.artifact_url(root, artifact.load(root, mix).reference))
            for message in _missing_shards(root, lock):
                notes.note(message, "data", "mix")
    if isinstance(parent, str):
        with notes.at("init_from"):
            plans.resolve_parent(root, parent)
    if inspection.recipe is not None and not inspection.problems and not notes.found:
        try:
            plans.plan(inspection.recipe, root)
        except TriplaneError as error:
            notes.note(str(error), *_key_of(str(error)))
    return notes.found


def _key_of(message: str) -> tuple[str, ...]:
    """The key of a run recipe that a plan's refusal is about."""
    about: Mapping[str, tuple[str, ...]] = {
        "mix": ("data", "mix"),
        "init_from": ("init_from",),
        "data.order": ("data", "order"),
    }
    return next((key for word, key in about.items() if message.startswith(word)), ("name",))


def _missing_shards(root: str, lock: Any) -> Iterator[str]:
    """Files that a mix names and its root does not hold whole."""
    wanted: dict[str, int | None] = {}
    for shard in lock.shards:
        wanted[shard.tokens] = shard.num_tokens * TOKEN_BYTES if shard.checksums else None
        wanted |= dict.fromkeys(filter(None, (shard.checksums, shard.mask, shard.mask_checksums, shard.provenance)))
    by_folder: dict[str, dict[str, int | None]] = {}
    for path, size in wanted.items():
        url = path if "://" in path or path.startswith("/") else storage.join(root, path)
        folder, _, name = url.rpartition("/")
        by_folder.setdefault(folder, {})[name] = size
    missing = []
    for folder, names in by_folder.items():
        have = {entry.name: entry.bytes for entry in storage.entries(folder)}
        missing += [f"{folder}/{name} is missing" for name in names if name not in have]
        wrong = [name for name, size in names.items() if size is not None and have.get(name, size) != size]
        missing += [f"{folder}/{name} holds {have[name]} bytes, expected {names[name]}" for name in wrong]
    yield from (f"{message}: restore it, or build the mix again" for message in missing[:SHOWN])
    if len(missing) > SHOWN:
        yield f"{len(missing) - SHOWN} more files of the mix are missing: build the mix again"


def of_evaluation(inspection: Inspection[Any], root: str | None, runs_in: RunsIn) -> list[Finding]:
    """Of an evaluation: its model, tokenizer, suite and data."""
    from evalplane import models
    from jobs.cli.common import data_folders

    notes, value = _Notes(inspection), inspection.value if isinstance(inspection.value, dict) else {}
    model, tokenizer, given = value.get("model"), value.get("tokenizer"), value.get("data")
    given = [one for one in given if isinstance(one, str)] if isinstance(given, list) else []
    named = [(model, "model"), (tokenizer, "tokenizer"), *((one, "data") for one in given)]
    out_of_reach = any([_is_out_of_reach(notes, url, runs_in, key) for url, key in named])
    folders = data_folders(given) if given or runs_in != "pods" else []  # where none is named, this machine's are tried
    if isinstance(model, str) and root is not None and not out_of_reach:
        _model(notes, lambda: models.locate(model, root, tokenizer if isinstance(tokenizer, str) else None))
    _suite(notes, value, folders, None if out_of_reach else root, runs_in)
    if root is not None and inspection.recipe is not None and not inspection.problems and not notes.found:
        _contamination(notes, inspection.recipe, folders, root)
    return notes.found


def _contamination(notes: _Notes, recipe: Any, folders: list[str], root: str) -> None:
    """Items that the model was trained on would be refused after the model was loaded."""
    from evalplane import decontamination, run
    from evalplane.task import load_suite
    from jobs.evaluate import on_contamination

    with notes.at("require_clean"):
        policy = on_contamination(recipe)
    if notes.found:
        return
    with notes.at("suite"):
        chosen = load_suite(recipe.suite, recipe.overrides)
        made = run.plan(recipe.model, chosen, root, tokenizer=recipe.tokenizer, limit=recipe.limit, folders=folders)
        decontamination.check(made.contamination, made.source.name, policy)


def _model(notes: _Notes, locate: Callable[[], Any]) -> None:
    from triplane.tokenizer import Tokenizer

    try:
        located = locate()
    except TriplaneError as error:
        about_tokenizer = "tokenizer" in str(error) and not isinstance(error, NotFound)
        notes.note(str(error), "tokenizer" if about_tokenizer else "model")
        return
    with notes.at("tokenizer" if "tokenizer" in notes.inspection.value else "model"):
        Tokenizer.load(located.tokenizer_url)


def _suite(notes: _Notes, value: dict[str, Any], folders: list[str], root: str | None, runs_in: RunsIn) -> None:
    from evalplane import data
    from evalplane.task import load_suite

    suite, overrides = value.get("suite"), value.get("overrides")
    if not isinstance(suite, str):
        return
    with notes.at("suite"):
        load_suite(suite)
        good = []
        for index, override in enumerate(overrides if isinstance(overrides, list) else []):
            with notes.at("overrides", index):
                load_suite(suite, [str(override)])
                good.append(str(override))
        for task in load_suite(suite, good).tasks if root is not None else ():
            with notes.at("data" if value.get("data") else "suite"):
                for one in data.inputs(task.data, [*folders, root or ""], root or ""):
                    _is_out_of_reach(notes, one.folder, runs_in, "overrides" if good else "suite")
                data.shot_inputs(task, [*folders, root or ""])


def _dig(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value

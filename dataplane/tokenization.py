"""`tokenize`: kept documents -> shuffled token shards with provenance, and held-out documents as dolma JSON lines.

Documents + selection -> `tokens/{source}@{version}` and, where documents are held out, `heldout/{source}@{version}`. Two passes, tokens
only between them: scatter reads each document shard once and writes its token ids in the order of u(seed, key), with a sidecar of
checksums and a table of documents; gather makes output shard i of n from the documents with u in [i/n, (i+1)/n), merged over all
scatters. The order of documents is a pure function of seed and keys, so bytes do not depend on workers, tasks or restarts. Every document
ends with one end-of-text token. A small source is one shard.

A source whose recipe names a `label_mask` has masks beside its tokens (`label_masks.py`). The passes: `scattering.py`, `gathering.py`.
Formats: `triplane.tokens`; dolma documents.
"""

import functools
from dataclasses import dataclass

from dataplane import gathering, ingestion, recipe, scattering, selection, spark, text_columns
from triplane import artifact, storage
from triplane.errors import NotFound
from triplane.progress import Progress
from triplane.tokenizer import Tokenizer

VERSION = 1
SCATTER = (
    "scatter"  # the folder of the first pass, inside the unfinished tokens artifact; removed once that is committed
)


@dataclass(frozen=True)
class TokenizeParams:
    """One source: the tokens to be made, and how the first pass makes what they are made of."""

    tokens: artifact.Draft
    first: scattering.ScatterPlan

    @property
    def source(self) -> str:
        return self.first.source

    @property
    def scatter(self) -> artifact.Draft:
        return self.first.scatter

    @property
    def heldout(self) -> artifact.Draft | None:
        return self.first.heldout


@dataclass(frozen=True)
class Tokenized:
    """The committed artifacts of one source; no held-out artifact when nothing is to be held out."""

    tokens: artifact.Manifest
    heldout: artifact.Manifest | None


def tokenize(
    start: spark.Start,
    root: str,
    build: recipe.BuildRecipe,
    ingested: dict[str, ingestion.Documents],
    selected: selection.Selected,
    tokenizer: artifact.Manifest,
    progress: Progress,
) -> dict[str, Tokenized]:
    """Tokenizes every source. Refused when a document shard changed since it was tagged, or tokens are not those that were planned."""
    stage = _Stage(start, root, build, ingested, selected, tokenizer, progress)
    params = {source.name: _params(stage, source) for source in build.sources}
    while missing := {name: one for name, one in params.items() if artifact.committed(one.tokens) is None}:
        try:
            _make(stage, missing)
        except NotFound:
            # Another build of the same tokens may have committed them and removed the first pass under our hands.
            if all(artifact.committed(one.tokens) is None for one in missing.values()):
                raise
    heldout = {name: _commit_heldout(one) for name, one in params.items()}
    for one in params.values():
        _remove_scatter(one)  # of whatever stands committed: its build may have been killed right here
    return {name: Tokenized(artifact.load_url(one.tokens.url), heldout[name]) for name, one in params.items()}


@dataclass(frozen=True)
class _Stage:
    """What `tokenize` was called with."""

    start: spark.Start
    root: str
    build: recipe.BuildRecipe
    ingested: dict[str, ingestion.Documents]
    selected: selection.Selected
    tokenizer: artifact.Manifest
    progress: Progress


def _make(stage: _Stage, missing: dict[str, TokenizeParams]) -> None:
    """Both passes and the commit of the sources that are not there yet. NotFound when the first pass vanishes before the second has read it."""
    tasks = [task for name in missing for task in stage.ingested[name].tasks()]
    scatters = {name: one.scatter for name, one in missing.items()}
    scatter = functools.partial(scattering.scatter_shard, {name: one.first for name, one in missing.items()})
    ingestion.run_missing(stage.start, scatters, scatter, tasks, "tokenize", stage.progress)
    for one in missing.values():
        _commit_heldout(one)
    plans = {name: _gather_plan(one, stage.build.shard_tokens) for name, one in missing.items()}
    tasks = [task for plan in plans.values() for task in plan.tasks()]
    drafts = {name: one.tokens for name, one in missing.items()}
    gather = functools.partial(gathering.gather_shard, plans)
    ingestion.run_missing(stage.start, drafts, gather, tasks, "shuffle", stage.progress)
    tokenizer = Tokenizer.load(artifact.artifact_url(stage.root, stage.tokenizer.reference))
    for name, one in missing.items():
        _commit_tokens(one, stage.ingested[name], stage.selected, tokenizer)


def _params(stage: _Stage, source: recipe.SourceRecipe) -> TokenizeParams:
    found, build = stage.ingested[source.name], stage.build
    sha256 = stage.tokenizer.files[0].sha256
    held_by, made_by = (text_columns.made_by(source, sha256, with_mask) for with_mask in (False, True))
    inputs = {"documents": found.identity, "decisions": stage.selected.identity(source.name), "tokenizer": sha256}
    begin = functools.partial(
        artifact.begin, stage.root, name=source.name, inputs=inputs, stage_versions={"tokenize": VERSION}
    )
    of_source = {"source": source.name, "seed": build.seed, **made_by}
    draft = begin(kind="tokens", recipe=of_source | {"shard_tokens": build.shard_tokens})
    held = begin(kind="heldout", recipe={"source": source.name, **held_by})
    url = storage.join(draft.url, SCATTER)
    first = scattering.ScatterPlan(
        source=source.name,
        seed=build.seed,
        tokenizer=artifact.artifact_url(stage.root, stage.tokenizer.reference),
        scatter=begin(kind="tokens", recipe=of_source, url=url),
        heldout=held if build.held_out_fraction > 0 else None,
        decisions=_decisions(stage, found),
        text_columns=text_columns.of_source(stage.root, source, stage.selected.manifest.parents),
    )
    return TokenizeParams(draft, first)


def _decisions(stage: _Stage, found: ingestion.Documents) -> scattering.Decisions:
    manifest = stage.selected.manifest
    files = {record.shard: record.files[0] for record in manifest.records}
    names = [f"{found.source}-{ingestion.record_name(index)}" for index in range(len(found.manifest.records))]
    return scattering.Decisions(
        artifact.artifact_url(stage.root, manifest.reference), tuple(map(files.__getitem__, names))
    )


def _commit_heldout(params: TokenizeParams) -> artifact.Manifest | None:
    if params.heldout is None:
        return None
    if (standing := artifact.committed(params.heldout)) is not None:
        return standing
    counts = [record.counts for record in params.heldout.records.values()]
    return params.heldout.commit(
        {"source": params.source, **{name: sum(count[name] for count in counts) for name in ("documents", "bytes")}}
    )


def _gather_plan(params: TokenizeParams, shard_tokens: int) -> gathering.GatherPlan:
    records = [record for _, record in sorted(params.scatter.records.items())]
    num_tokens = sum(record.counts["tokens"] + record.counts["documents"] for record in records)
    inputs = tuple(gathering.scatter_input(params.scatter.url, record) for record in records if record.files)
    num_shards = -(-num_tokens // shard_tokens)
    with_mask = params.first.with_mask
    return gathering.GatherPlan(
        params.source, params.tokens, params.first.tokenizer, inputs, num_shards, num_tokens, with_mask
    )


def _commit_tokens(
    params: TokenizeParams, found: ingestion.Documents, selected: selection.Selected, tokenizer: Tokenizer
) -> None:
    """Compares what was written with what was planned, and commits."""
    counts = [record.counts for record in params.tokens.records.values()]
    num_documents, num_tokens = (sum(count[name] for count in counts) for name in ("documents", "tokens"))
    selected.check_tokens(params.source, num_documents, num_tokens)
    params.tokens.commit(
        {
            "source": params.source,
            "tokenizer": {"sha256": tokenizer.sha256, "eos_id": tokenizer.eos_id, "vocab_size": tokenizer.vocab_size},
            "num_tokens": num_tokens,
            "num_documents": num_documents,
            "dtype": "uint32",
            "documents": found.manifest.reference,
            "selection": selected.manifest.reference,
        }
    )


def _remove_scatter(params: TokenizeParams) -> None:
    for name in storage.list_names(params.scatter.url):
        storage.delete(storage.join(params.scatter.url, name))

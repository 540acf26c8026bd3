"""A build: ingest -> tag -> select -> tokenize -> mix, from one recipe, on one root.

`BuildRecipe` + root -> committed artifacts of every verb, and the funnel. A stage that is committed for the same inputs, recipe and
versions is skipped; a crash leaves nothing readable, and the same build again finishes what is missing with the same bytes.
"""

import functools
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dataplane import funnel, ingestion, mixing, recipe, selection, spark, stages, tagging, tokenization
from dataplane.stages import Stage
from dataplane.taggers import contamination, fasttext, models
from triplane import artifact, storage
from triplane.errors import NotFound
from triplane.progress import Progress
from triplane.recipe import resolved
from triplane.tokenizer import Tokenizer

STORED_EXPANSION = {".zst": 3.7, ".gz": 3.2}  # text bytes in a stored byte, on the shared corpus; 0.95 uncompressed
PLAIN_EXPANSION = 0.95
TEXT_BYTES_PER_TOKEN = 4.2  # English and code with a vocabulary of 100 k


@dataclass(frozen=True)
class BuildResult:
    """References of everything a build stands on, by source or mix; `mix_tokens` is what each mix takes of each source."""

    tokenizer: str
    documents: dict[str, str]
    attributes: dict[str, str]
    selection: str
    tokens: dict[str, str]
    heldout: dict[str, str]
    mixes: dict[str, str]
    mix_tokens: dict[str, dict[str, int]]
    funnel: tuple[funnel.FunnelRow, ...]
    stages: tuple[Stage, ...] = field(default=(), compare=False)  # what this run did, and what it took

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"stages": [stage.to_json() for stage in self.stages]}


@dataclass(frozen=True)
class FunnelReport:
    """The funnel of one selection."""

    selection: str
    rows: tuple[funnel.FunnelRow, ...]

    def to_json(self) -> dict[str, Any]:
        """The rows by source and over all sources."""
        return {
            "selection": self.selection,
            "rows": funnel.to_json(self.rows),
            "all": funnel.to_json(funnel.overall(self.rows)),
        }


def run(build: recipe.BuildRecipe, root: str, progress: Progress) -> BuildResult:
    """Makes what the recipe names and is not there yet. Raises UsageError before anything starts, Refused when something does not add up.

    Uses the process's Spark session, or starts one when there is something to do, and ends it.
    """
    build = recipe.checked(build)
    root = storage.absolute(root)
    build = build.model_copy(
        update={
            "sources": tuple(s.model_copy(update={"documents": storage.absolute(s.documents)}) for s in build.sources)
        }
    )
    for source in build.sources:
        ingestion.listing(source)
    _check_models(build)
    tokenizer = Tokenizer.load(_tokenizer_location(build, root))
    tokenizer.eos_id  # noqa: B018 - a tokenizer without an end-of-text token is refused before anything starts
    was_running, before = spark.is_running(), len(progress.ended)
    start = functools.partial(spark.session, build.spark_master)
    try:
        result = _run(start, build, root, tokenizer, progress)
        return replace(result, stages=stages.of_bars(progress.ended[before:]))
    finally:
        if not was_running:
            spark.stop()


def _run(
    start: spark.Start, build: recipe.BuildRecipe, root: str, tokenizer: Tokenizer, progress: Progress
) -> BuildResult:
    published = publish_tokenizer(root, build, tokenizer)
    where = (artifact.artifact_url(root, published.reference), tokenizer.sha256)
    ingested = ingestion.ingest(start, root, build, progress)
    attributes = tagging.tag(start, root, build, ingested, where, progress)
    selected = selection.select(start, root, build, attributes, progress)
    tokenized = tokenization.tokenize(start, root, build, ingested, selected, published, progress)
    tokens = {name: one.tokens for name, one in tokenized.items()}
    mixes = {one.name: mixing.mix(root, build, one, tokens, tokenizer, published.reference) for one in build.mixes}
    return BuildResult(
        tokenizer=published.reference,
        documents={name: one.manifest.reference for name, one in ingested.items()},
        attributes={name: manifest.reference for name, manifest in attributes.items()},
        selection=selected.manifest.reference,
        tokens={name: manifest.reference for name, manifest in tokens.items()},
        heldout={name: one.heldout.reference for name, one in tokenized.items() if one.heldout is not None},
        mixes={name: one.manifest.reference for name, one in mixes.items()},
        mix_tokens={
            name: {source.name: source.num_taken * one.lock.sequence_length for source in one.lock.sources}
            for name, one in mixes.items()
        },
        funnel=tuple(selected.rows),
    )


def publish_tokenizer(root: str, build: recipe.BuildRecipe, tokenizer: Tokenizer) -> artifact.Manifest:
    """The tokenizer as an artifact of the root: every worker, and whoever trains or evaluates later, reads it there."""
    if build.tokenizer.startswith("tokenizer/"):
        return artifact.load(root, build.tokenizer)
    draft = artifact.begin(
        root, "tokenizer", build.name, inputs={"tokenizer": tokenizer.sha256}, recipe={}, stage_versions={}
    )
    if (standing := artifact.committed(draft)) is not None:
        return standing
    draft.record("tokenizer", [draft.put_bytes(tokenizer.json_bytes, "tokenizer", ".json")], {})
    return draft.commit({"sha256": tokenizer.sha256, "eos_id": tokenizer.eos_id, "vocab_size": tokenizer.vocab_size})


def plan(build: recipe.BuildRecipe, root: str) -> dict[str, Any]:
    """What a build would read, for --dry-run: the resolved recipe, and by source the shards, stored bytes and estimated tokens. Starts nothing."""
    build = recipe.checked(build)
    Tokenizer.load(_tokenizer_location(build, root))
    _check_models(build)
    sources = {}
    for source in build.sources:
        found = ingestion.listing(source)
        estimate = sum(shard["bytes"] * expansion(source, shard["name"]) for shard in found.shards)
        sources[source.name] = {
            "files": found.num_files,
            "shards": len(found.shards),
            "stored_bytes": found.stored_bytes,
            "estimated_tokens": round(estimate / TEXT_BYTES_PER_TOKEN),
        }
    return {"recipe": resolved(build), "root": root, "sources": sources}


def _check_models(build: recipe.BuildRecipe) -> None:
    """NotFound or Refused for a classifier or index that is not the recipe's: before the first pass, not behind it in the one that reads it."""
    entries = [pair for source in build.sources for pair in recipe.taggers(source).items()]
    params = [recipe.tagger_params(name, values, "") for name, values in entries]
    files = [(one.model, one.sha256) for one in params if isinstance(one, fasttext.Params)]
    files += [(one.index, one.sha256) for one in params if isinstance(one, contamination.Params)]
    for url, sha256 in dict.fromkeys(files):
        with models.fetched(url, sha256):
            pass


def newest_funnel(root: str, reference: str | None) -> FunnelReport:
    """The funnel of a build by its name, `name@version` or selection reference; of the newest build by default. NotFound when there is none."""
    if reference is None:
        found = artifact.references(root, "selection")
        if not found:
            raise NotFound(f"{root} holds no build: run `triplane data build RECIPE --root {root}` first")
        reference = found[0]
    name = reference if reference.startswith("selection/") else f"selection/{reference}"
    manifest = artifact.load(root, name)
    rows = funnel.checked(funnel.from_json(manifest.metadata["funnel"]))
    return FunnelReport(manifest.reference, tuple(rows))


def _tokenizer_location(build: recipe.BuildRecipe, root: str) -> str:
    return artifact.artifact_url(root, build.tokenizer) if build.tokenizer.startswith("tokenizer/") else build.tokenizer


def expansion(source: recipe.SourceRecipe, name: str) -> float:
    if source.format == "text_tree":
        return 1.0  # its files are the text
    return next((factor for suffix, factor in STORED_EXPANSION.items() if name.endswith(suffix)), PLAIN_EXPANSION)

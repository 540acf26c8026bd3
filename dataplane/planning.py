"""What a build would cost, before anything is read: shards, bytes and core-hours by stage, from published or listed sizes and measured rates.

`BuildRecipe` + `Rates` (+ `Prices`) -> `Plan`. A source with `published:` numbers is not looked at, so that a plan of 22.4 TB needs no network;
any other is listed. Rates are per core and by stage; what was estimated is named.
"""

import math
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from dataplane import build, ingestion
from dataplane.recipe import BuildRecipe, SourceRecipe, check_names, taggers
from triplane.errors import UsageError
from triplane.recipe import Bytes, Strict

TOKEN_BYTES = 4  # uint32
CHECKSUM_SHARE = 8 / (16 << 10)  # a sidecar of 8 bytes per 16 KiB of tokens
BAND_BYTES = 32  # a hash of 128 bits, a document, its preference
STAGES = ("ingest", "tag", "select", "tokenize", "shuffle")


class Rate(Strict):
    """One stage on one core. Exactly one of the two speeds, and where it was measured."""

    mb_per_s_per_core: float | None = Field(default=None, gt=0)
    documents_per_s_per_core: float | None = Field(default=None, gt=0)
    of: str  # what the bytes are: stored, text or tokens
    source: str


class Sizes(Strict):
    """Measured sizes that a plan is made with."""

    input_shard_bytes: Bytes  # stored, where the number of files is not published
    text_bytes_per_stored_byte: float = Field(gt=0)
    text_bytes_per_token: float = Field(gt=0)
    text_bytes_per_document: float = Field(gt=0)
    attribute_bytes_per_document: float = Field(gt=0)
    decision_bytes_per_document: float = Field(gt=0)
    provenance_bytes_per_document: float = Field(gt=0)
    shuffled_bytes_per_document: float = Field(ge=0)
    source: str


class Rates(Strict):
    """A rates file, for one set of taggers."""

    sizes: Sizes
    ingest: Rate
    tag: Rate
    select: Rate
    tokenize: Rate
    shuffle: Rate


class Prices(Strict):
    """A price file; none is assumed."""

    dollars_per_core_hour: float = Field(ge=0)
    dollars_per_tb_read: float = Field(ge=0)
    dollars_per_tb_written: float = Field(ge=0)
    source: str


@dataclass(frozen=True)
class Input:
    """What one source holds. estimated: the numbers that nobody published."""

    files: int
    stored_bytes: float
    text_bytes: float
    documents: float
    tokens: float
    estimated: tuple[str, ...]


def plan(recipe: BuildRecipe, rates: Rates, prices: Prices | None = None) -> dict[str, Any]:
    """The plan as JSON values: totals, `stages`, `sources` and `mixes`. UsageError for a source that is neither published nor listed."""
    for source in recipe.sources:
        check_names(source)
    inputs = {source.name: _input(source, rates.sizes) for source in recipe.sources}
    stages = {
        stage: {"bytes_read": 0.0, "bytes_written": 0.0, "bytes_shuffled": 0.0, "core_hours": 0.0} for stage in STAGES
    }
    for source in recipe.sources:
        for stage, numbers in _stages(source, inputs[source.name], rates).items():
            for key, number in numbers.items():
                stages[stage][key] += number
    totals = {key: sum(stage[key] for stage in stages.values()) for key in stages["tag"]}
    value: dict[str, Any] = {
        "name": recipe.name,
        "sources": {name: _source_row(one, recipe.shard_tokens) for name, one in inputs.items()},
        "stages": stages,
        "total": {
            **{
                name: sum(getattr(one, name) for one in inputs.values())
                for name in ("files", "text_bytes", "documents", "tokens")
            },
            "token_shards": sum(_token_shards(one, recipe.shard_tokens) for one in inputs.values()),
            **totals,
        },
        "mixes": {
            mix.name: mixed_tokens(recipe, mix.name, {n: one.tokens for n, one in inputs.items()})
            for mix in recipe.mixes
        },
    }
    if prices is not None:
        value["total"]["dollars"] = _dollars(totals, prices)
    return value


def mixed_tokens(recipe: BuildRecipe, name: str, available: dict[str, float]) -> dict[str, float]:
    """Tokens that the mix `name` takes of each source, when these are available: before whole instances and whole files."""
    one = next(mix for mix in recipe.mixes if mix.name == name)
    if one.shares is not None:
        return {source: share * (one.tokens or 0) for source, share in one.shares.items()}
    asked = {source: percent / 100 * available[source] for source, percent in (one.source_percent or {}).items()}
    scale = 1.0 if one.tokens is None else one.tokens / math.fsum(asked.values())
    return {source: tokens * scale for source, tokens in asked.items()}


def _input(source: SourceRecipe, sizes: Sizes) -> Input:
    if source.published is None:
        return _listed(source, sizes)
    known, estimated = source.published, list[str]()
    text_bytes, documents, files = known.text_bytes, known.documents, known.files
    if text_bytes is None:
        text_bytes, estimated = round(known.tokens * sizes.text_bytes_per_token), [*estimated, "text_bytes"]
    if documents is None:
        documents, estimated = round(text_bytes / sizes.text_bytes_per_document), [*estimated, "documents"]
    stored = text_bytes / sizes.text_bytes_per_stored_byte
    if files is None:
        files, estimated = max(1, math.ceil(stored / sizes.input_shard_bytes)), [*estimated, "files"]
    return Input(files, stored, text_bytes, documents, known.tokens, (*estimated, "stored_bytes"))


def _listed(source: SourceRecipe, sizes: Sizes) -> Input:
    if "://" in source.documents and not source.documents.startswith("file://"):
        raise UsageError(
            f"source {source.name} at {source.documents} has no published numbers: give them, or a stand-in on local disk"
        )
    found = ingestion.listing(source)
    text_bytes = sum(shard["bytes"] * build.expansion(source, shard["name"]) for shard in found.shards)
    documents, tokens = text_bytes / sizes.text_bytes_per_document, text_bytes / sizes.text_bytes_per_token
    return Input(
        len(found.shards), found.stored_bytes, text_bytes, documents, tokens, ("text_bytes", "documents", "tokens")
    )


def _stages(source: SourceRecipe, one: Input, rates: Rates) -> dict[str, dict[str, float]]:
    """Bytes and core-hours of one source. Text is read three times (hashed, tagged, tokenized) and never shuffled: only hashes are."""
    sizes = rates.sizes
    attributes, decisions = (
        one.documents * size for size in (sizes.attribute_bytes_per_document, sizes.decision_bytes_per_document)
    )
    token_bytes = one.tokens * TOKEN_BYTES
    written = token_bytes * (1 + CHECKSUM_SHARE) + one.documents * sizes.provenance_bytes_per_document
    moved = {
        "ingest": (one.stored_bytes, 0.0, 0.0),
        "tag": (one.stored_bytes, attributes, 0.0),
        "select": (attributes, decisions, one.documents * _shuffled_per_document(source, sizes)),
        "tokenize": (one.stored_bytes + decisions, written, 0.0),
        "shuffle": (written, written, 0.0),
    }
    work = {"stored": one.stored_bytes, "text": one.text_bytes, "tokens": token_bytes}
    return {
        stage: {
            "bytes_read": read,
            "bytes_written": wrote,
            "bytes_shuffled": exchanged,
            "core_hours": _core_hours(getattr(rates, stage), work, one.documents),
        }
        for stage, (read, wrote, exchanged) in moved.items()
    }


def _shuffled_per_document(source: SourceRecipe, sizes: Sizes) -> float:
    """Bytes: a text's hash where equal texts are looked for, and every band where near duplicates are."""
    equal = sizes.shuffled_bytes_per_document if source.exact_dedup else 0.0
    return equal + (BAND_BYTES * taggers(source)["minhash"]["bands"] if source.near_dedup is not None else 0)


def _core_hours(rate: Rate, work: dict[str, float], documents: float) -> float:
    if rate.documents_per_s_per_core is not None:
        return documents / rate.documents_per_s_per_core / 3600
    if rate.mb_per_s_per_core is None or rate.of not in work:
        raise UsageError(
            f"a rate of {rate.of!r} needs mb_per_s_per_core (of {', '.join(work)}) or documents_per_s_per_core"
        )
    return work[rate.of] / 1e6 / rate.mb_per_s_per_core / 3600


def _token_shards(one: Input, shard_tokens: int) -> int:
    return max(1, math.ceil(one.tokens / shard_tokens))


def _source_row(one: Input, shard_tokens: int) -> dict[str, Any]:
    return {
        "files": one.files,
        "stored_bytes": one.stored_bytes,
        "text_bytes": one.text_bytes,
        "documents": one.documents,
        "tokens": one.tokens,
        "token_shards": _token_shards(one, shard_tokens),
        "estimated": list(one.estimated),
    }


def _dollars(totals: dict[str, float], prices: Prices) -> float:
    cores = totals["core_hours"] * prices.dollars_per_core_hour
    moved = totals["bytes_read"] * prices.dollars_per_tb_read + totals["bytes_written"] * prices.dollars_per_tb_written
    return cores + moved / 1e12

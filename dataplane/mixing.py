"""`mix`: shares or percents of sources -> a mix lock, the only place where sampling and repetition live. Nothing is copied.

Committed tokens artifacts + how much of each + a budget of tokens -> `mix/{name}@{version}` with one file, the lock. Format and arithmetic:
`triplane.mixture`. Percents of sources, and whole files, are how arXiv 2501.00656 (table 13) and allenai/OLMo's configs put it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataplane import recipe
from triplane import artifact, hashing, mixture
from triplane.mixture import MixShard
from triplane.tokenizer import Tokenizer

VERSION = 1


@dataclass(frozen=True)
class Mixed:
    """A committed mix and its lock."""

    manifest: artifact.Manifest
    lock: mixture.MixLock


@dataclass(frozen=True)
class Amounts:
    """What a mix takes: tokens in all, the share of each source, the shards to take them from, and the tokens its recipe asks of each."""

    tokens: int
    shares: dict[str, float]
    shards: list[MixShard]
    asked_tokens: dict[str, float]


def mix(
    root: str,
    build: recipe.BuildRecipe,
    one: recipe.MixRecipe,
    tokens: dict[str, artifact.Manifest],
    tokenizer: Tokenizer,
    tokenizer_reference: str,
) -> Mixed:
    """Plans and commits one mix of a build. UsageError when a source has too few tokens for its share.

    The tokenizer is one of its parents, so that what is trained on the mix can say which it was.
    """
    length = build.sequence_length_tokens
    used = {source: tokens[source] for source in one.sources}
    shards = {s: mixture.source_shards(root, m, s, length, tokenizer.sha256) for s, m in used.items()}
    taken = amounts(one, shards, length, build.seed)
    lock = mixture.plan(
        one.name,
        length,
        taken.tokens,
        taken.shares,
        taken.shards,
        build.seed,
        tokenizer.sha256,
        tokenizer.vocab_size,
        tokenizer.eos_id,
        one.max_repetitions,
    )
    data = lock.to_bytes()
    given = {key: value for key, value in one.model_dump(mode="json").items() if value is not None}
    draft = artifact.begin(
        root,
        "mix",
        one.name,
        inputs={"lock": hashlib.sha256(data).hexdigest()},
        recipe={**given, "sequence_length_tokens": length, "seed": build.seed},
        stage_versions={"mix": VERSION},
        parents=[tokenizer_reference, *(manifest.reference for manifest in used.values())],
    )
    if (standing := artifact.committed(draft)) is not None:
        return Mixed(standing, lock)
    entry = draft.put_bytes(data, "lock", ".json", tokens=lock.num_tokens)
    draft.record("lock", [entry], {"instances": lock.num_instances, "tokens": lock.num_tokens})
    return Mixed(draft.commit(_metadata(lock, entry.name, taken)), lock)


def _metadata(lock: mixture.MixLock, file: str, taken: Amounts) -> dict[str, Any]:
    sources: dict[str, dict[str, float]] = mixture.summary(lock)
    if taken.asked_tokens:
        sources = {name: {**counts, "asked_tokens": taken.asked_tokens[name]} for name, counts in sources.items()}
    return {
        "lock": file,
        "sources": sources,
        "sequence_length": lock.sequence_length,
        "num_instances": lock.num_instances,
    }


def amounts(one: recipe.MixRecipe, shards: Mapping[str, Sequence[MixShard]], length: int, seed: int) -> Amounts:
    """How much of each source, in instances of `length` tokens. `shards` by source, in any order.

    Of a source with a percent, that part of its instances is asked for (at least one); if the mix has a number of tokens, all are
    scaled to it alike.
    """
    if one.shares is not None and one.tokens is not None:
        return Amounts(one.tokens, one.shares, [shard for source in one.shares for shard in shards[source]], {})
    percents = one.source_percent or {}
    chosen = dict(shards)
    if one.whole_files:
        chosen = {source: whole_files(shards[source], percent, seed) for source, percent in percents.items()}
    instances, asked = {}, {}
    for source, percent in percents.items():
        copies = max(percent / 100, 1.0) if one.whole_files else percent / 100
        instances[source] = max(1, round(copies * _instances(chosen[source])))
        asked[source] = percent / 100 * _instances(shards[source]) * length
    total = sum(instances.values())
    shares = {source: count / total for source, count in instances.items()}
    tokens = total * length if one.tokens is None else one.tokens
    return Amounts(tokens, shares, [shard for source in percents for shard in chosen[source]], asked)


def whole_files(shards: Sequence[MixShard], percent: float, seed: int) -> list[MixShard]:
    """The shards whose instances come nearest to `percent` of all, at least one, drawn in an order that the seed decides. All from 100."""
    if percent >= 100:
        return list(shards)
    drawn = sorted(shards, key=lambda shard: hashing.unit(seed, hashing.document_key(shard.source, shard.sha256, 0)))
    wanted, taken, count = percent / 100 * _instances(shards), 0, 0
    while count < len(drawn) and abs(taken + drawn[count].num_instances - wanted) <= abs(taken - wanted):
        taken += drawn[count].num_instances
        count += 1
    kept = {shard.tokens for shard in drawn[: max(count, 1)]}
    return [shard for shard in shards if shard.tokens in kept]


def _instances(shards: Sequence[MixShard]) -> int:
    return sum(shard.num_instances for shard in shards)

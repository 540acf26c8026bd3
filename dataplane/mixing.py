"""`mix`: shares of sources -> a mix lock, the only place where sampling and repetition live. Nothing is copied.

Committed tokens artifacts + shares + a budget of tokens -> `mix/{name}@{version}` with one file, the lock. Format and arithmetic:
`triplane.mixture`.
"""

import hashlib
from dataclasses import dataclass

from dataplane import recipe
from triplane import artifact, mixture
from triplane.tokenizer import Tokenizer

VERSION = 1


@dataclass(frozen=True)
class Mixed:
    """A committed mix and its lock."""

    manifest: artifact.Manifest
    lock: mixture.MixLock


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
    used = {source: tokens[source] for source in one.shares}
    shards = [
        shard
        for source, manifest in used.items()
        for shard in mixture.source_shards(root, manifest, source, build.sequence_length_tokens, tokenizer.sha256)
    ]
    lock = mixture.plan(
        one.name,
        build.sequence_length_tokens,
        one.tokens,
        one.shares,
        shards,
        build.seed,
        tokenizer.sha256,
        tokenizer.vocab_size,
        tokenizer.eos_id,
        one.max_repetitions,
    )
    data = lock.to_bytes()
    draft = artifact.begin(
        root,
        "mix",
        one.name,
        inputs={"lock": hashlib.sha256(data).hexdigest()},
        recipe={
            **one.model_dump(mode="json"),
            "sequence_length_tokens": build.sequence_length_tokens,
            "seed": build.seed,
        },
        stage_versions={"mix": VERSION},
        parents=[tokenizer_reference, *(manifest.reference for manifest in used.values())],
    )
    if (standing := artifact.committed(draft)) is not None:
        return Mixed(standing, lock)
    entry = draft.put_bytes(data, "lock", ".json", tokens=lock.num_tokens)
    draft.record("lock", [entry], {"instances": lock.num_instances, "tokens": lock.num_tokens})
    metadata = {
        "lock": entry.name,
        "sources": mixture.summary(lock),
        "sequence_length": lock.sequence_length,
        "num_instances": lock.num_instances,
    }
    return Mixed(draft.commit(metadata), lock)

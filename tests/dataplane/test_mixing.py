"""`mix` turns shares into a lock that depends on content alone."""

from pathlib import Path

import numpy as np
import pytest

from dataplane import mixing
from dataplane.recipe import BuildRecipe, MixRecipe
from triplane import artifact, mixture, tokens
from triplane.errors import UsageError
from triplane.tokenizer import Tokenizer


def tokens_artifact(root: str, folder: Path, source: str, tokenizer: Tokenizer, num_tokens: int) -> artifact.Manifest:
    draft = artifact.begin(root, "tokens", source, inputs={}, recipe={}, stage_versions={})
    folder.mkdir(exist_ok=True)
    with tokens.ShardWriter(folder, "part-00000", tokenizer.eos_id) as writer:
        writer.add(np.zeros(num_tokens - 1, np.uint32), np.array([0, num_tokens - 1]), ["d"], ["s"], [1])
        tokens.write_artifact_shard(draft, writer.close(), "part-00000", {})
    about = {"sha256": tokenizer.sha256, "eos_id": tokenizer.eos_id, "vocab_size": tokenizer.vocab_size}
    return draft.commit(
        {"source": source, "tokenizer": about, "num_tokens": num_tokens, "num_documents": 1, "dtype": "uint32"}
    )


@pytest.fixture
def planned(tokenizer_json: Path, tmp_path: Path) -> tuple[str, BuildRecipe, dict[str, artifact.Manifest], Tokenizer]:
    tokenizer, root = Tokenizer.load(tokenizer_json), str(tmp_path / "root")
    made = {
        name: tokens_artifact(root, tmp_path / "work", name, tokenizer, count)
        for name, count in (("web", 1600), ("math", 160))
    }
    build = BuildRecipe.model_construct(name="b", seed=3, sequence_length_tokens=16)
    return root, build, made, tokenizer


def test_shares_become_instances_and_are_committed_once(planned: tuple) -> None:
    root, build, made, tokenizer = planned
    recipe = MixRecipe(name="mix", tokens=800, shares={"web": 0.75, "math": 0.25})
    mixed = mixing.mix(root, build, recipe, made, tokenizer, "tokenizer/small@1")
    taken = {source.name: (source.num_taken, source.num_available) for source in mixed.lock.sources}
    assert taken == {"web": (37, 100), "math": (13, 10)}  # 37.5 and 12.5 of 50: the tie goes to the first name
    assert mixed.manifest.parents == ("tokenizer/small@1", made["web"].reference, made["math"].reference)
    assert mixture.load(artifact.artifact_url(root, mixed.manifest.reference)) == mixed.lock
    assert mixed.manifest.metadata["sources"]["web"]["realised_tokens"] == 37 * 16
    again = mixing.mix(root, build, recipe, made, tokenizer, "tokenizer/small@1")
    assert again.manifest == mixed.manifest and len(artifact.references(root, "mix")) == 1


def test_too_much_repetition_is_refused(planned: tuple) -> None:
    root, build, made, tokenizer = planned
    recipe = MixRecipe(name="mix", tokens=3200, shares={"web": 0.5, "math": 0.5})
    with pytest.raises(UsageError, match=r"mix mix would repeat math 10.00 times, at most 4.0 allowed"):
        mixing.mix(root, build, recipe, made, tokenizer, "tokenizer/small@1")
    assert artifact.references(root, "mix") == []

"""`mix` turns shares into a lock that depends on content alone."""

from pathlib import Path

import numpy as np
import pytest

from dataplane import mixing
from dataplane.recipe import BuildRecipe, MixRecipe
from triplane import artifact, mixture, tokens
from triplane.errors import UsageError
from triplane.mixture import MixShard
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


def shards(source: str, *instances: int) -> list[MixShard]:
    return [
        MixShard(source, f"tokens/{source}/{n}.npy", "", None, None, None, count * 16, count, f"{source}{n}")
        for n, count in enumerate(instances)
    ]


def test_percents_of_sources_are_taken_as_they_are_or_scaled() -> None:
    found = {"web": shards("web", 600, 400), "math": shards("math", 30)}
    all_of_it = MixRecipe(name="m", source_percent={"web": 5.0, "math": 400.0})
    taken = mixing.amounts(all_of_it, found, 16, 0)
    assert (taken.tokens, taken.asked_tokens) == ((50 + 120) * 16, {"web": 800.0, "math": 1920.0})
    lock = mixture.plan("m", 16, taken.tokens, taken.shares, taken.shards, 0, "t", 320, 0, 4.0)
    assert {source.name: source.num_taken for source in lock.sources} == {"web": 50, "math": 120}  # math: 4 times each
    scaled = mixing.amounts(all_of_it.model_copy(update={"tokens": 85 * 16}), found, 16, 0)
    lock = mixture.plan("m", 16, scaled.tokens, scaled.shares, scaled.shards, 0, "t", 320, 0)
    assert {source.name: source.num_taken for source in lock.sources} == {"web": 25, "math": 60}
    tiny = mixing.amounts(MixRecipe(name="m", source_percent={"web": 100.0, "math": 0.01}), found, 16, 0)
    assert tiny.shares["math"] == 1 / 1001  # at least one instance


def test_whole_files_are_drawn_by_the_seed_and_come_near() -> None:
    found = shards("web", *[100] * 40, 37)
    drawn = [[shard.tokens for shard in mixing.whole_files(found, 5.0, seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and {len(names) for names in drawn} == {2}
    assert mixing.whole_files(found, 5.0, 0) == mixing.whole_files(found[::-1], 5.0, 0)[::-1]
    for percent in (0.001, 1.0, 33.3, 99.0, 100.0, 300.0):
        taken = sum(shard.num_instances for shard in mixing.whole_files(found, percent, 3))
        assert abs(taken - min(percent, 100.0) / 100 * 4037) <= 100
    recipe = MixRecipe(name="m", source_percent={"web": 5.0, "math": 300.0}, whole_files=True)
    taken = mixing.amounts(recipe, {"web": found, "math": shards("math", 10)}, 16, 0)
    lock = mixture.plan("m", 16, taken.tokens, taken.shares, taken.shards, 0, "t", 320, 0)
    counts = {source.name: (source.num_taken, source.num_available) for source in lock.sources}
    assert counts["math"] == (30, 10) and counts["web"][0] == counts["web"][1] == sum(
        shard.num_instances for shard in taken.shards if shard.source == "web"
    )


def test_a_mix_of_percents_says_what_was_asked_and_what_it_took(planned: tuple) -> None:
    root, build, made, tokenizer = planned
    recipe = MixRecipe(name="mix", source_percent={"web": 12.5, "math": 200.0})
    sources = mixing.mix(root, build, recipe, made, tokenizer, "tokenizer/small@1").manifest.metadata["sources"]
    asked, realised = ({name: one[key] for name, one in sources.items()} for key in ("asked_tokens", "realised_tokens"))
    assert asked == {"web": 200.0, "math": 320.0}
    assert realised == {"web": 192, "math": 320}  # 12.5 instances: within one

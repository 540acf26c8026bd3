"""Revisions are named as AI2's, the folder is what transformers reads, and the card says what the artifacts say."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from trainplane import plan as plans
from trainplane import publish, soup
from trainplane import run as runs
from trainplane.recipe import RunRecipe
from trainplane.run import RunResult
from triplane import vocabulary
from triplane.errors import Corrupt, UsageError
from triplane.lm import export, weights

MakeRecipe = Callable[..., RunRecipe]
BATCH = 8 * 48
# Revisions that stand on the Hub: stage, step, batch tokens, rounding, name.
RELEASED = [
    ("stage1", 721_901, 8_388_608, "up", "stage1-step721901-tokens6056B"),
    ("stage2-ingredient1", 11_921, 8_388_608, "up", "stage2-ingredient1-step11921-tokens101B"),
    ("stage2-ingredient3", 35_763, 8_388_608, "up", "stage2-ingredient3-step35763-tokens301B"),
    ("stage1", 928_646, 4_194_304, "up", "stage1-step928646-tokens3896B"),
    ("stage2-ingredient1", 11_931, 4_194_304, "down", "stage2-ingredient1-step11931-tokens50B"),
    ("stage2-ingredient4", 35_773, 8_388_608, "down", "stage2-ingredient4-step35773-tokens300B"),
    ("stage1", 596_057, 8_388_608, "up", "stage1-step596057-tokens5001B"),
    ("stage2-ingredient3", 23_852, 2_097_152, "up", "stage2-ingredient3-step23852-tokens51B"),
]


@pytest.mark.parametrize(("stage", "step", "batch", "rounding", "name"), RELEASED)
def test_names_are_those_of_the_released_revisions(
    stage: str, step: int, batch: int, rounding: publish.Rounding, name: str
) -> None:
    assert publish.revision_name(stage, step, step * batch, rounding) == name


def test_a_stage_that_has_no_name() -> None:
    assert publish.revision_name("main", 1, 1) == "main"
    for stage in ("stage3", "stage2", "stage2-ingredient0", "stage1 "):
        with pytest.raises(UsageError, match="use main, stage1 or stage2-ingredient1"):
            publish.revision_name(stage, 1, 1)


@pytest.fixture
def trained(root: str, make_recipe: MakeRecipe) -> RunResult:
    return runs.train(make_recipe(), root)


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    path = tmp_path / "words.json"
    path.write_bytes(vocabulary.train(["some words", "and some more"] * 10, 300))
    return str(path)


def test_the_folder_is_the_model_and_the_card_its_history(
    root: str, trained: RunResult, tokenizer: str, tmp_path: Path
) -> None:
    (revision,) = publish.revisions(root, "run/tiny", "stage1", "up", every=False)
    made = publish.publish(root, revision, tmp_path / "out", "me/tiny", "apache-2.0", tokenizer)
    assert revision.name == "stage1-step12-tokens1B" and made.commands[-1].endswith(
        f"{tmp_path}/out . --revision {revision.name}"
    )
    assert set(made.files) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    ours, _ = weights.load_model(trained.checkpoint_url)
    theirs = export.from_huggingface(tmp_path / "out")
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front == {"library_name": "transformers", "tags": ["olmo2"], "license": "apache-2.0"}
    for said in (
        trained.reference,
        "12 steps of 384 tokens",
        "learning rate up to 0.01".capitalize(),
        "z-loss 0.0001",
        "| even |",
    ):
        assert said in text
    tokens = sum(row["tokens_by_source"]["even"] for row in trained.ledger)
    assert f"| even | {tokens:,} |" in text and 'revision="stage1-step12-tokens1B"' in text


def test_every_checkpoint_of_a_run(root: str, trained: RunResult) -> None:
    found = publish.revisions(root, "run/tiny", "stage2-ingredient2", "down", every=True)
    assert [one.name for one in found] == [f"stage2-ingredient2-step{step}-tokens0B" for step in (4, 8, 12)]
    with pytest.raises(UsageError, match="every checkpoint is published of a run"):
        publish.revisions(root, "run/tiny", "main", "up", every=True)


def test_the_card_of_an_earlier_checkpoint_tells_of_no_later_step(
    root: str, trained: RunResult, tokenizer: str, tmp_path: Path
) -> None:
    first, *_, last = publish.revisions(root, "run/tiny", "stage1", "up", every=True)
    for revision, steps in ((first, 4), (last, 12)):
        publish.publish(root, revision, tmp_path / revision.name, "me/tiny", None, tokenizer)
        text = (tmp_path / revision.name / "README.md").read_text()
        tokens = sum(row["tokens_by_source"]["even"] for row in trained.ledger[:steps])
        assert f"{steps} steps of 384 tokens" in text and f"| even | {tokens:,} |" in text
        assert f"cosine to {trained.ledger[steps - 1]['lr']:.4g};" in text


def test_a_soup_tells_of_each_ingredient_up_to_its_checkpoint(
    root: str, trained: RunResult, make_recipe: MakeRecipe, tokenizer: str, tmp_path: Path
) -> None:
    other = runs.train(make_recipe(name="other", **{"data.order_seed": 8}), root)
    made = soup.average(root, "both", [f"{trained.reference}/checkpoints/tokens-{8 * BATCH:015d}", other.reference])
    (revision,) = publish.revisions(root, made.reference, "main", "up", every=False)
    publish.publish(root, revision, tmp_path / "out", "me/tiny", None, tokenizer)
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"**{trained.reference}**: 8 steps" in text and f"**{other.reference}**: 12 steps" in text


def test_a_soup_names_its_ingredients(
    root: str, trained: RunResult, make_recipe: MakeRecipe, tokenizer: str, tmp_path: Path
) -> None:
    other = runs.train(make_recipe(name="other", **{"data.order_seed": 8}), root)
    made = soup.average(root, "both", [trained.reference, other.reference])
    (revision,) = publish.revisions(root, made.reference, "main", "up", every=False)
    publish.publish(root, revision, tmp_path / "out", "me/tiny", None, tokenizer)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "average of the weights of 2 runs" in text and trained.reference in text and other.reference in text
    assert "revision=" not in text and "license" not in text


def test_a_run_that_is_not_finished_has_a_card_too(
    root: str, make_recipe: MakeRecipe, tokenizer: str, tmp_path: Path
) -> None:
    from tests.trainplane.test_run import interrupted

    plan = interrupted(make_recipe(), root, 6)
    reference = f"{plan.draft.reference}/checkpoints/tokens-{4 * BATCH:015d}"
    (revision,) = publish.revisions(root, reference, "stage1", "up", every=False)
    publish.publish(root, revision, tmp_path / "out", "me/tiny", None, tokenizer)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "4 steps of 384 tokens" in text and f"- `{plan.mix.reference}`" in text and plans.started(plan.draft.url)


def test_what_is_read_back_is_compared(
    root: str, trained: RunResult, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = export.to_huggingface

    def with_a_bit_flipped(model: torch.nn.Module, folder: Path, tokenizer_json: bytes) -> None:
        honest(model, folder, tokenizer_json)  # type: ignore[arg-type]
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][0] += 1e-6
        save_file(tensors, folder / "model.safetensors")

    monkeypatch.setattr(export, "to_huggingface", with_a_bit_flipped)
    (revision,) = publish.revisions(root, "run/tiny", "stage1", "up", every=False)
    with pytest.raises(Corrupt, match=r"read back has other weights in norm\.weight"):
        publish.publish(root, revision, tmp_path / "out", "me/tiny", None, tokenizer)


@pytest.mark.parametrize("name", ["tiny", "me/", "me/a/b", "-me/tiny", "me/ti--ny", "me/$(rm)", "me/a..b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError, match="write ORGANISATION/NAME"):
        publish.check_repository(name)


def test_commands_are_quoted() -> None:
    revision = publish.Revision("main", "run/a@1", "url", 1, 1)
    assert (
        publish.commands("me/tiny", revision, Path("a folder; rm"))[-1]
        == "hf upload me/tiny 'a folder; rm' . --revision main"
    )

"""Mid-training on a small root: names, parents, refusals, the average, and a gate that lets through only what is not worse."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from trainplane import anneal, released, soup
from trainplane import run as runs
from trainplane.anneal import Parent
from trainplane.recipe import RunRecipe
from trainplane.run import RunResult
from triplane import artifact
from triplane.errors import NotFound, Refused, UsageError
from triplane.lm import export, weights
from triplane.lm.model import ModelConfig, Olmo2, init_weights

MakeRecipe = Callable[..., RunRecipe]
BATCH = 8 * 48
TO_ZERO = {
    "schedule.decay": "linear", "schedule.warmup_tokens": 0, "schedule.decay_tokens": 4 * BATCH, "schedule.final_lr_fraction": 0.0,
    "stop_tokens": 5 * BATCH, "init_from": "run/tiny", "schedule.peak_lr": 5e-3,
}  # fmt: skip


@pytest.fixture
def stage2(make_recipe: MakeRecipe) -> Callable[..., RunRecipe]:
    return lambda **changes: make_recipe(**({"name": "tiny-stage2"} | TO_ZERO | changes))


@pytest.fixture
def pretrained(root: str, make_recipe: MakeRecipe) -> RunResult:
    return runs.train(make_recipe(), root)


def train_in(root: str) -> anneal.Train:
    return lambda given: [runs.train(one, root) for one in given]


def test_one_recipe_in_several_orders_and_the_average(root: str, pretrained: RunResult, stage2: Callable) -> None:
    given = anneal.ingredients([stage2()], None, [42, 666])
    assert [(one.name, one.data.order_seed) for one in given] == [
        ("tiny-stage2-order-42", 42),
        ("tiny-stage2-order-666", 666),
    ]
    scored: list[str] = []
    made = anneal.anneal(given, root, train_in(root), score=lambda url: float(scored.append(url) or len(scored) * -1.0))
    assert made.parent == Parent(pretrained.reference, pretrained.ledger[-1]["lr"], True)
    assert all(one.ledger[-1]["lr"] == one.ledger[-2]["lr"] == 0.0 for one in made.ingredients)
    assert made.soup and made.soup.reference.startswith("checkpoint/tiny-stage2-soup@")
    expected = soup.average(root, "tiny-stage2-soup", [one.reference for one in made.ingredients])
    assert made.soup == expected and scored == [*(one.checkpoint_url for one in made.ingredients), made.soup.url]
    hashes = [[row["batch_hash"] for row in one.ledger] for one in made.ingredients]
    assert hashes[0] != hashes[1]
    assert made.verdict and made.verdict.passed and made.verdict.kept == made.soup.reference


@pytest.mark.parametrize(
    ("scores", "passed", "kept"),
    [
        ([2.0, 1.9, 1.8], True, "checkpoint/"),
        ([2.0, 1.9, 1.9], True, "checkpoint/"),
        ([1.8, 1.9, 1.85], False, "run/a"),
    ],
)
def test_the_gate_keeps_the_better(scores: list[float], passed: bool, kept: str) -> None:
    results = [RunResult(f"run/{name}@1", "", f"url-{name}", 1, 1, [], {}) for name in "ab"]
    by_url = dict(zip(["url-a", "url-b", "url-soup"], scores, strict=True))
    verdict = anneal.judge(soup.Soup("checkpoint/s@1", "url-soup"), results, by_url.__getitem__)
    assert verdict.passed == passed and verdict.kept.startswith(kept)
    assert list(verdict.scores.values()) == scores


def test_a_single_ingredient_is_not_averaged(root: str, pretrained: RunResult, stage2: Callable) -> None:
    made = anneal.anneal([stage2()], root, train_in(root), score=lambda url: pytest.fail("nothing to judge"))
    assert made.soup is None and made.verdict is None and len(made.ingredients) == 1


def test_names_of_soups(make_recipe: MakeRecipe) -> None:
    def named(*names: str) -> str:
        return anneal.default_soup_name([make_recipe(name=name) for name in names])

    assert named("olmo2-7b-stage2-ingredient1", "olmo2-7b-stage2-ingredient3") == "olmo2-7b-stage2-soup"
    assert named("demo-anneal-order-10", "demo-anneal-order-11") == "demo-anneal-soup"
    assert named("this", "that") == "th-soup" and named("a", "b") == "anneal-soup"


@pytest.mark.parametrize(
    ("orders", "number", "words"),
    [([1, 1], 1, "each order once"), ([1, 2], 2, "give one recipe"), ([], 2, "give each recipe once")],
)
def test_ingredients_that_make_no_sense(stage2: Callable, orders: Sequence[int], number: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        anneal.ingredients([stage2()] * number, None, orders)


def test_ingredients_start_from_one_checkpoint(stage2: Callable) -> None:
    given = [stage2(), stage2(name="other", init_from="run/elsewhere")]
    with pytest.raises(UsageError, match=r"run/elsewhere.*give one checkpoint"):
        anneal.parent_reference(given)
    with pytest.raises(UsageError, match="give one checkpoint"):
        anneal.parent_reference([stage2(init_from=None)])
    assert anneal.parent_reference(anneal.ingredients(given, "run/third", [])) == "run/third"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"schedule.decay": "cosine"},
            r"ends at a learning rate of 0 \(cosine\): an anneal ends at 0; set schedule\.decay=linear",
        ),
        ({"schedule.final_lr_fraction": 0.1}, r"ends at a learning rate of 0\.0005 \(linear\)"),
        ({"schedule.decay_tokens": 6 * BATCH}, r"learning rate of 0\.000833.*decay_tokens to at most 1920"),
    ],
)
def test_a_rate_that_does_not_end_at_0_is_refused(stage2: Callable, change: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        anneal.check([stage2(**change)], Parent("run/tiny@1", 5e-3, True))


def test_the_rate_of_the_parent_can_be_continued(root: str, pretrained: RunResult, stage2: Callable) -> None:
    parent = anneal.parent_of(root, "run/tiny")
    assert parent.last_lr == pretrained.ledger[-1]["lr"]
    (one,) = anneal.ingredients([stage2()], None, [], parent.last_lr)
    assert one.schedule.peak_lr == parent.last_lr
    middle = anneal.parent_of(root, f"{pretrained.reference}/checkpoints/tokens-{4 * BATCH:015d}")
    assert middle.last_lr == pretrained.ledger[3]["lr"]
    with pytest.raises(NotFound):
        anneal.parent_of(root, "run/absent")


def save_release(folder: Path, model: ModelConfig, tokenizer: bytes, dtype: torch.dtype = torch.bfloat16) -> Olmo2:
    made = Olmo2(model)
    init_weights(made, 5)
    export.to_huggingface(made.to(dtype), folder, tokenizer)
    return made


@pytest.fixture
def tokenizer_json() -> bytes:
    from triplane import vocabulary

    return vocabulary.train(["a small text", "another text of some words"] * 20, 300)


def test_a_release_is_read_in_and_needs_a_warm_up(
    root: str, tmp_path: Path, make_recipe: MakeRecipe, stage2: Callable, tokenizer_json: bytes
) -> None:
    from trainplane.recipe import model_config

    recipe = stage2()
    theirs = save_release(tmp_path / "OLMo-2-tiny", model_config(recipe), tokenizer_json)
    assert released.is_released(str(tmp_path / "OLMo-2-tiny")) and not released.is_released("run/tiny")
    reference = released.commit(root, str(tmp_path / "OLMo-2-tiny"))
    assert (
        reference.startswith("checkpoint/OLMo-2-tiny@")
        and released.commit(root, str(tmp_path / "OLMo-2-tiny")) == reference
    )
    made, info = weights.load_model(artifact.artifact_url(root, reference))
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name].float())
    assert info["released"].endswith("OLMo-2-tiny") and len(info["tokenizer"]["sha256"]) == 64
    parent = anneal.parent_of(root, reference)
    assert parent == Parent(reference, None, False)
    with pytest.raises(
        Refused, match=r"no optimizer state and recipe tiny-stage2 no warm-up.*set schedule\.warmup_tokens"
    ):
        anneal.check([recipe], parent)
    anneal.check([stage2(**{"schedule.warmup_tokens": BATCH})], parent)


def test_a_release_is_trained_on_with_a_fresh_optimizer(
    root: str, tmp_path: Path, stage2: Callable, tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainplane.recipe import model_config

    recipe = stage2(**{"schedule.warmup_tokens": 2 * BATCH})
    theirs = save_release(tmp_path / "release", model_config(recipe), tokenizer_json, torch.float32)
    monkeypatch.setattr(
        "trainplane.plan._refuse_other_tokenizer", lambda *_: None
    )  # the fixture's mix has a made-up one
    reference = released.commit(root, str(tmp_path / "release"))
    given = anneal.ingredients([recipe], reference, [])
    made = anneal.anneal(given, root, train_in(root))
    rates = [row["lr"] for row in made.ingredients[0].ledger]
    assert rates == pytest.approx([2.5e-3, 5e-3, 2.5e-3, 0.0, 0.0])
    trained = weights.load_model(made.ingredients[0].checkpoint_url)[0].lm_head.weight
    fresh = Olmo2(model_config(recipe))
    init_weights(fresh, recipe.init_seed)
    from_theirs, from_fresh = (torch.linalg.norm(trained - one.lm_head.weight) for one in (theirs, fresh))
    assert from_theirs < 0.5 * from_fresh  # four steps away from what was released, not from fresh weights


def test_a_release_of_another_tokenizer_is_refused(
    root: str, tmp_path: Path, stage2: Callable, tokenizer_json: bytes
) -> None:
    from trainplane import plan as plans
    from trainplane.recipe import model_config

    save_release(tmp_path / "release", model_config(stage2()), tokenizer_json)
    reference = released.commit(root, str(tmp_path / "release"))
    with pytest.raises(Refused, match="tokenized by"):
        plans.plan(stage2(init_from=reference), root)


def test_a_folder_that_is_not_olmo_2_is_refused(
    root: str, tmp_path: Path, stage2: Callable, tokenizer_json: bytes
) -> None:
    from safetensors.torch import load_file, save_file

    from trainplane.recipe import model_config

    folder = tmp_path / "release"
    save_release(folder, model_config(stage2()), tokenizer_json)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "q_norm" not in name}, folder / "model.safetensors")
    with pytest.raises(Refused, match="missing"):
        released.commit(root, str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match="no tokenizer"):
        released.plan(root, str(folder))
    assert artifact.references(root, "checkpoint") == []


def test_a_release_in_several_files_is_read_file_by_file(
    root: str, tmp_path: Path, stage2: Callable, tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `save_pretrained` cuts large models: an index names the file of every tensor."""
    from safetensors.torch import load_file, save_file

    from trainplane.recipe import model_config

    folder = tmp_path / "release"
    theirs = save_release(folder, model_config(stage2()), tokenizer_json)
    tensors = sorted(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    parts = {f"model-0000{n + 1}-of-00003.safetensors": dict(tensors[n::3]) for n in range(3)}
    for name, part in parts.items():
        save_file(part, folder / name, metadata={"format": "pt"})
    weight_map = {tensor: name for name, part in parts.items() for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    alive: list[int] = []
    read = weights.read_file
    monkeypatch.setattr(weights, "read_file", lambda url: (alive.append(1), read(url))[1])
    made, _ = weights.load_model(artifact.artifact_url(root, released.commit(root, str(folder))))
    assert len(alive) == 3
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name].float())

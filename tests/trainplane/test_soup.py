"""A soup is the exact mean of its ingredients, holds one tensor at a time, and refuses what cannot be averaged."""

import dataclasses
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainplane import soup
from triplane import artifact
from triplane.errors import Corrupt, NotFound, Refused, UsageError
from triplane.lm import weights
from triplane.lm.model import ModelConfig, Olmo2, init_weights
from triplane.lm.tensor_index import Chunk, TensorEntry

CONFIG = ModelConfig(61, 16, 24, 2, 4, 2, max_position_embeddings=32, eos_token_id=1, pad_token_id=0)


def save_run(
    root: str,
    name: str,
    seed: int,
    config: ModelConfig = CONFIG,
    tokenizer: str = "a" * 64,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """A finished run with one checkpoint, as training commits it; its weights."""
    run = artifact.begin(
        root, "run", name, inputs={"seed": str(seed)}, recipe={}, stage_versions={"train": 1}, version="v1"
    )
    url = f"{run.url}/checkpoints/tokens-{seed + 100:015d}"
    inside = artifact.begin(
        run.url, "checkpoint", name, inputs={"seed": str(seed)}, recipe={}, stage_versions={}, url=url
    )
    model = Olmo2(config)
    init_weights(model, seed)
    model.to(dtype)
    files = weights.save_tensors(inside, "model", model.state_dict())
    files += weights.save_tensors(inside, "optimizer", {"moments": torch.ones(3)})
    described = {"model_config": config.to_dict(), "tokenizer": {"sha256": tokenizer, "reference": "tokenizer/t@1"}}
    inside.record("checkpoint", files, {})
    inside.commit({**described, "tokens_seen": seed + 100, "step": seed})
    run.record("ledger", [], {})
    run.commit({**described, "checkpoint": f"checkpoints/tokens-{seed + 100:015d}", "tokens_seen": seed + 100})
    return model.state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    root = str(tmp_path)
    states = [save_run(root, f"order{seed}", seed, dtype=dtype) for seed in range(3)]
    made = soup.average(root, "stew", ["run/order0@v1", "run/order1", "run/order2@v1"])
    found, info = weights.load_model(made.url)
    for name, tensor in found.state_dict().items():
        expected = np.mean([state[name].double().numpy() for state in states], axis=0)  # in fp64
        assert tensor.dtype == dtype
        assert torch.equal(tensor, torch.from_numpy(expected).to(dtype))
    assert info["ingredients"] == ["run/order0@v1", "run/order1@v1", "run/order2@v1"]
    assert (info["tokens_seen"], info["tokenizer"]["sha256"]) == (102, "a" * 64)


def test_fp32_accumulation_would_be_seen() -> None:
    """Negative control of the test above: large and small values whose fp32 sum loses the small ones."""
    values = [torch.tensor([1e8], dtype=torch.float32), torch.tensor([1.0]), torch.tensor([-1e8])]
    exact = (sum(value.double() for value in values) / 3).float()
    assert exact == torch.tensor([1 / 3]) and (sum(values) / 3) != exact


def test_lineage_and_the_order_of_ingredients(tmp_path: Path) -> None:
    root = str(tmp_path)
    for seed in range(2):
        save_run(root, f"order{seed}", seed)
    one = soup.average(root, "stew", ["run/order0", "run/order1"])
    other = soup.average(root, "stew", ["run/order1", "run/order0@v1"])
    assert one == other
    manifest = artifact.load(root, one.reference)
    assert manifest.kind == "checkpoint" and manifest.parents == ("run/order0@v1", "run/order1@v1")
    assert artifact.verify(one.url) == []
    assert not [entry for entry in manifest.files if entry.name.startswith("optimizer")]


def test_a_checkpoint_inside_a_run_and_a_soup_are_ingredients_too(tmp_path: Path) -> None:
    root = str(tmp_path)
    states = [save_run(root, f"order{seed}", seed) for seed in range(2)]
    checkpoint = f"run/order0@v1/checkpoints/tokens-{100:015d}"
    first = soup.average(root, "first", [checkpoint, "run/order1"])
    second = soup.average(root, "second", [first.reference, checkpoint])
    found, _ = weights.load_model(second.url)
    expected = 0.75 * states[0]["lm_head.weight"] + 0.25 * states[1]["lm_head.weight"]
    torch.testing.assert_close(found.lm_head.weight.detach(), expected)


def test_ingredients_that_do_not_match_are_refused(tmp_path: Path) -> None:
    root = str(tmp_path)
    save_run(root, "a", 0)
    save_run(root, "wide", 1, dataclasses.replace(CONFIG, intermediate_size=32))
    save_run(root, "words", 2, tokenizer="b" * 64)
    save_run(root, "half", 3, dtype=torch.bfloat16)
    for other, words in (("wide", "another model config"), ("words", "another tokenizer"), ("half", "set of tensors")):
        with pytest.raises(Refused, match=f"{words} than run/a@v1"):
            soup.average(root, "stew", ["run/a", f"run/{other}"])
    for references in (["run/a"], ["run/a", "run/a@v1"]):
        with pytest.raises(UsageError, match="at least two checkpoints, each once"):
            soup.average(root, "stew", references)
    with pytest.raises(NotFound):
        soup.average(root, "stew", ["run/a", "run/absent"])
    assert artifact.references(root, "checkpoint") == []


def test_damage_in_an_ingredient_is_not_averaged(tmp_path: Path) -> None:
    root = str(tmp_path)
    for seed in range(2):
        save_run(root, f"order{seed}", seed)
    (path,) = (tmp_path / "run/order1@v1/checkpoints").rglob("model-*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="hashes to"):
        soup.average(root, "stew", ["run/order0", "run/order1"])
    assert artifact.references(root, "checkpoint") == []


def test_means_of_one_file_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on disk is no longer in memory when the next file is averaged."""
    root = str(tmp_path)
    for seed in range(2):
        save_run(root, f"order{seed}", seed)
    made: list[weakref.ref[Tensor]] = []
    held: list[int] = []
    mean_of = soup.mean_of

    def making(*arguments: Any) -> Tensor:
        held.append(sum(one() is not None for one in made))
        tensor = mean_of(*arguments)
        made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(soup, "mean_of", making)
    size = 61 * 16 * 4  # the embeddings; what follows is smaller
    monkeypatch.setattr(soup, "MAX_FILE_BYTES", size)
    files = soup.average(root, "stew", ["run/order0", "run/order1"])
    sizes = [path.stat().st_size for path in sorted(Path(files.url).glob("model-*.safetensors"))]
    assert held[:2] == [0, 0] and held.count(0) == len(sizes) > 3 and max(held) >= 2


def test_one_file_at_a_time_in_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are cut at the limit, no tensor is read before the file before it is written, and a span is all that is read at once."""
    root = str(tmp_path)
    states = [save_run(root, f"order{seed}", seed) for seed in range(2)]
    events: list[str] = []
    spans: list[int] = []
    read, write = weights.read_rows, weights.save_file

    def reading(url: str, entry: TensorEntry, chunk: Chunk, first: int, count: int) -> Iterator[tuple[int, Tensor]]:
        events.append("read")
        spans.append(count * int(np.prod(entry.shape[1:])) * 4)
        return read(url, entry, chunk, first, count)

    monkeypatch.setattr(weights, "read_rows", reading)
    monkeypatch.setattr(weights, "save_file", lambda group, path: (events.append("write"), write(group, path))[1])
    monkeypatch.setattr(soup, "MAX_FILE_BYTES", 1)
    monkeypatch.setattr(soup, "SPAN_BYTES", 640)
    made = soup.average(root, "stew", ["run/order0", "run/order1"])
    assert max(spans) == 640 and events.count("write") == len(states[0])
    first = next(iter(states[0].values()))
    assert events[: events.index("write")].count("read") == 2 * -(-first.numel() * 4 // 640)
    for name, tensor in weights.load_model(made.url)[0].state_dict().items():
        assert torch.equal(tensor, (sum(state[name].double() for state in states) / 2).float())


@pytest.mark.parametrize("span", [1, 100, 1 << 20])
def test_rows_of_a_tensor_that_several_ranks_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, span: int) -> None:
    """Cut along rows and along columns: put together as the whole."""
    values = torch.arange(60.0).reshape(10, 6)
    pieces = {"top": values[:4], "left": values[4:, :2], "right": values[4:, 2:]}
    offsets = {"top": (0, 0), "left": (4, 0), "right": (4, 2)}
    files = weights.save_tensors(str(tmp_path), "model", {name: piece.contiguous() for name, piece in pieces.items()})
    index = weights.read_index(str(tmp_path), files)
    chunks = tuple(dataclasses.replace(index[name].chunks[0], offsets=offsets[name]) for name in pieces)
    entry = dataclasses.replace(index["top"], name="w", shape=(10, 6), chunks=chunks)
    one = soup.Ingredient("run/a@v1", str(tmp_path), None, {"w": entry})  # type: ignore[arg-type]
    monkeypatch.setattr(soup, "SPAN_BYTES", span)
    assert torch.equal(soup.mean_of("w", [one, one]), values)

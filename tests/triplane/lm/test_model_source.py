"""A URL names one model, with one identity, whoever asks; and what is no model is said."""

import json
from pathlib import Path

import pytest

from triplane import artifact, storage
from triplane.errors import Corrupt, NotFound, Refused
from triplane.lm import model_source, weights
from triplane.lm.export import to_huggingface
from triplane.lm.model import ModelConfig, Olmo2, init_weights

CONFIG = ModelConfig(
    vocab_size=61,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=32,
    eos_token_id=1,
    pad_token_id=1,
)


def tiny_model(seed: int) -> Olmo2:
    model = Olmo2(CONFIG)
    init_weights(model, seed)
    return model.eval()


def begin_run(root: str) -> artifact.Draft:
    return artifact.begin(root, "run", "tiny", inputs={}, recipe={}, stage_versions={"train": 1})


def save_checkpoint(run: artifact.Draft, tokens: int, seed: int) -> str:
    name = f"tokens-{tokens:015d}"
    url = storage.join(run.url, model_source.CHECKPOINTS, name)
    draft = artifact.begin(
        run.url,
        "checkpoint",
        "tiny",
        inputs={"tokens": str(tokens)},
        recipe={},
        stage_versions={},
        version=name,
        url=url,
    )
    files = [
        *weights.save_tensors(draft, "model", tiny_model(seed).state_dict()),
        draft.put_bytes(b"{}", "state", ".json"),
    ]
    draft.record("checkpoint", files, {})
    draft.commit({"model_config": CONFIG.to_dict(), "tokens_seen": tokens})
    return url


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.getfixturevalue("s3_root")) if request.param == "s3" else str(tmp_path / "root")


def test_a_run_is_the_checkpoint_it_names_or_its_newest(root: str) -> None:
    run = begin_run(root)
    first, last = save_checkpoint(run, 900, 0), save_checkpoint(run, 10_000, 1)
    storage.put(
        storage.join(run.url, "checkpoints/tokens-000000000020000/state-0.json"), b"{}"
    )  # killed before its manifest
    assert model_source.find(run.url).url == model_source.find(run.url + "/").url == last
    assert model_source.find(first).url == first
    run.record("ledger", [], {})
    run.commit({"checkpoint": "checkpoints/tokens-000000000000900", "model_config": CONFIG.to_dict()})
    assert model_source.find(run.url).url == first
    assert weights.load_model(run.url)[1]["url"] == first


def test_the_loader_gives_the_identity_that_was_found(tmp_path: Path) -> None:
    run = begin_run(str(tmp_path))
    to_huggingface(tiny_model(0), tmp_path / "hf")
    urls = [save_checkpoint(run, 1, 0), save_checkpoint(run, 2, 1), str(tmp_path / "hf")]
    found = [model_source.find(url).identity() for url in urls]
    assert found == [weights.load_model(url)[1]["identity"] for url in urls]
    assert len(set(found)) == 3


def test_identity_follows_config_and_weights_and_not_the_place(tmp_path: Path) -> None:
    found = []
    for name, seed, theta in (("a", 0, 1e4), ("b", 0, 1e4), ("c", 1, 1e4), ("d", 0, 2e4)):
        to_huggingface(tiny_model(seed), tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "rope_theta": theta}))
        found.append(model_source.find(str(tmp_path / name)).identity())
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"neither manifest\.json nor config\.json, nor committed checkpoints"):
        model_source.find(str(tmp_path / "nothing"))
    draft = artifact.begin(str(tmp_path), "mix", "m", inputs={}, recipe={}, stage_versions={})
    draft.commit({})
    with pytest.raises(Refused, match="is a mix, not a model checkpoint"):
        model_source.find(draft.url)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/config.json").write_text("{}")
    with pytest.raises(Refused, match=r"no model\.safetensors"):
        model_source.find(str(tmp_path / "pickled"))
    (tmp_path / "pickled/config.json").write_text("{")
    with pytest.raises(Corrupt, match="is not JSON"):
        model_source.find(str(tmp_path / "pickled"))

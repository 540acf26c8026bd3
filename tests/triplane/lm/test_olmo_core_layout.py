"""OLMo-core's layout, against a checkpoint that OLMo-core 3.0.0 itself wrote (tests/golden/olmo_core_step1, with its own logits).

That checkpoint: `TransformerConfig.llama_like` with the block of OLMo 2, d 8, 1 layer, 2 heads (1 for keys and values), vocabulary 24, random
weights, one AdamW step, `save_model_and_optim_state`; `logits.json`: its logits for the ids 0..19, flattened.
"""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from triplane.errors import Corrupt, NotFound, Refused
from triplane.lm import olmo_core_layout
from triplane.lm.model import ModelConfig, Olmo2, init_weights

GOLDEN = Path(__file__).parents[2] / "golden" / "olmo_core_step1"


@pytest.fixture
def step(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "step1")
    return tmp_path / "step1"


def test_logits_are_olmo_cores_own() -> None:
    model = olmo_core_layout.from_olmo_core(str(GOLDEN))
    assert model.config == ModelConfig(
        24,
        8,
        24,
        1,
        2,
        1,
        max_position_embeddings=32,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        eos_token_id=21,
        pad_token_id=20,
    )
    with torch.no_grad():
        logits = model(torch.arange(20)[None]).flatten()
    assert torch.allclose(logits, torch.tensor(json.loads((GOLDEN / "logits.json").read_text())), rtol=0, atol=1e-6)


def test_round_trip(tmp_path: Path) -> None:
    model = Olmo2(ModelConfig(61, 16, 24, 2, 4, 2, max_position_embeddings=32, eos_token_id=1, pad_token_id=0))
    init_weights(model, 3)
    olmo_core_layout.to_olmo_core(model, tmp_path / "step")
    assert olmo_core_layout.is_olmo_core(str(tmp_path / "step"))
    found = olmo_core_layout.from_olmo_core(str(tmp_path / "step"))
    assert found.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_nothing_is_unpickled() -> None:
    """Python tells its auditors of every name a pickle looks up, and of every program it runs."""
    seen: list[str] = []
    watching = [True]
    sys.addaudithook(
        lambda event, _: (
            seen.append(event) if watching[0] and event.startswith(("pickle", "exec", "os.system")) else None
        )
    )
    olmo_core_layout.from_olmo_core(str(GOLDEN))
    assert [event for event in seen if event.startswith("pickle")] == []
    pickle.loads(pickle.dumps(Path("x")))  # noqa: S301 (the control)
    assert "pickle.find_class" in seen
    watching[0] = False


class Run:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
def test_a_payload_is_refused_unrun(step: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    monkeypatch.chdir(step)
    if file == ".metadata":
        (step / "model_and_optim" / file).write_bytes(pickle.dumps({"a": Run()}, 4))
    else:
        hostile = step / "hostile"
        torch.save(Run(), hostile)
        data = hostile.read_bytes()
        whole = bytearray((step / "model_and_optim" / file).read_bytes())
        monkeypatch.setattr(olmo_core_layout.storage, "read_range", lambda *_: data)
        assert len(whole) > 0
    with pytest.raises(Refused, match=r"mkdir.* does not belong there"):
        olmo_core_layout.from_olmo_core(str(step))
    assert not (step / "ran").exists()


def test_damage_is_corrupt(step: Path) -> None:
    metadata = step / "model_and_optim/.metadata"
    data = metadata.read_bytes()
    metadata.write_bytes(data[:-100])
    with pytest.raises(Corrupt, match="pickle"):
        olmo_core_layout.from_olmo_core(str(step))
    metadata.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(Corrupt, match="does not describe a checkpoint"):
        olmo_core_layout.from_olmo_core(str(step))
    metadata.write_bytes(data.replace(b"__0_1.distcp", b"../../../etc"))
    with pytest.raises(Refused, match="none of its files"):
        olmo_core_layout.from_olmo_core(str(step))
    metadata.write_bytes(data)
    for path in (step / "model_and_optim").glob("*.distcp"):
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(Corrupt, match="cut short"):
        olmo_core_layout.from_olmo_core(str(step))


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("block", "name"), "default", "block.name 'default'"),
        (("block", "sequence_mixer", "use_head_qk_norm"), True, "use_head_qk_norm True"),
        (("block", "sequence_mixer", "qk_norm"), None, "qk_norm.eps None"),
        (("block", "sequence_mixer", "sliding_window"), {"pattern": [4096]}, "sliding_window"),
        (("block", "feed_forward", "activation"), "gelu", "activation 'gelu'"),
        (("tie_word_embeddings",), True, "tie_word_embeddings True"),
        (("block", "sequence_mixer", "n_heads"), 3, "does not describe an OLMo 2 model"),
    ],
)
def test_another_architecture_is_refused(step: Path, keys: tuple[str, ...], value: Any, words: str) -> None:
    config = json.loads((step / "config.json").read_text())
    here = config["model"]
    for key in keys[:-1]:
        here = here[key]
    here[keys[-1]] = value
    (step / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match=words):
        olmo_core_layout.from_olmo_core(str(step))


def test_other_tensors_are_refused_and_nothing_is_not_found(step: Path) -> None:
    config = json.loads((step / "config.json").read_text())
    config["model"]["n_layers"] = 2
    (step / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match="missing"):
        olmo_core_layout.from_olmo_core(str(step))
    assert not olmo_core_layout.is_olmo_core(str(step.parent))
    with pytest.raises(NotFound):
        olmo_core_layout.from_olmo_core(str(step.parent))

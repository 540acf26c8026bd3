"""Checkpoints written and read over meshes: FSDP2, HSDP and one process read what any of them wrote; one replica writes; a failure reaches all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainplane import sharded_ranks as ranks
from trainplane import checkpoint
from trainplane.checkpoint_writer import Saver
from triplane import artifact
from triplane.errors import Corrupt, Refused, TriplaneError
from triplane.lm import weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four ranks left: they read `single` (written here) over two meshes, wrote `hsdp` (2 replicas of 2 shards) and read it over another."""
    folder = tmp_path_factory.mktemp("sharded")
    model, optimizer = ranks.make((), 7)
    saver = Saver(ranks.run_of(str(folder / "single")), model, optimizer, {"model_config": ranks.CONFIG.to_dict()})
    saver.save(ranks.STATE, [])
    saver.wait()
    (folder / "file").write_text("")  # nothing can be written below a file
    command = [sys.executable, "-m", "tests.trainplane.sharded_ranks", str(folder)]
    ended = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, timeout=120,
                           cwd=Path(__file__).parents[2], stderr=subprocess.PIPE)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture
def hsdp(folder: Path) -> str:
    return str(folder / "hsdp")


def test_one_process_reads_what_a_mesh_wrote(hsdp: str) -> None:
    url = checkpoint.draft(ranks.run_of(hsdp), 300).url
    model, optimizer = ranks.make((), 1)
    assert checkpoint.load(url, model, optimizer) == ranks.STATE
    ranks.assert_is(model, optimizer, 7)
    assert checkpoint.rows_of(url) == [{"step": 3}]
    loaded, info = weights.load_model(url)
    assert info["tokens_seen"] == 300
    assert torch.equal(loaded.lm_head.weight, ranks.value_of("lm_head.weight", loaded.lm_head.weight.shape, 7))
    assert artifact.verify(url) == []


def test_one_replica_writes_and_each_of_its_ranks_its_own_file(hsdp: str) -> None:
    manifest = artifact.load_url(checkpoint.draft(ranks.run_of(hsdp), 300).url)
    names = [file.name for file in manifest.files if file.name.endswith(".safetensors")]
    assert [name[: name.index("-r") + 7] for name in names] == [
        "model-r00000", "optimizer-r00000", "model-r00001", "optimizer-r00001",
    ]  # fmt: skip
    index = weights.read_index(
        checkpoint.draft(ranks.run_of(hsdp), 300).url, [f for f in manifest.files if f.name.startswith("model")]
    )
    assert [chunk.shape for chunk in index["embed_tokens.weight"].chunks] == [(31, 12), (30, 12)]


def test_nothing_is_unpickled_on_a_load_path(hsdp: str) -> None:
    """Python tells its auditors of every name that a pickle looks up."""
    import pickle
    import sys

    seen: list[str] = []
    watching = [True]
    sys.addaudithook(lambda event, _: seen.append(event) if watching[0] and event.startswith("pickle") else None)
    url = checkpoint.draft(ranks.run_of(hsdp), 300).url
    model, optimizer = ranks.make((), 1)
    checkpoint.load(url, model, optimizer)
    weights.load_model(url)
    assert seen == []
    pickle.loads(pickle.dumps(Path("x")))  # noqa: S301 (the control)
    watching[0] = False
    assert "pickle.find_class" in seen


def test_a_pickle_in_a_checkpoint_is_refused_unread(hsdp: str, tmp_path: Path) -> None:
    """A manifest that names one: nothing is opened. One under a safetensors name: its bytes do not have the hashes of the index."""
    model, optimizer = ranks.make((), 1)
    payload = tmp_path / "model.pt"
    torch.save({"a": torch.ones(3)}, payload)
    draft = artifact.begin(str(tmp_path), "checkpoint", "bad", inputs={}, recipe={}, stage_versions={})
    draft.record(
        "checkpoint",
        [draft.put_bytes(ranks.STATE_BYTES, "state", ".json"), draft.put_file(payload, "model", ".pt")],
        {},
    )
    draft.commit({"model_config": ranks.CONFIG.to_dict()})
    payload.unlink()
    for path in Path(draft.url).glob("model-*.pt"):
        path.unlink()  # it is not even there
    with pytest.raises(Refused, match="not a safetensors file"):
        checkpoint.load(draft.url, model, optimizer)


def test_the_comparison_sees_another_value(hsdp: str) -> None:
    model, optimizer = ranks.make((), 1)
    checkpoint.load(checkpoint.draft(ranks.run_of(hsdp), 300).url, model, optimizer)
    with torch.no_grad():
        model.lm_head.weight[60, 9] += 1e-6
    with pytest.raises(AssertionError, match=r"lm_head\.weight"):
        ranks.assert_is(model, optimizer, 7)


def test_ranks_that_cannot_write_fail_alike_with_one_sentence(folder: Path) -> None:
    said = [(folder / f"said-{rank}").read_text() for rank in range(4)]
    assert said[0].startswith("the checkpoint at 300 tokens could not be saved (") and said[0].count("\n") == 1
    assert said == said[:1] * 4


def test_another_model_is_refused_with_the_difference(hsdp: str) -> None:
    import dataclasses

    from trainplane import optim
    from triplane.lm.model import Olmo2

    url = checkpoint.draft(ranks.run_of(hsdp), 300).url
    wide = Olmo2(dataclasses.replace(ranks.CONFIG, intermediate_size=16, rope_theta=1e4))
    with pytest.raises(Refused, match=r"intermediate_size: 14 -> 16; rope_theta: 500000\.0 -> 10000\.0"):
        checkpoint.load(url, wide, optim.adamw(wide, ranks.SETTINGS))
    other = Olmo2(dataclasses.replace(ranks.CONFIG, intermediate_size=16))
    other.config = ranks.CONFIG  # a manifest that was edited
    with pytest.raises(Refused, match=r"mlp\.gate_proj\.weight is \(14, 12\), not \(16, 12\).*and \d+ more"):
        checkpoint.load(url, other, optim.adamw(other, ranks.SETTINGS))


def test_a_state_that_is_no_state_is_corrupt(tmp_path: Path) -> None:
    for text in (b"[]", b'{"step": "x"}', b"\x80\x04."):
        with pytest.raises(Corrupt, match="not the state of a run"):
            checkpoint._state(text, "state.json")


def test_a_failure_in_the_background_is_raised_at_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = ranks.make((), 7)
    saver = Saver(ranks.run_of(str(tmp_path)), model, optimizer, {})
    monkeypatch.setattr(checkpoint, "commit", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    saver.save(ranks.STATE, [])
    with pytest.raises(TriplaneError, match=r"at 300 tokens could not be saved \(No space left on device\)"):
        saver.save(ranks.STATE, [])
    assert not saver.has_failed
    saver.wait()  # told once

"""The checkpoint format: what is saved is read, damage is found, pickles are not opened."""

import dataclasses
import json
import struct
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from triplane import artifact, storage
from triplane.errors import Corrupt, NotFound, Refused
from triplane.lm import tensor_index, weights
from triplane.lm.model import ModelConfig, Olmo2, init_weights

CONFIG = ModelConfig(61, 16, 24, 2, 4, 2, max_position_embeddings=32, eos_token_id=1, pad_token_id=0)
TENSORS = {
    "step": torch.tensor(7, dtype=torch.int64),
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "half": torch.linspace(-1, 1, 10).bfloat16(),
    "flags": torch.tensor([True, False, True]),
    "none": torch.empty(0, 5),
    "transposed": torch.arange(6, dtype=torch.float64).reshape(2, 3).T,
}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert torch.equal(found[name], expected[name])


def tiny_model(seed: int = 0) -> Olmo2:
    model = Olmo2(CONFIG)
    init_weights(model, seed)
    return model


def save_checkpoint(root: str, model: Olmo2) -> artifact.Manifest:
    """What trainplane.checkpoint does, in small."""
    draft = artifact.begin(root, "checkpoint", "tiny", inputs={}, recipe={"seed": 0}, stage_versions={"checkpoint": 1})
    draft.record("model", weights.save_tensors(draft, "model", model.state_dict()), {})
    draft.record("optimizer", weights.save_tensors(draft, "optimizer", {"lm_head.weight.m": torch.ones(3)}), {})
    return draft.commit({"model_config": CONFIG.to_dict(), "tokens_seen": 1024, "step": 2})


@pytest.mark.parametrize("max_file_bytes", [1, 60, 1 << 30])
def test_round_trip_in_one_file_and_in_several(tmp_path: Path, max_file_bytes: int) -> None:
    entries = weights.save_tensors(str(tmp_path), "optimizer", TENSORS, max_file_bytes)
    assert len(entries) - 1 == {1: 6, 60: 3, 1 << 30: 1}[max_file_bytes]
    assert entries[-1].name.startswith("optimizer.index-")
    assert_equal(weights.load_tensors(str(tmp_path), entries), TENSORS)
    assert_equal(weights.load_tensors(str(tmp_path), entries, names=list(TENSORS)), TENSORS)
    assert_equal(weights.load_tensors(str(tmp_path), entries, names=["half"]), {"half": TENSORS["half"]})


def test_an_iterable_is_written_as_it_comes_and_bytes_depend_on_content_alone(tmp_path: Path) -> None:
    first = weights.save_tensors(str(tmp_path / "a"), "model", TENSORS)
    second = weights.save_tensors(str(tmp_path / "b"), "model", ((name, TENSORS[name].clone()) for name in TENSORS))
    assert first == second
    assert first != weights.save_tensors(str(tmp_path / "c"), "model", {**TENSORS, "step": torch.tensor(8)})


def test_other_tools_read_our_files_and_we_read_theirs(tmp_path: Path) -> None:
    (data, _) = weights.save_tensors(str(tmp_path), "model", TENSORS)
    assert_equal(load_file(tmp_path / data.name), TENSORS)
    save_file({"x": torch.ones(2, 2)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert_equal(weights.read_file(str(tmp_path / "x.safetensors"))[1], {"x": torch.ones(2, 2)})


def test_ranged_reads_fetch_only_what_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = weights.save_tensors(str(tmp_path), "model", {"big": torch.zeros(100_000), "small": torch.ones(4)})
    fetched = []

    def counting(url: str, start: int, length: int) -> bytes:
        fetched.append(length)
        return storage.local_path(url).read_bytes()[start : start + length]

    monkeypatch.setattr(storage, "read_range", counting)
    weights.load_tensors(str(tmp_path), entries, names=["small"])
    assert fetched == [16]


def test_damage_is_found_by_whole_reads_and_by_ranged_reads(tmp_path: Path) -> None:
    """The message names the file, the block, and both checksums."""
    entries = weights.save_tensors(str(tmp_path), "model", {"a": torch.zeros(50), "b": torch.ones(50)})
    path = tmp_path / entries[0].name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # in b
    path.write_bytes(data)
    found, expected = (xxhash.xxh3_128_hexdigest(half) for half in (data[-200:], torch.ones(50).numpy().tobytes()))
    message = rf"{path.name}: block 0 \(of \d+ bytes.*\) of b hashes to {found}, expected {expected}: restore"
    for names in (None, ["b"]):
        with pytest.raises(Corrupt, match=message):
            weights.load_tensors(str(tmp_path), entries, names)
    assert weights.load_tensors(str(tmp_path), entries, names=["a"])["a"].sum() == 0
    (tmp_path / entries[1].name).write_text('{"format_version":1,"tensors":[]}')
    with pytest.raises(Corrupt, match="sha256"):
        weights.load_tensors(str(tmp_path), entries, names=["a"])


def test_only_the_damaged_block_is_named_and_only_its_rows_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_index, "BLOCK_BYTES", 64)
    monkeypatch.setattr(weights, "SPAN_BYTES", 100)  # several spans a tensor, blocks cut across rows
    tensor = torch.arange(60, dtype=torch.float32).reshape(12, 5)
    entries = weights.save_tensors(str(tmp_path), "model", {"a": tensor})
    assert torch.equal(weights.load_tensors(str(tmp_path), entries)["a"], tensor)
    path = tmp_path / entries[0].name
    data = bytearray(path.read_bytes())
    data[-240 + 130] ^= 1  # byte 130 of 240: block 2
    path.write_bytes(data)
    row = weights.read_index(str(tmp_path), entries)["a"]
    (first, rows), *_ = weights.read_rows(str(tmp_path), row, row.chunks[0], 1, 4)
    assert first == 1 and torch.equal(rows, tensor[1:5])
    with pytest.raises(Corrupt, match="block 2 "):
        weights.load_tensors(str(tmp_path), entries)


def test_the_format_of_earlier_releases_is_read(tmp_path: Path) -> None:
    """Version 1: one place and one hash a tensor."""
    (data, _) = weights.save_tensors(str(tmp_path), "model", TENSORS)
    with (tmp_path / data.name).open("rb") as stream:
        _, stored = weights._read_header(stream, data.name, data.bytes)
        rows = [
            {
                "name": one.name, "dtype": one.dtype, "shape": list(one.shape), "file": data.name, "start": one.start, "length": one.length,
                "xxh3_128": xxhash.xxh3_128_hexdigest(stream.read(one.length)),
            }
            for one in stored
        ]  # fmt: skip
    draft = artifact.begin(str(tmp_path), "checkpoint", "x", inputs={}, recipe={}, stage_versions={}, url=str(tmp_path))
    old = draft.put_bytes(json.dumps({"format_version": 1, "tensors": rows}).encode(), "model.index", ".json")
    assert_equal(weights.load_tensors(str(tmp_path), [data, old]), TENSORS)
    assert_equal(weights.load_tensors(str(tmp_path), [data, old], ["half"]), {"half": TENSORS["half"]})


def test_unknown_names_and_versions_are_refused(tmp_path: Path) -> None:
    entries = weights.save_tensors(str(tmp_path), "model", {"a": torch.zeros(5)})
    with pytest.raises(NotFound, match=r"no tensors \['c'\]"):
        weights.load_tensors(str(tmp_path), entries, names=["a", "c"])
    index = json.loads((tmp_path / entries[1].name).read_text())
    draft = artifact.begin(str(tmp_path), "checkpoint", "x", inputs={}, recipe={}, stage_versions={})
    newer = draft.put_bytes(json.dumps({**index, "format_version": 3}).encode(), "model.index", ".json")
    with pytest.raises(Refused, match="format_version 3"):
        weights.read_index(draft.url, [newer])
    with pytest.raises(Corrupt, match="no index"):
        weights.read_index(str(tmp_path), entries[:1])


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "optimizer.pkl", "x.ckpt", "model.safetensors.pt"])
def test_a_pickle_is_refused_unread(tmp_path: Path, name: str) -> None:
    entry = artifact.FileEntry(name, "0" * 64, 10)  # the file is not even there: nothing was opened
    with pytest.raises(Refused, match="not a safetensors file"):
        weights.load_tensors(str(tmp_path), [entry])
    with pytest.raises(Refused, match="not a safetensors file"):
        weights.read_file(str(tmp_path / name))


def test_a_pickle_under_a_safetensors_name_is_corrupt(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(Corrupt, match="not a safetensors file"):
        weights.read_file(str(tmp_path / "model.safetensors"))


def _file(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "says its header"),
        (struct.pack("<Q", 1 << 60), "says its header"),
        (_file(b"{nonsense"), "unreadable safetensors header"),
        (_file(b"[1, 2]"), "unreadable safetensors header"),
        (_file(b'{"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}}', b"\0" * 4), "dtype F4"),
        (_file(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', b"\0" * 4), "unreadable"),
        (_file(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', b"\0" * 4), "do not fit"),
        (_file(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', b"\0" * 8), "do not fit"),
        (_file(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', b"\0" * 3), "was cut"),
        (_file(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', b"\0" * 9), "was cut"),
    ],
)
def test_malformed_files_are_corrupt(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(Corrupt, match=words):
        weights.read_file(str(path))


@given(cut=st.integers(0, 10_000), flip=st.integers(0, 10_000), value=st.integers(0, 255))
def test_any_damage_raises_corrupt_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, value: int
) -> None:
    """Nothing in a file's own header is used, as the index says it all: damage there is for `verify`, damage of values is found."""
    folder = tmp_path_factory.mktemp("damage")
    (data, index) = weights.save_tensors(str(folder), "model", TENSORS)
    original = (folder / data.name).read_bytes()
    damaged = bytearray(original)
    damaged[flip % len(damaged)] = value
    damaged = damaged[: len(damaged) - cut % len(damaged)]
    (folder / data.name).write_bytes(damaged)
    values_start = 8 + int.from_bytes(original[:8], "little")
    if damaged[values_start:] == original[values_start:]:
        assert_equal(weights.load_tensors(str(folder), [data, index]), TENSORS)
    else:
        with pytest.raises(Corrupt):
            weights.load_tensors(str(folder), [data, index])
    if bytes(damaged) != original:
        with pytest.raises(Corrupt):
            weights.read_file(str(folder / data.name), data.sha256)


def test_load_model_of_a_checkpoint(tmp_path: Path) -> None:
    model = tiny_model()
    manifest = save_checkpoint(str(tmp_path), model)
    url = artifact.artifact_url(str(tmp_path), manifest.reference)
    loaded, info = weights.load_model(url)
    assert_equal(loaded.state_dict(), model.state_dict())
    assert loaded.config == CONFIG and not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert info["format"] == "checkpoint" and info["reference"] == manifest.reference
    assert (info["tokens_seen"], info["step"], info["model_config"]) == (1024, 2, CONFIG.to_dict())
    assert weights.load_model(url, dtype=torch.bfloat16)[0].lm_head.weight.dtype == torch.bfloat16


def test_load_model_of_a_run_reads_the_checkpoint_it_names(tmp_path: Path) -> None:
    run = artifact.begin(str(tmp_path), "run", "tiny", inputs={}, recipe={}, stage_versions={"train": 1})
    inside = artifact.begin(
        run.url, "checkpoint", "tiny", inputs={}, recipe={}, stage_versions={}, url=f"{run.url}/checkpoints/tokens-5"
    )
    model = tiny_model()
    inside.record("model", weights.save_tensors(inside, "model", model.state_dict()), {})
    inside.commit({"model_config": CONFIG.to_dict(), "tokens_seen": 5})
    run.commit({"checkpoint": "checkpoints/tokens-5", "model_config": CONFIG.to_dict()})
    loaded, info = weights.load_model(run.url)
    assert_equal(loaded.state_dict(), model.state_dict())
    assert info["tokens_seen"] == 5


def test_load_model_from_s3(s3_root: str) -> None:
    model = tiny_model()
    manifest = save_checkpoint(s3_root, model)
    loaded, _ = weights.load_model(artifact.artifact_url(s3_root, manifest.reference))
    assert_equal(loaded.state_dict(), model.state_dict())


def test_identity_follows_the_weights(tmp_path: Path) -> None:
    identities = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        manifest = save_checkpoint(str(tmp_path / folder), tiny_model(seed))
        url = artifact.artifact_url(str(tmp_path / folder), manifest.reference)
        identities.append(weights.load_model(url)[1]["identity"])
    assert identities[0] == identities[1] != identities[2]


def test_load_model_refuses_what_it_cannot_be_sure_of(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"neither manifest\.json nor config\.json"):
        weights.load_model(str(tmp_path))
    draft = artifact.begin(str(tmp_path), "checkpoint", "x", inputs={}, recipe={}, stage_versions={})
    draft.record("model", weights.save_tensors(draft, "model", tiny_model().state_dict()), {})
    draft.commit({})
    with pytest.raises(Refused, match="no model_config"):
        weights.load_model(draft.url)


def test_build_lists_missing_unexpected_and_misshapen_tensors() -> None:
    state = tiny_model().state_dict()
    del state["norm.weight"]
    with pytest.raises(Refused, match=r"missing \['norm.weight'\], unexpected \['extra'\]"):
        weights.build(CONFIG, {**state, "extra": torch.ones(1)})
    with pytest.raises(Refused, match=r"lm_head.weight has shape \(61, 16\), the config wants \(62, 16\)"):
        weights.build(
            dataclasses.replace(CONFIG, vocab_size=62),
            {**tiny_model().state_dict(), "embed_tokens.weight": torch.ones(62, 16)},
        )

"""Files in memory: valid safetensors, cut at the limit, filled from live tensors, remade when the state changes its form."""

import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_safetensors

from trainplane import staging
from trainplane.exchange import Exchange
from triplane import artifact
from triplane.lm import tensor_index, weights

SHAPES = [(), (1,), (7,), (3, 5), (0, 4), (2, 3, 4), (17, 1)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, shape in enumerate(SHAPES):
        for dtype in DTYPES:
            stem = "model" if number % 2 else "optimizer"
            found[f"{stem}/t{number}.{str(dtype)[6:]}"] = torch.randn(shape, generator=generator).mul(9).to(dtype)
    return found


def stored(tensors: dict[str, torch.Tensor], root: Path, held: staging.Staging) -> dict[str, torch.Tensor]:
    """What a reader finds of a state that was copied, uploaded and indexed."""
    draft = artifact.begin(str(root), "checkpoint", "x", inputs={}, recipe={}, stage_versions={}, url=str(root))
    put = [(image.stem, *image.put(draft, number)) for number, image in enumerate(held.copy(tensors))]
    found = {}
    for stem in ("model", "optimizer"):
        merged = tensor_index.merged([entries for one, _, entries in put if one == stem])
        index = draft.put_bytes(tensor_index.to_bytes(merged), f"{stem}.index", ".json")
        files = [file for one, file, _ in put if one == stem]
        found.update({f"{stem}/{k}": v for k, v in weights.load_tensors(str(root), [*files, index]).items()})
    return found


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@given(limit=st.sampled_from([1, 8, 30, 100, 1 << 20]), block=st.sampled_from([1, 16, 1 << 20]))
@settings(max_examples=15)
def test_what_is_copied_is_read_whatever_the_limits(
    tmp_path_factory: pytest.TempPathFactory, limit: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "MAX_FILE_BYTES", limit)
        patch.setattr(tensor_index, "BLOCK_BYTES", block)
        held = staging.Staging(Exchange(None))
        folder = tmp_path_factory.mktemp("staged")
        for seed in (0, 1):  # the second copy reuses the memory of the first
            assert_equal(stored(state(seed), folder / str(seed), held), state(seed))


def test_the_copy_is_taken_at_once_and_memory_is_kept() -> None:
    held = staging.Staging(Exchange(None))
    tensors = state()
    first = held.copy(tensors)
    before = [bytes(image.buffer) for image in first]
    for tensor in tensors.values():
        tensor.fill_(1)
    assert [bytes(image.buffer) for image in first] == before
    second = held.copy(tensors)
    assert [id(image.buffer) for image in second] == [id(image.buffer) for image in first]
    assert [bytes(image.buffer) for image in second] != before
    assert held.copy({**tensors, "model/new": torch.ones(3)})[0].buffer is not second[0].buffer


def test_an_image_is_a_safetensors_file() -> None:
    """Read by the reference implementation; values aligned to their size; a name once a file."""
    images = staging.Staging(Exchange(None)).copy(state())
    for image in images:
        found = load_safetensors(bytes(image.buffer))
        assert found.keys() == {piece.name for piece in image.pieces}
        header_length = struct.unpack("<Q", image.buffer[:8])[0]
        assert (8 + header_length) % 8 == 0
        for piece, start in zip(image.pieces, image.starts, strict=True):
            assert start % tensor_index.DTYPES[piece.dtype].itemsize == 0
            assert torch.equal(found[piece.name], state()[f"{image.stem}/{piece.name}"])

"""64 bytes at a time: each mask equals a look at every byte, wherever the block starts and however short the array is."""

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.kernels import masks, words

CLASSES = {
    "spaces": set(range(9, 14)) | set(range(28, 33)),
    "wide_space_leads": {0xC2, 0xE1, 0xE2, 0xE3},
    "newlines": {10},
    "continuations": set(range(0x80, 0xC0)),
    "not_plain": set(range(32)) | {0x22, 0x5C} | set(range(128, 256)),
    "letters_and_digits": {b for b in range(256) if b >= 128 or chr(b).isalnum()},
}


def mask_of(name: str, data: np.ndarray, start: int, end: int) -> int:
    function = getattr(masks, name)

    @numba.njit
    def masked(data, start, end):  # type: ignore[no-untyped-def]
        return function(data, start) & masks.below(end - start)

    return int(masked(data, start, end))


@pytest.mark.parametrize("name", CLASSES)
def test_a_mask_has_the_bits_of_its_bytes(name: str) -> None:
    data = np.random.default_rng(0).permutation(np.arange(256, dtype=np.uint8))
    for start, end in ((0, 64), (13, 77), (200, 256), (255, 256)):
        wanted = sum(1 << i for i, byte in enumerate(data[start:end].tolist()) if byte in CLASSES[name])
        assert mask_of(name, data, start, end) == wanted


@numba.njit
def _packed(data, start, end):  # type: ignore[no-untyped-def]
    return words.up_to_8(data, start, end), words.word_characters(data, start, end)


@given(st.text(max_size=12), st.data())
def test_up_to_eight_bytes_are_read_at_any_place(text: str, draw: st.DataObject) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    start = draw.draw(st.integers(0, len(raw)))
    end = draw.draw(st.integers(start, min(len(raw), start + 8)))
    data = masks.at_least_64(np.frombuffer(raw, np.uint8))
    value, count = _packed(data, start, end)
    assert int(value) == int.from_bytes(raw[start:end], "little")
    assert count == sum(byte & 0xC0 != 0x80 for byte in raw[start:end])

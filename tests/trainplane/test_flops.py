"""FLOPs a token, against OLMo-core's own count and a count by hand."""

import pytest

from trainplane.flops import flops_per_token, peak_flops
from triplane.lm.model import ModelConfig

TINY = ModelConfig(96, 32, 48, 2, 4, 2, eos_token_id=0, pad_token_id=1)


def test_by_hand() -> None:
    attention = 2 * 32 * 32 + 2 * 32 * 16 + 32 + 16
    block = attention + 3 * 32 * 48 + 2 * 32
    assert flops_per_token(TINY, 8) == 6 * (2 * block + 32 + 96 * 32) + 12 * 2 * 32 * 8


def test_equal_to_olmo_core_but_for_the_causal_half() -> None:
    """Its release 3.0.0 counts what causal masking leaves of attention; the MFU figures published with OLMo 2 count all of it."""
    from olmo_core.nn.transformer import TransformerConfig

    theirs = TransformerConfig.olmo2_190M(vocab_size=100352).build(init_device="meta")
    ours = ModelConfig(100352, 768, 3072, 12, 12, 12)
    causal_half = 6 * 12 * 768 * 4096
    assert flops_per_token(ours, 4096) - causal_half == pytest.approx(theirs.num_flops_per_token(4096), rel=1e-4)
    assert flops_per_token(ours, 4096) != pytest.approx(theirs.num_flops_per_token(4096), rel=0.1)


def test_a_peak_is_known_or_none() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989.5e12
    assert peak_flops("cpu") is None

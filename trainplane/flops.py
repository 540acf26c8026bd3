"""Floating-point operations of training: (model config, sequence length) -> FLOPs a token; with a rate and a GPU's peak, MFU.

The formula is the one OLMo 2's figures were made with: 6 for every parameter but the input embedding, and 12 x layers x width x sequence for
attention, of which causal masking takes nothing off (OLMo-core 3.0.0 takes half). Peaks are dense bf16: OLMo-core train/callbacks/speed_monitor.py.
"""

from triplane.lm.model import ModelConfig, num_parameters

# By a part of the device's name. Half of the vendor's figure with sparsity.
PEAK_FLOPS = {"H100": 989.5e12, "H200": 989.5e12}


def flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Forward and backward, without recomputation."""
    width = config.num_attention_heads * config.head_dim
    counted = num_parameters(config) - config.vocab_size * config.hidden_size
    return 6.0 * counted + 12.0 * config.num_hidden_layers * width * sequence_length


def peak_flops(device_name: str) -> float | None:
    """Of one device; None where no source says it, as for CPUs."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in device_name), None)

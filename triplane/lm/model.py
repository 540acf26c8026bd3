"""OLMo 2 in plain PyTorch: int64 token ids [B, T] in, logits [B, T, V] out. No parallelism, no training, no files.

What differs from Llama: the norms sit after attention and after the MLP, inside the residual branch (`h = x + norm(attn(x))`), and
queries and keys are normalised over their whole projection, before it is split in heads. Facts: OLMo 2, arXiv 2501.00656, section 3;
numbers equal `transformers.Olmo2ForCausalLM`, parameter names too, without the leading `model.`. Three switches give back the choices of
OLMo-0424 that the paper compares with (section 3); norms before the branches and no QK-norm are Llama, whose names the norms then have.

Shape suffixes: B rows, T tokens of a row, S slots of keys (T, or the capacity of a cache), D hidden_size, V vocab_size, F intermediate_size,
H query heads, K key/value heads, E head_dim. Errors are `ValueError`: this file imports nothing but torch and the standard library.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormPosition = Literal["post", "pre"]
Initialization = Literal["normal", "scaled"]
TRUNCATION_SIGMAS = 3.0  # OLMo-core nn/transformer/init.py: normal, cut at 3 standard deviations, no scaling by depth


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a model, under Hugging Face's names. `vocab_size` counts embedding rows (padded), not tokenizer entries.

    The last three are switches of ablations; at their defaults, OLMo 2's, `to_dict` leaves them out.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int = 4096
    rope_theta: float = 500_000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    eos_token_id: int = 100257
    pad_token_id: int | None = 100277
    norm_position: NormPosition = "post"
    qk_norm: bool = True
    initialization: Initialization = "normal"

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise ValueError(f"model config: {problem}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """The config of exactly these fields; ValueError on an unknown or missing one (Hugging Face's own: `layouts`)."""
        known = {field.name for field in dataclasses.fields(cls)}
        required = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"model config: unknown fields {unknown}; known: {sorted(known)}")
        if missing := sorted(required - set(values)):
            raise ValueError(f"model config: missing fields {missing}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a switch at OLMo 2's value is left out, so that it is no part of an OLMo 2 model's identity."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if SWITCHES.get(name, (None,))[0] != value}


# Switch -> its values, OLMo 2's first.
SWITCHES: dict[str, tuple[Any, ...]] = {
    "norm_position": get_args(NormPosition),
    "qk_norm": (True, False),
    "initialization": get_args(Initialization),
}


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def _problems(config: ModelConfig) -> list[str]:
    values = dataclasses.asdict(config)
    sizes = {name: value for name, value in values.items() if not name.endswith("token_id") and name not in SWITCHES}
    found = [
        f"{name} is {value!r}, must be a number above 0" for name, value in sizes.items() if not _is_positive(value)
    ]
    found += [
        f"{name} is {values[name]!r}, must be one of {allowed}"
        for name, allowed in SWITCHES.items()
        if values[name] not in allowed
    ]
    if found:
        return found
    hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    if hidden % heads:
        found.append(f"num_attention_heads {heads} does not divide hidden_size {hidden}")
    elif (hidden // heads) % 2:
        found.append(f"head_dim {hidden // heads} is odd, rotary embeddings need pairs")
    if heads % kv_heads:
        found.append(f"num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    if not 0 <= config.eos_token_id < config.vocab_size:
        found.append(f"eos_token_id {config.eos_token_id} is outside vocab_size {config.vocab_size}")
    if config.pad_token_id is not None and not 0 <= config.pad_token_id < config.vocab_size:
        found.append(f"pad_token_id {config.pad_token_id} is outside vocab_size {config.vocab_size}")
    return found


def num_parameters(config: ModelConfig) -> int:
    """Parameters of the whole model, both embeddings (input and output) included."""
    hidden, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
    attention = 2 * hidden * hidden + 2 * hidden * kv_width + (hidden + kv_width) * config.qk_norm
    block = attention + 3 * hidden * config.intermediate_size + 2 * hidden
    return 2 * config.vocab_size * hidden + config.num_hidden_layers * block + hidden


Slots = tuple[Tensor, Tensor]  # keys and values of one layer, [B, S, K, E] each


class Cache:
    """Keys and values of earlier tokens. A token of position p lives in slot p of its row, so rows may differ in length.

    What a padding token wrote is never read: a query at position p sees slots 0..p only, and every slot up to p has been
    overwritten by a real token by then.
    """

    def __init__(self, config: ModelConfig, num_rows: int, num_slots: int, like: Tensor) -> None:
        """`like` gives device and dtype (any parameter of the model)."""
        shape_BSKE = (num_rows, num_slots, config.num_key_value_heads, config.head_dim)
        self.num_slots = num_slots
        self.layers: list[Slots] = [
            (like.new_zeros(shape_BSKE), like.new_zeros(shape_BSKE)) for _ in range(config.num_hidden_layers)
        ]

    def keep_rows(self, rows: Tensor) -> None:
        """Keep (or repeat) these rows, int64 [B'], in this order."""
        self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, all in fp32, cast back at the end (the weight multiplies before the cast)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).type_as(x)


def rotary(positions_BT: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, fp32 [B, T, 1, E/2]. Computed at every call: a buffer would be lost on meta devices and rounded by `.bfloat16()`."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_BT.device) / head_dim
    angles = positions_BT[..., None, None].float() * (1.0 / theta**exponents)
    return angles.cos(), angles.sin()


def rotate(x_BTHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (e, e + E/2): Hugging Face's rotate_half convention."""
    first, second = x_BTHE.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x_BTHE)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.hidden_size, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(kv_width, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.grouped = config.num_key_value_heads != config.num_attention_heads

    def forward(self, x_BTD: Tensor, view: "View", slots: Slots | None = None) -> Tensor:
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        # QK-norm over the whole projection, before heads exist: a per-head norm is another model.
        q_BTHE = rotate(self.q_norm(self.q_proj(x_BTD)).view(heads), *view.rotary)
        k_BTKE = rotate(self.k_norm(self.k_proj(x_BTD)).view(heads), *view.rotary)
        v_BTKE = self.v_proj(x_BTD).view(heads)
        k_BSKE, v_BSKE = (k_BTKE, v_BTKE) if slots is None else view.remember(k_BTKE, v_BTKE, slots)
        out_BHTE = F.scaled_dot_product_attention(
            q_BTHE.transpose(1, 2),
            k_BSKE.transpose(1, 2),
            v_BSKE.transpose(1, 2),
            attn_mask=view.mask_B1TS,
            is_causal=view.mask_B1TS is None,
            enable_gqa=self.grouped,
        )
        return self.o_proj(out_BHTE.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(nn.Module):
    """The reordered-norm block: nothing is normalised on the way in, each branch is on the way out. With norms before: Llama's block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.norms_first = config.norm_position == "pre"
        if self.norms_first:
            self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not self.norms_first:
            self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_BTD: Tensor, view: "View", slots: Slots | None = None) -> Tensor:
        if self.norms_first:
            h_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), view, slots)
            return h_BTD + self.mlp(self.post_attention_layernorm(h_BTD))
        h_BTD = x_BTD + self.post_attention_layernorm(self.self_attn(x_BTD, view, slots))
        return h_BTD + self.post_feedforward_layernorm(self.mlp(h_BTD))


@dataclasses.dataclass(frozen=True)
class View:
    """What each token may look at, the same in every layer."""

    rotary: tuple[Tensor, Tensor]
    mask_B1TS: Tensor | None  # None: causal, the fast path of training
    positions_BT: Tensor

    def remember(self, k_BTKE: Tensor, v_BTKE: Tensor, slots: Slots) -> Slots:
        """Write this call's keys and values to the slots of their positions; all slots of the layer, [B, S, K, E] each."""
        keys, values = slots
        rows_B1 = torch.arange(k_BTKE.shape[0], device=k_BTKE.device)[:, None]
        keys[rows_B1, self.positions_BT] = k_BTKE
        values[rows_B1, self.positions_BT] = v_BTKE
        return keys, values


Result = TypeVar("Result")


class Head(nn.Linear):
    """The output matrix, [V, D]: hidden states -> logits, or lent to a function that never makes them all."""

    def through(self, function: Callable[..., Result], hidden: Tensor, *arguments: Any) -> Result:
        """`function(hidden, weight, *arguments)`. A method, so that a sharded matrix can be gathered for the call as for `forward`."""
        return function(hidden, self.weight, *arguments)


class Olmo2(nn.Module):
    """The language model. Its parameters mean nothing before `init_weights` or `weights.build`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids_BT: Tensor, cache: Cache | None = None, positions_BT: Tensor | None = None) -> Tensor:
        """int64 ids [B, T] -> logits [B, T, V]; with a cache, ids are the next tokens and positions say where (default: 0..T-1)."""
        return self.lm_head(self.hidden(ids_BT, cache, positions_BT))

    def hidden(
        self,
        ids_BT: Tensor,
        cache: Cache | None = None,
        positions_BT: Tensor | None = None,
        mask_BTT: Tensor | None = None,
    ) -> Tensor:
        """int64 ids [B, T] -> hidden states [B, T, D] after the final norm: what `lm_head` reads.

        `mask_BTT` (bool, True = may attend) replaces the causal rule, for trees of tokens in one row; not together with a cache.
        """
        view = self._view(ids_BT, cache, positions_BT, mask_BTT)
        x_BTD = self.embed_tokens(ids_BT)
        for number, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, view, None if cache is None else cache.layers[number])
        return self.norm(x_BTD)

    def _view(self, ids_BT: Tensor, cache: Cache | None, positions: Tensor | None, mask_BTT: Tensor | None) -> View:
        if positions is None:
            positions = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        positions_BT = positions.expand(ids_BT.shape)
        mask_B1TS = None if mask_BTT is None else mask_BTT[:, None]
        if cache is not None:
            if mask_BTT is not None:
                raise ValueError("a tree mask and a cache cannot be used together")
            slots_S = torch.arange(cache.num_slots, device=ids_BT.device)
            mask_B1TS = (slots_S <= positions_BT[..., None])[:, None]
        # One row of angles serves all rows of a plain batch.
        angles = rotary(positions if cache is None else positions_BT, self.config.head_dim, self.config.rope_theta)
        return View(angles, mask_B1TS, positions_BT)


def initial_std(name: str, config: ModelConfig) -> float:
    """Standard deviation of parameter `name` at the start. normal: one for all. scaled (OLMo-0424, `mitchell` in allenai/OLMo
    olmo/model.py): 1 / sqrt(fan-in), and for what adds to the residual stream in layer l = 0, 1, ... another 1 / sqrt(2 (l + 1))."""
    if config.initialization == "normal":
        return config.initializer_range
    fan_in = config.intermediate_size if name.endswith("down_proj.weight") else config.hidden_size
    adds_to_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
    depth = 2 * (int(name.split(".")[1]) + 1) if adds_to_stream else 1
    return 1.0 / math.sqrt(fan_in * depth)


def initial_tensor(name: str, shape: torch.Size, std: float, seed: int) -> Tensor:
    """What `init_weights` puts in parameter `name`: fp32 on the CPU; ones for norms (the 1-D parameters), else a truncated normal.

    The generator is seeded by (seed, name), so a parameter does not depend on the others, on sharding, or on torch's own state.
    """
    if len(shape) == 1:
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    bound = TRUNCATION_SIGMAS * std
    return nn.init.trunc_normal_(torch.empty(shape), 0.0, std, -bound, bound, generator=generator)


@torch.no_grad()
def init_weights(model: Olmo2, seed: int) -> None:
    """Set every parameter as OLMo 2 does, from `seed` alone."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_tensor(name, parameter.shape, initial_std(name, model.config), seed))

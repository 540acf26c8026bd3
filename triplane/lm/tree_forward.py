"""The model's forward over packed rows of a prefix tree, or over one token of each running prompt, behind a shared trunk.

Tokens lie flat, [N, D]: no padding in the linear layers. Every token sees all of the trunk (keys and values computed once, looked at by all
queries in one call, never repeated) and what `own` says: its tree (`TreeRows`), or the cache of its prompt (`generation.Slots`). The two
parts are joined by their log-sum-exp. In the last layer only the wanted tokens go on. Equal to `Olmo2.hidden` for every config (tested).
Shape suffixes: N tokens, U wanted ones, D hidden_size, H heads, K key heads, G = H / K, E head_dim, B rows, M queries, S keys.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triplane.lm.model import Attention, Block, Olmo2, rotary, rotate
from triplane.lm.prefix_tree import Row

SCORES_AT_ONCE = 1 << 22  # attention scores held at once, fp32

KeysValues = tuple[Tensor, Tensor]  # [K, S, E] each
# (layer, q_UHE, k_NKE, v_NKE, wanted rows or None for all) -> (output [U, H, E], its log-sum-exp [U, H])
Own = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def hidden(
    model: Olmo2, ids_N: Tensor, positions_N: Tensor, own: Own, trunk: list[KeysValues] | None, wanted_U: Tensor
) -> Tensor:
    """int64 ids and positions [N] -> hidden states [U, D] of the wanted tokens after the final norm."""
    config = model.config
    angles = tuple(part[0] for part in rotary(positions_N[None], config.head_dim, config.rope_theta))
    x_ND = model.embed_tokens(ids_N)
    for number, layer in enumerate(model.layers):
        wanted = wanted_U if number == len(model.layers) - 1 else None
        x_ND = _block(layer, number, x_ND, angles, own, trunk, wanted)
    return model.norm(x_ND)


def _block(
    layer: nn.Module,
    number: int,
    x_ND: Tensor,
    angles: tuple[Tensor, ...],
    own: Own,
    trunk: list[KeysValues] | None,
    wanted: Tensor | None,
) -> Tensor:
    assert isinstance(layer, Block)
    normed_ND = layer.input_layernorm(x_ND) if layer.norms_first else x_ND
    branch = _attention(
        layer.self_attn, number, normed_ND, angles, own, None if trunk is None else trunk[number], wanted
    )
    x_UD = x_ND if wanted is None else x_ND[wanted]
    if layer.norms_first:
        h_UD = x_UD + branch
        return h_UD + layer.mlp(layer.post_attention_layernorm(h_UD))
    h_UD = x_UD + layer.post_attention_layernorm(branch)
    return h_UD + layer.post_feedforward_layernorm(layer.mlp(h_UD))


def _attention(
    attention: Attention,
    number: int,
    x_ND: Tensor,
    angles: tuple[Tensor, ...],
    own: Own,
    trunk: KeysValues | None,
    wanted: Tensor | None,
) -> Tensor:
    cos, sin = angles
    k_NKE = rotate(attention.k_norm(attention.k_proj(x_ND)).unflatten(-1, (-1, attention.head_dim)), cos, sin)
    v_NKE = attention.v_proj(x_ND).unflatten(-1, (-1, attention.head_dim))
    if wanted is not None:
        x_ND, cos, sin = x_ND[wanted], cos[wanted], sin[wanted]
    q_UHE = rotate(attention.q_norm(attention.q_proj(x_ND)).unflatten(-1, (-1, attention.head_dim)), cos, sin)
    out_UHE, lse_UH = own(number, q_UHE, k_NKE, v_NKE, wanted)
    if trunk is not None:
        trunk_UHE, trunk_UH = attend_all(q_UHE, *trunk)
        out_UHE = out_UHE + torch.sigmoid(trunk_UH - lse_UH)[..., None] * (trunk_UHE - out_UHE)
    return attention.o_proj(out_UHE.type_as(x_ND).flatten(1))


def attend(q_BKGME: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, bias_BMS: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(softmax(q k / sqrt E + bias) v, fp32 [B, K, G, M, E]; log-sum-exp [B, K, G, M]): grouped heads without repeating keys."""
    scale = q_BKGME.shape[-1] ** -0.5
    scores = ((q_BKGME * scale).flatten(2, 3) @ k_BKSE.transpose(2, 3)).float()
    scores = scores.unflatten(2, q_BKGME.shape[2:4])
    if bias_BMS is not None:
        scores += bias_BMS[:, None, None]
    largest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    total = weights.sum(-1, keepdim=True)
    out = (weights.flatten(2, 3).type_as(v_BKSE) @ v_BKSE).float().unflatten(2, q_BKGME.shape[2:4])
    return out / total, (largest + total.log())[..., 0]


def attend_all(q_UHE: Tensor, k_KSE: Tensor, v_KSE: Tensor) -> tuple[Tensor, Tensor]:
    """Every query sees every key -> (output [U, H, E], log-sum-exp [U, H]), in bounded pieces."""
    num_heads, num_keys = q_UHE.shape[1], k_KSE.shape[1]
    q_UKGE = q_UHE.unflatten(1, (len(k_KSE), -1))
    piece = max(1, SCORES_AT_ONCE // (num_heads * num_keys))
    found = [attend(part.permute(1, 2, 0, 3)[None], k_KSE[None], v_KSE[None]) for part in q_UKGE.split(piece)]
    out = torch.cat([one.flatten(1, 2)[0].transpose(0, 1) for one, _ in found])
    return out, torch.cat([one.flatten(1, 2)[0].transpose(0, 1) for _, one in found])


def joined(before: list[KeysValues], after: list[KeysValues]) -> list[KeysValues]:
    """The keys and values of a trunk and of what continues it, layer by layer."""
    return [
        (torch.cat((k, later_k), 1), torch.cat((v, later_v), 1))
        for (k, v), (later_k, later_v) in zip(before, after, strict=True)
    ]


class TreeRows:
    """Attention of each token to its ancestors in its row. With `keep`, `kept` holds each layer's keys and values [K, N, E]: a trunk's."""

    def __init__(self, rows: Sequence[Row], device: torch.device, is_alone: bool, keep: bool = False) -> None:
        """`is_alone`: no trunk before the rows, so chains need no log-sum-exp and take the fast causal path."""
        lengths = [len(row.tokens) for row in rows]
        self.size = max(lengths)
        starts = np.cumsum([0, *lengths[:-1]])
        inside = np.arange(self.size)[None] < np.array(lengths)[:, None]
        pad = np.where(inside, starts[:, None] + np.arange(self.size), 0)
        self.pad_BM = torch.from_numpy(pad).to(device)
        self.flat_N = torch.from_numpy(np.flatnonzero(inside)).to(device)
        self.is_causal = is_alone and all(row.is_chain for row in rows)
        self.bias_BMM = None if self.is_causal else self._bias(rows).to(device)
        self.is_full = bool(inside.all()) and len(rows) == 1
        self.kept: list[KeysValues] | None = [] if keep else None

    def _bias(self, rows: Sequence[Row]) -> Tensor:
        masks = torch.from_numpy(np.stack([row.mask(self.size) for row in rows]))
        return torch.zeros(masks.shape).masked_fill_(~masks, -torch.inf)

    def __call__(
        self, number: int, q_UHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, wanted: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.kept is not None:
            self.kept.append((k_NKE.transpose(0, 1).contiguous(), v_NKE.transpose(0, 1).contiguous()))
        if wanted is not None and not len(wanted):
            return q_UHE, q_UHE.new_zeros(q_UHE.shape[:2], dtype=torch.float32)
        if wanted is not None:
            q_UHE = q_UHE.new_zeros((len(k_NKE), *q_UHE.shape[1:])).index_copy_(0, wanted, q_UHE)
        q_BHME, k_BKME, v_BKME = (x[self.pad_BM].transpose(1, 2) for x in (q_UHE, k_NKE, v_NKE))
        kept_N = self.flat_N if wanted is None else self.flat_N[wanted]
        if self.is_causal:
            out = F.scaled_dot_product_attention(
                q_BHME, k_BKME, v_BKME, is_causal=True, enable_gqa=k_BKME.shape[1] != q_BHME.shape[1]
            )
            return out.transpose(1, 2).flatten(0, 1)[kept_N], out.new_zeros((len(kept_N), out.shape[1]))
        out, lse = self._attend(q_BHME, k_BKME, v_BKME)
        return out.transpose(1, 2).flatten(0, 1)[kept_N], lse.transpose(1, 2).flatten(0, 1)[kept_N]

    def _attend(self, q_BHME: Tensor, k_BKME: Tensor, v_BKME: Tensor) -> tuple[Tensor, Tensor]:
        """In pieces of rows, and of queries where one row is long."""
        assert self.bias_BMM is not None
        q_BKGME = q_BHME.unflatten(1, (k_BKME.shape[1], -1))
        of_row = q_BHME.shape[1] * self.size**2
        rows, queries = max(1, SCORES_AT_ONCE // of_row), max(1, SCORES_AT_ONCE * self.size // of_row)
        found = []
        for b in range(0, len(q_BHME), rows):
            some = slice(b, b + rows)
            parts = [
                attend(
                    q_BKGME[some, :, :, m : m + queries],
                    k_BKME[some],
                    v_BKME[some],
                    self.bias_BMM[some, m : m + queries],
                )
                for m in range(0, self.size, queries)
            ]
            found.append([torch.cat(part, 3) for part in zip(*parts, strict=True)])
        out, lse = (torch.cat(part).flatten(1, 2) for part in zip(*found, strict=True))
        return out, lse

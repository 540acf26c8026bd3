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

from triplane.lm.engine_ranks import gathered
from triplane.lm.model import Attention, Block, Olmo2, rotary, rotate
from triplane.lm.prefix_tree import Row

SCORES_AT_ONCE, SCORES_AT_ONCE_CPU = (
    1 << 24,
    1 << 18,
)  # attention scores held at once, fp32: those of a CPU in its cache
ALIKE = 0.75  # rows are padded to the longest of those that are at least this share of it

KeysValues = tuple[Tensor, Tensor]  # [K, S, E] each
# (layer, q_UHE, k_NKE, v_NKE, wanted rows or None for all) -> (output [U, H, E], its log-sum-exp [U, H])
Own = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def hidden(
    model: Olmo2, ids_N: Tensor, positions_N: Tensor, own: Own, trunk: list[KeysValues] | None, wanted_U: Tensor
) -> Tensor:
    """int64 ids and positions [N] -> hidden states [U, D] of the wanted tokens after the final norm."""
    config = model.config
    angles = tuple(part[0] for part in rotary(positions_N[None], config.head_dim, config.rope_theta))
    with gathered(model.embed_tokens):
        x_ND = model.embed_tokens.forward(ids_N)
    for number, layer in enumerate(model.layers):
        wanted = wanted_U if number == len(model.layers) - 1 else None
        with gathered(layer):
            x_ND = _block(layer, number, x_ND, angles, own, trunk, wanted)
    with gathered(model):
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
    piece = max(1, _at_once(q_UHE.device) // (num_heads * num_keys))
    found = [attend(part.permute(1, 2, 0, 3)[None], k_KSE[None], v_KSE[None]) for part in q_UKGE.split(piece)]
    out = torch.cat([one.flatten(1, 2)[0].transpose(0, 1) for one, _ in found])
    return out, torch.cat([one.flatten(1, 2)[0].transpose(0, 1) for _, one in found])


def _at_once(device: torch.device) -> int:
    return SCORES_AT_ONCE_CPU if device.type == "cpu" else SCORES_AT_ONCE


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
        starts = np.cumsum([0, *(len(row.tokens) for row in rows)])
        self.groups = [_Alike([rows[i] for i in group], starts[group], device, is_alone) for group in _alike(rows)]
        order = torch.cat([group.flat_N for group in self.groups])
        self.place_N = torch.empty_like(order)  # where a token's output is among those of all groups
        self.place_N[order] = torch.arange(len(order), device=device)
        self.kept: list[KeysValues] | None = [] if keep else None

    def __call__(
        self, number: int, q_UHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, wanted: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.kept is not None:
            self.kept.append((k_NKE.transpose(0, 1).contiguous(), v_NKE.transpose(0, 1).contiguous()))
        if wanted is not None and not len(wanted):
            return q_UHE, q_UHE.new_zeros(q_UHE.shape[:2], dtype=torch.float32)
        if wanted is not None:
            q_UHE = q_UHE.new_zeros((len(k_NKE), *q_UHE.shape[1:])).index_copy_(0, wanted, q_UHE)
        found = [group.attend(q_UHE, k_NKE, v_NKE) for group in self.groups]
        place_U = self.place_N if wanted is None else self.place_N[wanted]
        return torch.cat([out for out, _ in found])[place_U], torch.cat([lse for _, lse in found])[place_U]


def _alike(rows: Sequence[Row]) -> list[list[int]]:
    """Numbers of rows in groups of like length."""
    found: list[list[int]] = []
    for number in sorted(range(len(rows)), key=lambda number: -len(rows[number].tokens)):
        if found and len(rows[number].tokens) >= ALIKE * len(rows[found[-1][0]].tokens):
            found[-1].append(number)
        else:
            found.append([number])
    return found


class _Alike:
    """Rows padded to one length M. `flat_N` are the places of their tokens among all of the forward."""

    def __init__(self, rows: list[Row], starts: np.ndarray, device: torch.device, is_alone: bool) -> None:
        lengths = np.array([len(row.tokens) for row in rows])
        self.size = int(lengths.max())
        inside = np.arange(self.size) < lengths[:, None]
        pad = np.where(inside, starts[:, None] + np.arange(self.size), starts[:, None])
        self.pad_BM = torch.from_numpy(pad).to(device)
        self.flat_N = torch.from_numpy(pad[inside]).to(device)
        self.inside = None if inside.all() else torch.from_numpy(np.flatnonzero(inside)).to(device)
        self.is_causal = is_alone and all(row.is_chain for row in rows)
        self.bias_BMM = None if self.is_causal else self._bias(rows).to(device)

    def _bias(self, rows: Sequence[Row]) -> Tensor:
        masks = torch.from_numpy(np.stack([row.mask(self.size) for row in rows]))
        return torch.zeros(masks.shape).masked_fill_(~masks, -torch.inf)

    def attend(self, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> tuple[Tensor, Tensor]:
        """(output, log-sum-exp) of the rows' tokens one after another, padding left out."""
        q_BHME, k_BKME, v_BKME = (x[self.pad_BM].transpose(1, 2) for x in (q_NHE, k_NKE, v_NKE))
        if self.is_causal:
            is_grouped = k_BKME.shape[1] != q_BHME.shape[1]
            out = F.scaled_dot_product_attention(q_BHME, k_BKME, v_BKME, is_causal=True, enable_gqa=is_grouped)
            lse = out.new_zeros(out.shape[:3], dtype=torch.float32)
        else:
            out, lse = self._masked(q_BHME, k_BKME, v_BKME)
        flat, flat_lse = out.transpose(1, 2).flatten(0, 1), lse.transpose(1, 2).flatten(0, 1)
        return (flat, flat_lse) if self.inside is None else (flat[self.inside], flat_lse[self.inside])

    def _masked(self, q_BHME: Tensor, k_BKME: Tensor, v_BKME: Tensor) -> tuple[Tensor, Tensor]:
        """In pieces of rows, and of queries where one row is long."""
        assert self.bias_BMM is not None
        q_BKGME = q_BHME.unflatten(1, (k_BKME.shape[1], -1))
        of_query, at_once = q_BHME.shape[1] * self.size, _at_once(q_BHME.device)
        rows, queries = max(1, at_once // (of_query * self.size)), max(1, at_once // of_query)
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

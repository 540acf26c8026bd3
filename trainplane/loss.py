"""Next-token cross-entropy with z-loss, as sums over labelled tokens, so that the caller divides by the global count.

(hidden states, output matrix, labels) -> `LossSums`. The whole logits are never in memory: `head_loss` walks over chunks of tokens and
computes the gradient of a chunk while its logits exist. `plain_head_loss` is the same equation with autograd, kept as the definition.

    loss = sum_t [ lse_t - logit_t(label_t) ] + z * sum_t lse_t^2        lse_t = logsumexp of the logits at t, natural logarithm

Shapes: B instances, T tokens, N = B*T, D hidden, V vocabulary. z-loss: arXiv 2501.00656, section 3.3.3.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .products import product

IGNORE = -100
# Rows at once: enough that reading the matrix pays (D of them), at least what fits in cache, at most these bytes of fp32 logits.
CACHE_BYTES = 2**21
MOST_BYTES = {"cpu": 2**28, "cuda": 2**30}


class LossSums(NamedTuple):
    """Sums over labelled tokens. Only `total` carries a gradient."""

    total: Tensor
    cross_entropy: Tensor
    z_squared: Tensor


def next_token_labels(tokens_BT: Tensor, is_target_BT: Tensor) -> Tensor:
    """labels_BT int64: position t is labelled with token t+1 where that token is a target; the last position has no label."""
    labels_BT = torch.full_like(tokens_BT, IGNORE)
    labels_BT[:, :-1] = torch.where(is_target_BT[:, 1:], tokens_BT[:, 1:], IGNORE)
    return labels_BT


def plain_head_loss(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, z_loss: float) -> LossSums:
    """The definition: materialises the logits and lets autograd differentiate."""
    logits_NV = (hidden_ND @ weight_VD.T).float()
    cross_entropy = F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE, reduction="sum")
    z_squared = (logits_NV.logsumexp(-1).square() * (labels_N != IGNORE)).sum()
    return LossSums(cross_entropy + z_loss * z_squared, cross_entropy.detach(), z_squared.detach())


def head_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    z_loss: float,
    chunk_tokens: int | None = None,
    compiled: bool = False,
) -> LossSums:
    """Equal to `plain_head_loss` up to rounding, with at most `chunk_tokens` x V logits in memory. Computes in the dtype of `hidden_ND`.

    fp32: values and gradients to 1e-5. bf16: logits, their gradient, scaled hidden states and a chunk's part of the matrix's gradient are rounded to
    bf16 once each: gradients are off by up to twice what the plain loss in bf16 is off by, below 1 %. Exponentials and sums are fp32.
    `compiled` fuses the passes over a chunk's logits.
    """
    chunk = chunk_tokens or _rows_at_once(weight_VD, hidden_ND.device.type)
    return LossSums(*_ChunkedHeadLoss.apply(hidden_ND, weight_VD, labels_N, z_loss, chunk, compiled))


def _rows_at_once(weight_VD: Tensor, device: str) -> int:
    vocabulary, width = weight_VD.shape
    row_bytes = 4 * vocabulary
    return max(1, min(max(width, CACHE_BYTES // row_bytes), MOST_BYTES.get(device, 2**28) // row_bytes))


class _ChunkedHeadLoss(torch.autograd.Function):
    """Gradients are computed in the forward pass, for an upstream gradient of 1, and scaled in the backward pass, which may come once."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, z_loss: float, chunk: int, compiled: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        of_chunk = _compiled_chunk() if compiled else _chunk
        matrix_VD = weight_VD.to(hidden_ND.dtype)
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD: Tensor | None = None
        sums = torch.zeros(2, dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, len(labels_N), chunk):
            rows = slice(start, start + chunk)
            grad_nV, scale_n1 = of_chunk(hidden_ND[rows], matrix_VD, labels_N[rows], z_loss, sums)
            torch.mul(product(grad_nV, matrix_VD.T), scale_n1, out=grad_hidden_ND[rows])
            part_VD = product(grad_nV.T, (hidden_ND[rows] * scale_n1).to(matrix_VD.dtype).T)
            grad_weight_VD = part_VD.float() if grad_weight_VD is None else grad_weight_VD.add_(part_VD)
        assert grad_weight_VD is not None
        ctx.gradients = grad_hidden_ND, grad_weight_VD.to(weight_VD.dtype)
        cross_entropy, z_squared = sums.unbind()
        ctx.mark_non_differentiable(cross_entropy, z_squared)
        return cross_entropy + z_loss * z_squared, cross_entropy, z_squared

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        grad_hidden_ND, grad_weight_VD = ctx.gradients
        ctx.gradients = None  # the only references: autograd takes the tensors over instead of copying them
        if upstream[0].device.type != "cpu" or upstream[0] != 1:  # asking a GPU would be a sync
            grad_hidden_ND.mul_(upstream[0])
            grad_weight_VD.mul_(upstream[0])
        return grad_hidden_ND, grad_weight_VD, None, None, None, None


def _chunk(
    hidden_nD: Tensor, matrix_VD: Tensor, labels_n: Tensor, z_loss: float, sums: Tensor
) -> tuple[Tensor, Tensor]:
    """(g [n, V], s [n, 1]) with d loss / d logits = g * s, and s = 0 without a label; adds (cross-entropy, lse^2) to `sums`.

    d loss / d logits = softmax * (1 + 2 z lse) - onehot = (exp(logits - max) - onehot / s) * s: to multiply rows of D numbers by s, later,
    saves a pass over V.
    """
    labelled_n1 = (labels_n != IGNORE).unsqueeze(1)
    labels_n1 = labels_n.clamp(min=0).unsqueeze(1)
    logits_nV = product(hidden_nD, matrix_VD).float()
    label_logit_n1 = logits_nV.gather(1, labels_n1)
    max_n1 = logits_nV.amax(1, keepdim=True)
    exp_nV = logits_nV.sub_(max_n1).exp_()
    sum_n1 = exp_nV.sum(1, keepdim=True)
    lse_n1 = max_n1 + sum_n1.log()
    sums[0] += ((lse_n1 - label_logit_n1) * labelled_n1).sum()
    sums[1] += (lse_n1.square() * labelled_n1).sum()
    scale_n1 = (1.0 + 2.0 * z_loss * lse_n1) / sum_n1
    grad_nV = exp_nV.scatter_add_(1, labels_n1, -1.0 / scale_n1)
    return grad_nV.to(matrix_VD.dtype), scale_n1 * labelled_n1


@cache
def _compiled_chunk() -> Callable[..., tuple[Tensor, Tensor]]:
    """Of fixed shapes: a whole chunk's, and that of the last one."""
    return torch.compile(_chunk, dynamic=False)

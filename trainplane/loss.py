"""Next-token cross-entropy with z-loss, as sums over labelled tokens, so that the caller divides by the global count.

(hidden states, output matrix, labels) -> `LossSums`. The whole logits are never in memory: `head_loss` walks over chunks of tokens and
computes the gradient of a chunk while its logits exist. `plain_head_loss` is the same equation with autograd, kept as the definition.

    loss = sum_t [ lse_t - logit_t(label_t) ] + z * sum_t lse_t^2        lse_t = logsumexp of the logits at t, natural logarithm

Shapes: B instances, T tokens, N = B*T, D hidden, V vocabulary. z-loss: arXiv 2501.00656, section 3.3.3.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100
# Rows whose fp32 logits are in memory at once: small enough to stay in cache at small vocabularies.
DEFAULT_CHUNK_BYTES = 2**21


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
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, z_loss: float, chunk_tokens: int | None = None
) -> LossSums:
    """Equal to `plain_head_loss` up to the order of fp32 sums, with at most `chunk_tokens` x V logits in memory."""
    chunk = chunk_tokens or max(1, DEFAULT_CHUNK_BYTES // (4 * weight_VD.shape[0]))
    return LossSums(*_ChunkedHeadLoss.apply(hidden_ND, weight_VD, labels_N, z_loss, chunk))


class _ChunkedHeadLoss(torch.autograd.Function):
    """Gradients are computed in the forward pass, for an upstream gradient of 1, and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, z_loss: float, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        sums = torch.zeros(2, dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, len(labels_N), chunk):
            rows = slice(start, start + chunk)
            grad_logits_nV = _chunk(hidden_ND[rows], weight_VD, labels_N[rows], z_loss, sums).to(hidden_ND.dtype)
            torch.mm(grad_logits_nV, weight_VD, out=grad_hidden_ND[rows])
            grad_weight_VD.addmm_(grad_logits_nV.T, hidden_ND[rows]) if hidden_ND.dtype == torch.float32 else (
                grad_weight_VD.add_(grad_logits_nV.T @ hidden_ND[rows])
            )
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD.to(weight_VD.dtype))
        cross_entropy, z_squared = sums.unbind()
        ctx.mark_non_differentiable(cross_entropy, z_squared)
        return cross_entropy + z_loss * z_squared, cross_entropy, z_squared

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
        return grad_hidden_ND * grads[0], grad_weight_VD * grads[0], None, None, None


def _chunk(hidden_nD: Tensor, weight_VD: Tensor, labels_n: Tensor, z_loss: float, sums: Tensor) -> Tensor:
    """d loss / d logits [n, V] in fp32; adds (cross-entropy, lse^2) of the chunk to `sums`. In place where it can be."""
    labelled_n = labels_n != IGNORE
    labels_n1 = labels_n.clamp(min=0).unsqueeze(1)
    logits_nV = (hidden_nD @ weight_VD.T).float()
    label_logit_n = logits_nV.gather(1, labels_n1).squeeze(1)
    max_n1 = logits_nV.amax(1, keepdim=True)
    exp_nV = logits_nV.sub_(max_n1).exp_()
    sum_n1 = exp_nV.sum(1, keepdim=True)
    lse_n = (max_n1 + sum_n1.log()).squeeze(1)
    sums[0] += ((lse_n - label_logit_n) * labelled_n).sum()
    sums[1] += (lse_n.square() * labelled_n).sum()
    # d/dlogits: softmax * (1 + 2 z lse) - onehot(label), zero where there is no label.
    scale_n1 = ((1.0 + 2.0 * z_loss * lse_n) * labelled_n).unsqueeze(1) / sum_n1
    grad_nV = exp_nV.mul_(scale_n1)
    return grad_nV.scatter_add_(1, labels_n1, -labelled_n.to(grad_nV.dtype).unsqueeze(1))

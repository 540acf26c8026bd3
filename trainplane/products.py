"""Matrix products of a training step: left [n, K], right [m, K] -> left @ right.T [n, m], on a CPU in fp32 by oneDNN.

PyTorch multiplies fp32 matrices on CPUs with MKL, which leaves AVX-512 aside on processors that are not Intel's. oneDNN, which PyTorch ships for
bf16 and for inference, is more than twice as fast there (one core of an EPYC, torch 2.13: 90 against 230 GFLOP/s). The result is fp32 all
the same, rounded in another order. Elsewhere, and where a build has no oneDNN, a product is what `torch.mm` makes of it.
"""

from typing import Any

import torch
from torch import Tensor, nn

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(left_nK: Tensor, right_mK: Tensor) -> Tensor:
    """left @ right.T, [n, m]; either may be a transposed view."""
    if HAS_ONEDNN and left_nK.device.type == "cpu" and left_nK.dtype == torch.float32:
        return _onednn_product(left_nK, right_mK)
    return left_nK @ right_mK.T


# An operator, since the compiler has its own mind about the one inside.
@torch.library.custom_op("triplane::onednn_product", mutates_args=(), device_types="cpu")
def _onednn_product(left_nK: Tensor, right_mK: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(left_nK, right_mK, None, "none", [], "")


@_onednn_product.register_fake
def _onednn_product_like(left_nK: Tensor, right_mK: Tensor) -> Tensor:
    return left_nK.new_empty(len(left_nK), len(right_mK))


class OneDnnLinear(nn.Linear):
    """`nn.Linear` without bias whose three products, one forward and two backward, are `product`."""

    def forward(self, x: Tensor) -> Tensor:
        return _OneDnnProducts.apply(x, self.weight)


class _OneDnnProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_mK: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_mK)
        return product(x.flatten(0, -2), weight_mK).view(*x.shape[:-1], len(weight_mK))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        x, weight_mK = ctx.saved_tensors
        grad_nm = upstream[0].flatten(0, -2)
        return product(grad_nm, weight_mK.T).view(x.shape), product(grad_nm.T, x.flatten(0, -2).T)


def use_in(model: nn.Module) -> None:
    """Turns the plain linear layers of a model in place; their parameters and names stay. For fp32 on a CPU, else it changes nothing."""
    for module in model.modules():
        if type(module) is nn.Linear and module.bias is None:
            module.__class__ = OneDnnLinear

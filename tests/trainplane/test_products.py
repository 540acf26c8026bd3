"""Products are those of torch, through the compiler's eyes too; layers keep their names and gradients."""

import pytest
import torch
from torch import nn

from trainplane import products


def of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "k", "m"), [(1, 1, 1), (7, 5, 3), (128, 64, 96), (33, 1, 200)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_is_left_times_right_transposed(n: int, k: int, m: int, transposed: bool) -> None:
    left = of(k, n).T if transposed else of(n, k)
    right = of(k, m, seed=1).T if transposed else of(m, k, seed=1)
    expected = (left.double() @ right.double().T).float()
    torch.testing.assert_close(products.product(left, right), expected, rtol=1e-5, atol=1e-5)


def test_fp32_on_a_cpu_goes_to_onednn_and_bf16_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    if not products.HAS_ONEDNN:
        pytest.skip("this build of torch has no oneDNN")
    seen: list[torch.dtype] = []
    monkeypatch.setattr(products, "_onednn_product", lambda left, right: seen.append(left.dtype) or left @ right.T)
    products.product(of(2, 3), of(4, 3))
    products.product(of(2, 3).bfloat16(), of(4, 3).bfloat16())
    assert seen == [torch.float32]


def test_without_onednn_it_is_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "HAS_ONEDNN", False)
    assert torch.equal(products.product(of(5, 3), of(4, 3, seed=1)), of(5, 3) @ of(4, 3, seed=1).T)


def test_the_operator_is_well_formed() -> None:
    torch.library.opcheck(torch.ops.triplane.onednn_product.default, (of(5, 3), of(4, 3)))


def test_layers_are_turned_in_place_and_have_the_same_gradients() -> None:
    def layers() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 6, bias=False), nn.SiLU(), nn.Linear(6, 4, bias=False), nn.Linear(4, 4))

    plain, turned = layers(), layers()
    products.use_in(turned)
    assert [type(each) for each in turned] == [products.OneDnnLinear, nn.SiLU, products.OneDnnLinear, nn.Linear]
    assert turned.state_dict().keys() == plain.state_dict().keys()
    x, y = of(2, 5, 8).requires_grad_(), of(2, 5, 8).requires_grad_()
    plain(x).square().sum().backward()
    turned(y).square().sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(turned.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)

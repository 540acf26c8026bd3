"""The chunked loss is the plain one; labels are the next tokens; sums can be split anywhere."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainplane import loss as loss_module
from trainplane.loss import IGNORE, LossSums, head_loss, next_token_labels, plain_head_loss


def problem(tokens: int = 37, vocab: int = 53, hidden: int = 16, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden_ND = torch.randn(tokens, hidden, generator=generator)
    weight_VD = torch.randn(vocab, hidden, generator=generator)
    labels_N = torch.randint(0, vocab, (tokens,), generator=generator)
    labels_N[::5] = IGNORE
    return hidden_ND, weight_VD, labels_N


def gradients(
    loss, hidden: torch.Tensor, weight: torch.Tensor, *rest, **options
) -> tuple[LossSums, torch.Tensor, torch.Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    sums = loss(hidden, weight, *rest, **options)
    (sums.total / 7).backward()
    return sums, hidden.grad, weight.grad


@given(st.integers(1, 40), st.sampled_from([0.0, 1e-5, 1e-4, 0.3]), st.integers(0, 5))
def test_chunked_equals_plain_in_value_and_gradient(chunk: int, z_loss: float, seed: int) -> None:
    hidden, weight, labels = problem(seed=seed)
    expected = gradients(plain_head_loss, hidden, weight, labels, z_loss)
    actual = gradients(head_loss, hidden, weight, labels, z_loss, chunk_tokens=chunk)
    torch.testing.assert_close(torch.stack(actual[0]), torch.stack(expected[0]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual[2], expected[2], rtol=1e-4, atol=1e-5)


def test_the_values_are_those_of_the_formula() -> None:
    hidden_ND = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    weight_VD = torch.tensor([[0.0, 0.0], [torch.tensor(3.0).log(), 0.0]])
    # Row 0 has logits (0, ln 3): lse = ln 4, label 1 costs ln(4/3). Row 1 is not labelled.
    sums = head_loss(hidden_ND, weight_VD, torch.tensor([1, IGNORE]), z_loss=0.1)
    ln4 = torch.tensor(4.0).log()
    torch.testing.assert_close(sums.cross_entropy, torch.tensor(4 / 3).log())
    torch.testing.assert_close(sums.z_squared, ln4**2)
    torch.testing.assert_close(sums.total.detach(), torch.tensor(4 / 3).log() + 0.1 * ln4**2)


def test_the_gradient_is_the_numeric_one() -> None:
    hidden, weight, labels = problem(tokens=3, vocab=5, hidden=4)
    _, grad_hidden, _ = gradients(head_loss, hidden, weight, labels, 0.2)
    bumped = hidden.clone()
    bumped[1, 2] += 1e-2
    lowered = hidden.clone()
    lowered[1, 2] -= 1e-2
    slope = (head_loss(bumped, weight, labels, 0.2).total - head_loss(lowered, weight, labels, 0.2).total) / 2e-2 / 7
    assert grad_hidden[1, 2].item() == pytest.approx(slope.item(), rel=2e-3)


def test_an_unlabelled_token_moves_nothing() -> None:
    hidden, weight, _ = problem()
    sums, grad_hidden, grad_weight = gradients(head_loss, hidden, weight, torch.full((37,), IGNORE), 0.1)
    assert sums.total.item() == 0.0 and not grad_hidden.any() and not grad_weight.any()


def test_the_z_term_reaches_the_gradient() -> None:
    """Negative control: without z-loss the gradient differs, so the equality above would see it missing."""
    hidden, weight, labels = problem()
    with_z, without = (
        gradients(head_loss, hidden, weight, labels, 0.3),
        gradients(head_loss, hidden, weight, labels, 0.0),
    )
    assert not torch.allclose(with_z[1], without[1], rtol=1e-2)


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, labels = problem()
    sums = head_loss(hidden * 1e4, weight, labels, 1e-5)
    assert torch.isfinite(torch.stack(sums)).all()


def test_bf16_is_nearly_as_near_to_fp32_as_the_plain_loss_in_bf16() -> None:
    """It rounds twice more than the plain one: hidden states times their scale, and a chunk's part of the matrix's gradient."""
    hidden, weight, labels = problem(tokens=200, vocab=300)
    hidden, weight = hidden.bfloat16(), weight.bfloat16() * 0.3
    exact = gradients(plain_head_loss, hidden.float(), weight.float(), labels, 1e-4)
    plain = gradients(plain_head_loss, hidden, weight, labels, 1e-4)
    ours = gradients(head_loss, hidden, weight, labels, 1e-4, chunk_tokens=64)
    assert ours[0].total.item() == pytest.approx(exact[0].total.item(), rel=1e-3)
    for index in (1, 2):
        assert ours[index].dtype == torch.bfloat16
        error, allowed = (ours[index].float() - exact[index]).norm(), (plain[index].float() - exact[index]).norm()
        assert error <= 2 * allowed
        assert error / exact[index].norm() < 1e-2


def test_a_bf16_forward_gives_fp32_masters_fp32_gradients() -> None:
    hidden, weight, labels = problem()
    _, grad_hidden, grad_weight = gradients(head_loss, hidden.bfloat16(), weight, labels, 1e-4, chunk_tokens=8)
    assert grad_hidden.dtype == torch.bfloat16 and grad_weight.dtype == torch.float32
    expected = gradients(plain_head_loss, hidden, weight, labels, 1e-4)[2]
    assert (grad_weight - expected).norm() / expected.norm() < 1e-2


def test_gradients_accumulate_over_calls_and_scale_with_what_comes_from_above() -> None:
    hidden, weight, labels = problem()
    weight = weight.clone().requires_grad_()
    for factor in (1.0, 3.0):
        (head_loss(hidden, weight, labels, 1e-4, 8).total * factor).backward()
    once = gradients(plain_head_loss, hidden, weight.detach(), labels, 1e-4)[2] * 7
    torch.testing.assert_close(weight.grad, 4 * once, rtol=1e-4, atol=1e-5)


def test_confident_predictions_keep_small_gradients() -> None:
    """Where the label has nearly all probability, softmax - onehot is a small difference: it must not be lost."""
    hidden, weight, labels = problem()
    labels = (hidden @ weight.T).argmax(1)
    ours, exact = (
        gradients(loss, hidden.to(dtype) * 3, weight.to(dtype), labels, 0.0)
        for loss, dtype in ((head_loss, torch.float32), (plain_head_loss, torch.float64))
    )
    torch.testing.assert_close(ours[1].double(), exact[1].double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("vocab", "width", "rows"), [(4096, 128, 128), (100_352, 256, 256), (100_352, 2048, 668), (96, 32, 5461)]
)
def test_rows_at_once(vocab: int, width: int, rows: int) -> None:
    assert loss_module._rows_at_once(torch.empty(vocab, width, device="meta"), "cpu") == rows


def test_labels_are_the_next_tokens_that_are_targets() -> None:
    tokens = torch.tensor([[5, 6, 7, 8]])
    is_target = torch.tensor([[True, True, False, True]])
    assert next_token_labels(tokens, is_target).tolist() == [[6, IGNORE, 8, IGNORE]]


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_chunk_is_the_same() -> None:
    inputs = *problem(tokens=32), 1e-2
    plain = gradients(head_loss, *inputs, chunk_tokens=16)
    compiled = gradients(head_loss, *inputs, chunk_tokens=16, compiled=True)
    torch.testing.assert_close(torch.stack(compiled[0]), torch.stack(plain[0]), rtol=1e-5, atol=1e-5)
    for index in (1, 2):
        torch.testing.assert_close(compiled[index], plain[index], rtol=1e-5, atol=1e-5)

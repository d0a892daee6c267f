"""Forward KL a few rows at a time, against torch's own softmaxes in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from economizer_training.row_kl import ForwardKl


def reference(student, teacher, temperature):
    """KL and its gradient by the student's logits, by autograd."""
    student = student.double().requires_grad_()
    log_q, log_p = ((each.double() / temperature).log_softmax(-1) for each in (student, teacher))
    found = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q)).sum(-1) * temperature**2
    found.sum().backward()
    return found.detach(), student.grad


def found(student, teacher, temperature):
    student = student.clone().requires_grad_()
    kl = ForwardKl.apply(student, teacher, temperature)
    kl.sum().backward()
    return kl.detach().double(), student.grad.double()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("kind", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)])
def test_a_whole_vocabulary_has_the_kl_and_gradient_of_double_precision(kind, atol, temperature) -> None:
    random = torch.Generator().manual_seed(0)
    # More rows than are taken at once, and no multiple of that.
    student, teacher = ((4 * torch.randn(3, 3, 40_000, generator=random)).to(kind) for _ in range(2))
    (kl, gradient), (kl_64, gradient_64) = (each(student, teacher, temperature) for each in (found, reference))
    torch.testing.assert_close(kl, kl_64, rtol=2e-5, atol=0)
    torch.testing.assert_close(gradient, gradient_64, rtol=0, atol=atol)


def test_a_most_improbable_first_token_does_not_spoil_the_sums() -> None:
    student, teacher = torch.tensor([[-500.0, 0.0, 1.0]]), torch.tensor([[-300.0, 1.0, 0.0]])
    kl, _ = found(student, teacher, 1.0)
    torch.testing.assert_close(kl, reference(student, teacher, 1.0)[0], rtol=1e-5, atol=0)


def test_a_token_that_both_rule_out_costs_nothing() -> None:
    student, teacher = torch.tensor([1.0, 0.0, -math.inf]), torch.tensor([0.0, 0.0, -math.inf])
    kl, gradient = found(student, teacher, 1.0)
    kl_of_two, gradient_of_two = found(student[:2], teacher[:2], 1.0)
    torch.testing.assert_close(kl, kl_of_two)
    torch.testing.assert_close(gradient, torch.cat([gradient_of_two, torch.zeros(1, dtype=torch.float64)]))


def test_a_logit_that_is_not_a_number_makes_a_kl_that_is_none() -> None:
    student = torch.tensor([[1.0, math.nan], [1.0, 0.0]])
    kl, _ = found(student, torch.zeros(2, 2), 1.0)
    assert kl.isfinite().tolist() == [False, True]

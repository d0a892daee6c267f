"""Losses against closed forms, numerical gradients, and all draws of a small vocabulary."""

import itertools
import math
from functools import partial

import pytest
import torch
from economizer_training.losses import (
    Loss,
    bucketed_forward_kl,
    cross_entropy,
    forward_kl,
    generalised_jsd,
    hidden_loss,
    reverse_kl,
    sampled,
    sampled_forward_kl,
    token_losses,
)
from economizer_training.teachers import AllLogits

P, Q = (0.5, 0.25, 0.25), (0.25, 0.25, 0.5)
DIVERGENCES = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jsd 0.1": partial(generalised_jsd, beta=0.1),
    "jsd 0.9": partial(generalised_jsd, beta=0.9),
}


def logits(probabilities, shift=0.0):
    """Logits of a distribution, in double precision."""
    return torch.tensor(probabilities, dtype=torch.float64).log() + shift


def random_logits(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def kl(one, other):
    return sum(a * math.log(a / b) for a, b in zip(one, other, strict=True))


def test_forward_kl_is_the_sum_of_p_log_p_over_q_whatever_is_added_to_all_logits() -> None:
    assert float(forward_kl(logits(Q, 3.0), logits(P, -2.0))) == pytest.approx(0.25 * math.log(2), abs=1e-12)
    assert float(forward_kl(logits(Q), logits(P))) == pytest.approx(kl(P, Q), abs=1e-12)


def test_reverse_kl_is_forward_kl_with_the_two_exchanged() -> None:
    one, other = random_logits(4, 7, seed=1), random_logits(4, 7, seed=2)
    torch.testing.assert_close(reverse_kl(one, other), forward_kl(other, one))


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_generalised_jsd_is_the_weighted_kl_to_the_mixture(beta) -> None:
    mixture = [beta * p + (1 - beta) * q for p, q in zip(P, Q, strict=True)]
    expected = beta * kl(P, mixture) + (1 - beta) * kl(Q, mixture)
    assert float(generalised_jsd(logits(Q), logits(P), beta)) == pytest.approx(expected, abs=1e-12)


def test_generalised_jsd_at_a_half_is_symmetric_and_at_most_log_2() -> None:
    one, other = 50 * random_logits(30, 5, seed=1), 50 * random_logits(30, 5, seed=2)
    there, back = generalised_jsd(one, other, 0.5), generalised_jsd(other, one, 0.5)
    torch.testing.assert_close(there, back)
    assert 0.6 < float(there.max()) <= math.log(2) + 1e-12


def test_generalised_jsd_over_beta_nears_the_forward_kl_for_a_small_beta_and_the_reverse_for_a_large_one() -> None:
    small = 1e-7
    assert float(generalised_jsd(logits(Q), logits(P), small)) / small == pytest.approx(kl(P, Q), rel=1e-5)
    assert float(generalised_jsd(logits(Q), logits(P), 1 - small)) / small == pytest.approx(kl(Q, P), rel=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_is_zero_for_equals_and_positive_for_others(name) -> None:
    one, other = random_logits(20, 9, seed=3), random_logits(20, 9, seed=4)
    assert float(DIVERGENCES[name](one, one + 1).abs().max()) < 1e-12
    assert float(DIVERGENCES[name](one, other).min()) > 0


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_gradient_of_a_divergence_is_the_numerical_one(name, temperature) -> None:
    student, teacher = random_logits(3, 5, seed=5).requires_grad_(), random_logits(3, 5, seed=6)
    torch.autograd.gradcheck(lambda x: DIVERGENCES[name](x, teacher, temperature=temperature), [student])


def test_a_temperature_divides_logits_and_its_square_keeps_the_gradients_size() -> None:
    student, teacher = random_logits(5, seed=7), random_logits(5, seed=8)
    cooled = forward_kl(student / 3, teacher / 3) * 9
    torch.testing.assert_close(forward_kl(student, teacher, 3.0), cooled)
    # T**2 * KL of logits over T tends to half the variance of the logits' differences over the vocabulary.
    difference = teacher - student
    assert float(forward_kl(student, teacher, 1e4)) == pytest.approx(float(difference.var(correction=0)) / 2, rel=1e-3)


def test_a_token_that_the_teacher_rules_out_costs_nothing_and_gives_no_nan() -> None:
    teacher = torch.tensor([0.0, 0.0, -math.inf], dtype=torch.float64)
    student = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    value = forward_kl(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(math.log(3 / 2))
    torch.testing.assert_close(student.grad, torch.tensor([-1 / 6, -1 / 6, 1 / 3], dtype=torch.float64))


def test_cross_entropy_is_the_targets_negative_log_probability() -> None:
    student = torch.stack([logits(P), logits(Q)])
    found = cross_entropy(student, torch.tensor([0, 2]))
    torch.testing.assert_close(found, torch.tensor([math.log(2), math.log(2)], dtype=torch.float64))
    torch.autograd.gradcheck(lambda x: cross_entropy(x, torch.tensor([0, 2])), [student.requires_grad_()])


def test_the_mix_weighs_cross_entropy_and_divergence() -> None:
    student, teacher, targets = random_logits(4, 6, seed=1), random_logits(4, 6, seed=2), torch.tensor([0, 1, 5, 2])
    mixed = token_losses(Loss(cross_entropy=0.3, temperature=2.0), student, AllLogits(teacher), targets)
    expected = 0.7 * forward_kl(student, teacher, 2.0) + 0.3 * cross_entropy(student, targets)
    torch.testing.assert_close(mixed, expected)
    alone = token_losses(Loss(cross_entropy=1.0), student, AllLogits(teacher), targets)
    torch.testing.assert_close(alone, cross_entropy(student, targets))


def test_hidden_states_are_compared_relative_to_the_teachers_length() -> None:
    teacher = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(hidden_loss(0 * teacher, teacher), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(hidden_loss(2 * teacher, teacher), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(hidden_loss(teacher, teacher), torch.zeros(2, dtype=torch.float64))
    torch.autograd.gradcheck(lambda x: hidden_loss(x, teacher), [random_logits(2, 2).requires_grad_()])


def gradient(loss, student):
    student = student.clone().requires_grad_()
    loss(student).backward()
    return student.grad


def test_the_gradient_from_sampled_logits_is_the_full_ones_over_all_draws() -> None:
    count, vocabulary = 3, 4
    teacher, student = random_logits(vocabulary, seed=1), random_logits(vocabulary, seed=2)
    p = teacher.softmax(-1)
    expected = torch.zeros_like(student)
    value = 0.0
    weights = torch.full((count,), 1 / count, dtype=torch.float64)
    for draw in itertools.product(range(vocabulary), repeat=count):
        ids = torch.tensor(draw)
        chance = p[ids].prod()
        expected += chance * gradient(lambda x, ids=ids: sampled_forward_kl(x, ids, weights), student)
        value += float(chance * sampled_forward_kl(student, ids, weights))
    full = gradient(lambda x: forward_kl(x, teacher), student)
    torch.testing.assert_close(expected, full, rtol=0, atol=1e-12)
    entropy = -float((p * p.log()).sum())
    assert value - entropy == pytest.approx(float(forward_kl(student, teacher)), abs=1e-12)


def test_the_gradient_from_the_teachers_top_tokens_is_another_than_the_full_one() -> None:
    teacher, student = random_logits(4, seed=1), random_logits(4, seed=2)
    top = teacher.softmax(-1).topk(3)
    for weights in (top.values, top.values / top.values.sum()):
        biased = gradient(lambda x, weights=weights: sampled_forward_kl(x, top.indices, weights), student)
        full = gradient(lambda x: forward_kl(x, teacher), student)
        assert float((biased - full).abs().max()) > 0.03


def test_the_rest_of_the_vocabulary_is_one_outcome_beside_the_teachers_top_tokens() -> None:
    student = torch.stack([logits(Q, 3.0), logits(P)])
    ids, p = torch.tensor([[0], [2]]), torch.tensor([[0.5], [0.25]], dtype=torch.float64)
    found = bucketed_forward_kl(student, ids, p.log())
    assert float(found[0]) == pytest.approx(kl((0.5, 0.5), (0.25, 0.75)), abs=1e-12)
    assert float(found[1]) == pytest.approx(0, abs=1e-12)


def test_the_divergence_by_top_tokens_and_their_rest_is_at_most_the_full_one_and_nears_it() -> None:
    student, teacher = random_logits(30, 9, seed=1), random_logits(30, 9, seed=2)
    full, before = forward_kl(student, teacher), torch.zeros(30, dtype=torch.float64)
    for count in (1, 3, 6, 8):
        log_p, ids = teacher.log_softmax(-1).topk(count)
        found = bucketed_forward_kl(student, ids, log_p)
        assert bool((found >= before - 1e-12).all())
        assert bool((found <= full + 1e-12).all())
        before = found
    torch.testing.assert_close(before, full)  # of 9 tokens 8 tell the ninth


def test_its_gradient_is_the_numerical_one_and_none_where_the_student_agrees_on_the_top_tokens() -> None:
    student, teacher = random_logits(3, 7, seed=1), random_logits(3, 7, seed=2)
    log_p, ids = teacher.log_softmax(-1).topk(2)
    torch.autograd.gradcheck(lambda x: bucketed_forward_kl(x, ids, log_p), [student.clone().requires_grad_()])
    agreeing = teacher.log_softmax(-1)
    assert float(gradient(lambda x: bucketed_forward_kl(x, ids, log_p).sum(), agreeing).abs().max()) < 1e-12
    weights = log_p.exp()
    alone = gradient(lambda x: sampled_forward_kl(x, ids, weights / weights.sum(-1, keepdim=True)).sum(), agreeing)
    assert float(alone.abs().max()) > 0.1  # which would take from the rest what it should have


def test_top_tokens_that_are_all_but_certain_have_a_finite_gradient() -> None:
    student, log_p = torch.zeros(1, 5), torch.tensor([[0.0, -9999.0]])
    found = gradient(lambda x: bucketed_forward_kl(x, torch.tensor([[1, 3]]), log_p).sum(), student)
    torch.testing.assert_close(found, torch.tensor([[0.2, -0.8, 0.2, 0.2, 0.2]]))


def test_draws_are_as_frequent_as_the_teacher_finds_them_probable() -> None:
    teacher = torch.stack([logits(P), logits(Q)]).float()
    ids, weights = sampled(teacher, 20_000, torch.Generator().manual_seed(0))
    assert ids.shape == weights.shape == (2, 20_000)
    for row, probabilities in enumerate((P, Q)):
        frequencies = torch.bincount(ids[row], minlength=3) / 20_000
        torch.testing.assert_close(frequencies, torch.tensor(probabilities), rtol=0, atol=0.015)


def test_bfloat16_logits_are_compared_in_single_precision() -> None:
    student, teacher = random_logits(8, 100, seed=1).bfloat16(), random_logits(8, 100, seed=2).bfloat16()
    found = forward_kl(student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), forward_kl(student.double(), teacher.double()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"temperature": 0.0}, "temperature is 0.0: must be above 0"),
        ({"beta": 1.0}, "beta is 1.0: must be between 0 and 1"),
        ({"cross_entropy": 1.5}, "cross_entropy is 1.5: must be between 0 and 1"),
        ({"hidden": -1.0}, "hidden is -1.0: must be 0 or more"),
        ({"on_policy": 1.5}, "on_policy is 1.5: must be between 0 and 1"),
        ({"on_policy": 0.5, "cross_entropy": 0.1}, "cross_entropy is 0.1: must be 0 where on_policy is not"),
    ],
)
def test_a_loss_that_makes_no_sense_cannot_be_built(wrong, told) -> None:
    with pytest.raises(ValueError, match=told):
        Loss(**wrong)

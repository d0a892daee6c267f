"""What a student is taught by, position by position. Pure torch: no model, no device, no reduction over positions.

Logits are [..., vocabulary] and any float type; the arithmetic is in at least single precision. Each function returns
[...], in nats. p is the teacher's distribution and q the student's, both of logits divided by the temperature T, and
divergences are multiplied by T**2, so that gradients keep their size (Hinton et al., arXiv:1503.02531).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, Literal, Protocol

import torch
from economizer.variants.types import require

from economizer_training.row_kl import ForwardKl

Tensor = Any

_FORBID = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """(1 - cross_entropy) * divergence + cross_entropy * CE of the text's next token + hidden * hidden states.

    ``beta`` is generalised JSD's alone: near 0 it follows the forward, near 1 the reverse divergence. ``on_policy`` is
    the share of rows whose answers the student gives itself, to be taught on what it says (GKD, arXiv:2306.13649).
    """

    __pydantic_config__ = _FORBID

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    temperature: float = 1.0
    beta: float = 0.5
    cross_entropy: float = 0.0
    hidden: float = 0.0
    on_policy: float = 0.0

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "must be above 0")
        require(0 < self.beta < 1, "beta", self.beta, "must be between 0 and 1")
        require(0 <= self.cross_entropy <= 1, "cross_entropy", self.cross_entropy, "must be between 0 and 1")
        require(self.hidden >= 0, "hidden", self.hidden, "must be 0 or more")
        require(0 <= self.on_policy <= 1, "on_policy", self.on_policy, "must be between 0 and 1")
        rule = "must be 0 where on_policy is not: the student's own words are nothing to repeat"
        require(not (self.on_policy and self.cross_entropy), "cross_entropy", self.cross_entropy, rule)


class Taught(Protocol):
    """What is known of the teacher's distributions, [...] of them."""

    def divergence(self, loss: Loss, student: Tensor) -> Tensor:
        """How far the student's are from them, [...]; the student's logits are [..., vocabulary]."""


def token_losses(loss: Loss, student: Tensor, taught: Taught, targets: Tensor) -> Tensor:
    """The loss of each position without its hidden part; ``targets`` are the text's next tokens, [...]."""
    total = torch.zeros((), device=student.device)
    if loss.cross_entropy < 1:
        total = total + (1 - loss.cross_entropy) * taught.divergence(loss, student)
    if loss.cross_entropy > 0:
        total = total + loss.cross_entropy * cross_entropy(student, targets)
    return total


def divergence(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    """The divergence that ``loss`` names, of all logits."""
    if loss.divergence == "forward_kl":
        return forward_kl(student, teacher, loss.temperature)
    if loss.divergence == "reverse_kl":
        return reverse_kl(student, teacher, loss.temperature)
    return generalised_jsd(student, teacher, loss.beta, loss.temperature)


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p || q): the student covers all that the teacher finds possible."""
    kl: Tensor = ForwardKl.apply(student, teacher, temperature)
    return kl


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(q || p): the student keeps to what the teacher finds probable."""
    return _kl(_log_p(student, temperature), _log_p(teacher, temperature)) * temperature**2


def generalised_jsd(student: Tensor, teacher: Tensor, beta: float, temperature: float = 1.0) -> Tensor:
    """beta * KL(p || m) + (1 - beta) * KL(q || m) with m = beta * p + (1 - beta) * q (GKD, arXiv:2306.13649)."""
    log_p, log_q = _log_p(teacher, temperature), _log_p(student, temperature)
    weights = torch.tensor([beta, 1 - beta], dtype=log_p.dtype, device=log_p.device).log()
    log_m = torch.logaddexp(log_p + weights[0], log_q + weights[1])
    return (beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)) * temperature**2


def cross_entropy(student: Tensor, targets: Tensor) -> Tensor:
    """-log q(target), at temperature 1."""
    return -_log_p(student, 1.0).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def hidden_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared distance of hidden states, [..., width], over the teacher's squared length."""
    student, teacher = _precise(student), _precise(teacher)
    return (student - teacher).square().mean(-1) / teacher.square().mean(-1)


def sampled(teacher: Tensor, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """(token ids, weights), each [..., count]: the teacher's distribution as ``count`` draws from it, with replacement.

    About 12 draws stand for a whole vocabulary (RS-KD, arXiv:2503.16870).
    """
    p = _log_p(teacher, 1.0).exp()
    ids = torch.multinomial(p.reshape(-1, p.shape[-1]), count, replacement=True, generator=generator)
    ids = ids.reshape(*p.shape[:-1], count)
    return ids, torch.full(ids.shape, 1 / count, dtype=p.dtype, device=p.device)


def sampled_forward_kl(student: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """-sum of weight * log q(id): forward KL at temperature 1 but for the teacher's entropy, which no gradient sees.

    With ids and weights from `sampled` its expectation over draws, and its gradient's, is the full one's. With the
    teacher's top k in their place it is not: the student then learns to give the rest nothing.
    """
    return -(weights * _log_p(student, 1.0).gather(-1, ids)).sum(-1)


def bucketed_forward_kl(student: Tensor, ids: Tensor, log_p: Tensor) -> Tensor:
    """KL(p || q) at temperature 1 of len(ids) + 1 outcomes: these tokens, and all the others as one.

    ``ids`` and the teacher's ``log_p`` are [..., count], without repeats and fewer than the vocabulary. It is at most
    the full divergence, and 0 where the student gives these tokens the same probabilities. How the rest is shared out
    it does not teach, so that its gradient is not the full one's; but unlike the loss of these tokens alone it does not
    teach the student to give the rest nothing.
    """
    student, log_p = _precise(student), _precise(log_p)
    total = student.logsumexp(-1)
    listed = _kl(log_p, student.gather(-1, ids) - total.unsqueeze(-1))
    rest = (1 - log_p.exp().sum(-1)).clamp(min=0.0)  # below 0 by rounding alone
    log_rest = student.scatter(-1, ids, -inf).logsumexp(-1) - total
    return listed + torch.where(rest > 0, rest * (rest.log() - log_rest), 0.0)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    # A token that p rules out, with a log probability of -inf, adds nothing, whatever q says.
    return torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q)).sum(-1)


def _log_p(logits: Tensor, temperature: float) -> Tensor:
    return (_precise(logits) / temperature).log_softmax(-1)


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()

"""Forward KL a few rows at a time, with its gradient in closed form: a whole vocabulary stays in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

Tensor = Any

_AT_ONCE = {"cpu": 2**17, "cuda": 2**26}  # logits: what a core's cache holds, or what keeps a GPU busy


class ForwardKl(torch.autograd.Function):
    """KL(p || q) * T**2 of (student's logits, teacher's, T), [..., vocabulary] to [...]; the teacher gets no gradient.

    Through the logarithms of two softmaxes autograd would write some twenty matrices as large as the logits in single
    precision. The gradient by the student's logits is (q - p) * T, which is kept in their own type instead.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        precise = torch.float64 if student.dtype == torch.float64 else torch.float32
        found = torch.empty(student.shape[:-1], dtype=precise, device=student.device)
        by_logits = (
            torch.empty_like(student, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        )
        flat = found.view(-1)
        for rows in _few(student):
            z_q, z_p = (_rows(each, rows, precise, temperature) for each in (student, teacher))
            q, p = z_q.softmax(-1), z_p.softmax(-1)
            # log(p / q) of each token is the difference of logits and of these two.
            log_sums = _log_sum(z_q, q) - _log_sum(z_p, p)
            flat[rows] = (torch.linalg.vecdot(p, z_p.sub_(z_q)) + log_sums) * temperature**2
            if by_logits is not None:
                by_logits.view(-1, student.shape[-1])[rows] = q.sub_(p).mul_(temperature)
        ctx.save_for_backward(by_logits)
        return found

    @staticmethod
    def backward(ctx: Any, *received: Tensor) -> tuple[Tensor | None, ...]:
        (by_logits,) = ctx.saved_tensors
        if by_logits is None:
            return None, None, None
        found = torch.empty_like(by_logits)
        width, weights = by_logits.shape[-1], received[0].reshape(-1, 1)
        for rows in _few(by_logits):
            found.view(-1, width)[rows] = by_logits.view(-1, width)[rows] * weights[rows]
        return found, None, None


def _rows(logits: Tensor, rows: slice, precise: torch.dtype, temperature: float) -> Tensor:
    few = logits.reshape(-1, logits.shape[-1])[rows].to(precise)
    # A token with a logit of -inf is not possible with a finite one as low as this either, and finite ones give no NaN.
    return (few if temperature == 1 else few / temperature).clamp(min=torch.finfo(precise).min / 4)


def _log_sum(logits: Tensor, softmax: Tensor) -> Tensor:
    """log(sum(exp(logits))), by the most probable token."""
    return logits.amax(-1) - softmax.amax(-1).log()


def _few(logits: Tensor) -> Iterator[slice]:
    """The rows, as many at once as fit."""
    width = logits.shape[-1]
    each = max(1, _AT_ONCE.get(logits.device.type, _AT_ONCE["cuda"]) // width)
    for start in range(0, logits.numel() // width, each):
        yield slice(start, start + each)

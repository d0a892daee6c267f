"""Forward KL a few rows at a time, with its gradient in closed form: a whole vocabulary stays in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

Tensor = Any

_AT_ONCE = {"cpu": 2**18, "cuda": 2**26}  # logits: what a core's cache holds, or what keeps a GPU busy


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
            log_q, log_p = (_rows(each, rows, precise, temperature) for each in (student, teacher))
            p = log_p.exp()
            # A token that p rules out adds nothing, whatever q says.
            flat[rows] = torch.where(p == 0, 0.0, log_p.sub_(log_q).mul_(p)).sum(-1) * temperature**2
            if by_logits is not None:
                by_logits.view(-1, student.shape[-1])[rows] = log_q.exp_().sub_(p).mul_(temperature)
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
    return (few if temperature == 1 else few / temperature).log_softmax(-1)


def _few(logits: Tensor) -> Iterator[slice]:
    """The rows, as many at once as fit."""
    width = logits.shape[-1]
    each = max(1, _AT_ONCE.get(logits.device.type, _AT_ONCE["cuda"]) // width)
    for start in range(0, logits.numel() // width, each):
        yield slice(start, start + each)

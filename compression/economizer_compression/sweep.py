"""How near candidates are to the model that they were made from, on text that none of them saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


@torch.no_grad()
def kept_logits(model: Any, samples: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The model's logits for each sample, [tokens - 1, vocabulary] in the model's own dtype."""
    return [model(input_ids=torch.tensor([s], device=model.device)).logits[0, :-1].cpu() for s in samples]


@torch.no_grad()
def mean_kl(model: Any, samples: Sequence[Sequence[int]], reference: Sequence[torch.Tensor]) -> float:
    """The mean KL divergence per token of the model from the reference's logits, in nats."""
    total, tokens = 0.0, 0
    for sample, logits in zip(samples, reference, strict=True):
        ours = model(input_ids=torch.tensor([sample], device=model.device)).logits[0, :-1].float().log_softmax(-1)
        theirs = logits.to(ours.device).float().log_softmax(-1)
        total += float((theirs.exp() * (theirs - ours)).sum())
        tokens += len(sample) - 1
    return total / tokens

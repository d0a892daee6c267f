"""Which texts a step learns from, and how fast. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def batches(lengths: Sequence[int], *, batch: int, workers: int, by_length: bool, seed: int) -> list[list[int]]:
    """An epoch's batches in a shuffled order, of texts of about one length where ``by_length`` says so.

    Each can be shared by the workers evenly: at most ``workers - 1`` texts of the epoch are left out.
    """
    chance = np.random.default_rng(seed)
    order = chance.permutation(len(lengths))
    if by_length:
        order = order[np.argsort(np.asarray(lengths)[order], kind="stable")]
    order = order[: len(order) // workers * workers]
    found = [order[start : start + batch].tolist() for start in range(0, len(order), batch)]
    return [found[at] for at in chance.permutation(len(found))] if by_length else found


def learning_rate_at(step: int, steps: int, *, peak: float, warmup: float) -> float:
    """The rate of step 0, 1, ... of ``steps``: a rise over the share ``warmup`` of them, then a line to 0."""
    rise = int(steps * warmup)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (steps - step) / max(1, steps - rise)

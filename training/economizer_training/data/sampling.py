"""How often an example is taken, and what is held out. Pure, and decided by the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor

from economizer_training.data.chance import draw


def repeats(counts: Mapping[str, int], *, alpha: float, repeats_max: float) -> dict[str, float]:
    """For each slice how often each of its examples is taken on average, 1 or more.

    The shares become as n^alpha (Conneau and Lample, arXiv:1901.07291, section 3.1), by repeating rare slices alone:
    the largest is taken once, one of n examples (n_max / n)^(1 - alpha) times, ``repeats_max`` at most.
    """
    largest = max(counts.values(), default=0)
    return {name: min((largest / n) ** (1 - alpha), repeats_max) for name, n in counts.items() if n}


def copies(id_: str, rate: float, seed: int) -> int:
    """How often one example is taken: the rate's whole part, and once more with the probability of its fraction."""
    whole = floor(rate)
    return whole + (draw(seed, "copies", id_) < rate - whole)


def held_out(ids: Mapping[str, Sequence[str]], share: float, seed: int) -> set[str]:
    """The ids that are kept for evaluation: the share of each slice, and of two examples or more at least one."""
    chosen: set[str] = set()
    if share == 0:
        return chosen
    for found in ids.values():
        count = max(round(share * len(found)), 1) if len(found) > 1 else 0
        chosen |= set(sorted(found, key=lambda id_: (draw(seed, "held-out", id_), id_))[:count])
    return chosen

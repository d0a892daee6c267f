"""Lengths that are far from those of their kind. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf

import numpy as np

_SIGMA = 1.4826  # times the median absolute deviation is the standard deviation, where values are normal
_FEW = 20


def length_bounds(lengths: Sequence[int], z_max: float) -> tuple[float, float]:
    """The shortest and the longest of lengths that are no outliers among them, all 1 or more.

    An outlier's logarithm is more than ``z_max`` robust standard deviations from the median (Iglewicz and Hoaglin, How
    to Detect and Handle Outliers, 1993, who take 3.5). Under 20 lengths there are none, nor where over half are equal.
    """
    logarithms = np.log(np.asarray(lengths, dtype=np.float64))
    if len(lengths) < _FEW:
        return 0.0, inf
    median = float(np.median(logarithms))
    spread = _SIGMA * float(np.median(np.abs(logarithms - median)))
    if spread == 0:
        return 0.0, inf
    return exp(median - z_max * spread), exp(median + z_max * spread)

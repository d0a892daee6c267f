"""Values that are far from those of their kind. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

_SIGMA = 1.4826  # times the median absolute deviation is the standard deviation, where values are normal
_FEW = 20


def bounds(values: Sequence[float], z_max: float) -> tuple[float, float]:
    """The least and the largest of values that are no outliers among them.

    An outlier is more than ``z_max`` robust standard deviations from the median (Iglewicz and Hoaglin, How to Detect
    and Handle Outliers, 1993, who take 3.5). Under 20 values there are none, nor where over half are equal.
    """
    if len(values) < _FEW:
        return -inf, inf
    median = float(np.median(values))
    spread = _SIGMA * float(np.median(np.abs(np.asarray(values) - median)))
    if spread == 0:
        return -inf, inf
    return median - z_max * spread, median + z_max * spread

"""Whether a quantity grows without end: its slope over time with an interval, held against a limit. Pure.

Samples of a process are not independent: memory comes in steps and stays. So the time after warm-up is cut into blocks,
and only the blocks' medians count. The slope is Theil's and Sen's: the median of the slopes between all pairs, which a
few steps or spikes do not move; its interval is Sen's (Journal of the American Statistical Association 63, 1968), from
the variance of Kendall's statistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np

BLOCKS = 20
BLOCKS_MIN = 6  # with fewer, Sen's interval is all that was seen
SPAN_S_MIN = 300.0  # whatever has just begun still fills its caches
_Z95 = 1.96
_MINUTE_S = 60.0

Sample = tuple[float, float]  # seconds since the start, and the quantity
Verdict = Literal["steady", "grows", "too short to tell"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Slope:
    """How fast a quantity grows, per minute, with the ends of the 95 % interval."""

    per_min: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """What was seen of one quantity, and what is thought of it; ``slope`` is None where that is too little."""

    first: float
    last: float
    most: float
    slope: Slope | None
    limit_per_min: float

    @property
    def verdict(self) -> Verdict:
        """It grows where the whole interval is above the limit, and is steady where none of it is."""
        if self.slope is None or self.slope.low <= self.limit_per_min < self.slope.high:
            return "too short to tell"
        return "grows" if self.slope.low > self.limit_per_min else "steady"


def growth(samples: Sequence[Sample], *, warm_up_s: float, limit_per_min: float) -> Growth | None:
    """What became of a quantity after the warm-up; None where nothing was sampled then."""
    after = [sample for sample in samples if sample[0] >= warm_up_s]
    if not after:
        return None
    medians = _block_medians(after)
    return Growth(
        first=medians[0][1],
        last=medians[-1][1],
        most=max(value for _, value in samples),
        slope=slope(medians) if len(medians) >= BLOCKS_MIN and after[-1][0] - after[0][0] >= SPAN_S_MIN else None,
        limit_per_min=limit_per_min,
    )


def growths(
    series: Mapping[str, Sequence[Sample]], *, warm_up_s: float, limits: Mapping[str, float]
) -> dict[str, Growth]:
    """The same of every series, which are called ``GROUP QUANTITY``; ``limits`` are by quantity."""
    found = {
        name: growth(samples, warm_up_s=warm_up_s, limit_per_min=limits[name.rpartition(" ")[2]])
        for name, samples in series.items()
    }
    return {name: one for name, one in found.items() if one is not None}


def slope(samples: Sequence[Sample]) -> Slope:
    """Theil's and Sen's slope of two samples or more, which must be of different times."""
    times_s, values = (np.array(column, dtype=np.float64) for column in zip(*samples, strict=True))
    early, late = np.triu_indices(len(values), k=1)
    slopes = np.sort((values[late] - values[early]) / (times_s[late] - times_s[early])) * _MINUTE_S
    count = len(values)
    half = _Z95 * sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = int(np.clip(np.floor((len(slopes) - half) / 2), 0, len(slopes) - 1))
    high = int(np.clip(np.ceil((len(slopes) + half) / 2), 0, len(slopes) - 1))
    return Slope(per_min=float(np.median(slopes)), low=float(slopes[low]), high=float(slopes[high]))


def _block_medians(samples: Sequence[Sample]) -> list[Sample]:
    """The middle time and the median of each of at most 20 runs of samples of about the same length."""
    parts = np.array_split(np.array(samples, dtype=np.float64), min(BLOCKS, len(samples)))
    return [(float(part[:, 0].mean()), float(np.median(part[:, 1]))) for part in parts]

"""How many users a run has at each moment: a day, bursts or a ramp, pressed into the run's length. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from load.arrivals import Rate

_DAY_S = 86_400.0
# Hourly means of ServeGen's day of DeepSeek-R1 (alibaba/ServeGen, Apache-2.0) over the busiest hour's.
_HOURS = (
    *(0.55, 0.63, 0.93, 0.82, 0.49, 0.41, 0.34, 0.26, 0.27, 0.30, 0.37, 0.38),
    *(0.20, 0.25, 0.31, 0.32, 0.40, 0.25, 0.34, 0.27, 0.57, 0.74, 1.00, 0.54),
)
_BURSTS, _BURST_LENGTH, _BETWEEN = 5, 0.25, 0.2


class Curve(msgspec.Struct, frozen=True):
    """Shares of the peak at moments of a run, both from 0 to 1, with straight lines between them.

    Two points at one moment are a jump. Before the first point and after the last one it is level.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        moments = [moment for moment, _ in self.points]
        if not self.points or moments != sorted(moments):
            raise ValueError(f"points is {self.points}: it must be at least one, in the order of their moments")

    def share(self, moment: float) -> float:
        """The share of the peak at this moment; at a jump, the one after it."""
        if moment < self.points[0][0]:
            return self.points[0][1]
        for (from_, before), (to, after) in pairwise(self.points):
            if from_ <= moment < to:
                return before + (after - before) * (moment - from_) / (to - from_)
        return self.points[-1][1]

    def users(self, at_s: float, *, run_s: float, peak: int) -> int | None:
        """How many users there are ``at_s`` seconds after the start: at least one; None when the run is over."""
        return None if at_s >= run_s else max(1, round(peak * self.share(at_s / run_s)))


def day(rates: Sequence[Rate]) -> Curve:
    """The first day of a table of rates, as shares of its highest one.

    A rate of 0 is a gap in the data, not an idle time, and is left out. Users are taken as proportional to the rate,
    which holds as long as their answers do not get slower. Raises ValueError where no rate is above 0.
    """
    known = [rate for rate in rates if rate.per_s > 0]
    if not known:
        raise ValueError("per_s is 0 in every row: it must be above 0 in at least one")
    start_s = known[0].at_s
    known = [rate for rate in known if rate.at_s < start_s + _DAY_S]
    peak, length_s = max(rate.per_s for rate in known), known[-1].at_s - start_s or 1.0
    return Curve(tuple(((rate.at_s - start_s) / length_s, rate.per_s / peak) for rate in known))


def built_in_day() -> Curve:
    """An observed day by the hour, for where there is no table of rates."""
    return day([Rate(at_s=3600.0 * hour, per_s=share) for hour, share in enumerate(_HOURS)])


def bursts() -> Curve:
    """A fifth of the peak, and five times all of it, for a twentieth of the run each."""
    points = [(0.0, _BETWEEN)]
    for number in range(_BURSTS):
        start = (number + 0.5) / _BURSTS
        end = start + _BURST_LENGTH / _BURSTS
        points += [(start, _BETWEEN), (start, 1.0), (end, 1.0), (end, _BETWEEN)]
    return Curve(tuple(points))


def ramp() -> Curve:
    """From nothing to the peak in four fifths of the run, and the peak for the rest."""
    return Curve(((0.0, 0.0), (0.8, 1.0)))

"""Percentiles, shares and rates of a run, and how far another such run's might be from them. Pure: numpy alone.

A percentile lies between two of the sorted values, in proportion: type 7 of Hyndman and Fan, "Sample Quantiles in
Statistical Packages", The American Statistician 50 (1996); numpy's default.

An interval is the percentile bootstrap's (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13)
over blocks of time that do not overlap (Carlstein, Annals of Statistics 14, 1986). Requests of the same seconds wait in
the same queue, so one tells less beside the others than alone: whole blocks are drawn, with replacement, as many as
there are, and the figure is taken anew of all requests in them.

Such an interval is a little narrow. Of a mean, with blocks that are independent and normal, a 95 % interval over n
blocks holds the truth as often as Student's t with n - 1 degrees lies within 1.96 * sqrt((n - 1) / n): 90 % at 10
blocks, 93 % at 20, 94 % at 40.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DRAWS = 1000
LEVEL = 0.95
BLOCKS_MIN = 10  # with fewer the interval holds the truth too rarely to be told
BEYOND_MIN = 5  # samples on either side of a percentile, below which it depends on one or two of them
WINDOWS_MAX = 40


class Statistic(Protocol):
    """A figure of some requests; of those that it knows nothing of, it holds nan."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which requests it is of."""

    @property
    def steady(self) -> bool:
        """Whether its interval can be told from so many requests."""

    def value(self) -> float | None:
        """The figure; None where it is of nothing."""

    def resampled(self, block_of: Ints, counts: Ints) -> Floats:
        """The figure of each draw (row of ``counts``: how often each block was drawn); nan where it is of nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Ratio:
    """A sum over a sum, each by request: a share (of ones), a mean, a rate, a price. nan in ``over`` is unknown."""

    over: Floats
    under: Floats

    @property
    def known(self) -> NDArray[np.bool_]:
        return ~np.isnan(self.over)

    @property
    def steady(self) -> bool:
        return True

    def value(self) -> float | None:
        under = float(self.under[self.known].sum())
        return float(self.over[self.known].sum()) / under if under else None

    def resampled(self, block_of: Ints, counts: Ints) -> Floats:
        blocks, known = counts.shape[1], self.known
        over = np.bincount(block_of[known], weights=self.over[known], minlength=blocks)
        under = np.bincount(block_of[known], weights=self.under[known], minlength=blocks)
        drawn = counts @ under
        figures: Floats = np.divide(counts @ over, drawn, out=np.full(len(counts), np.nan), where=drawn != 0)
        return figures


@dataclass(frozen=True, slots=True, eq=False)
class Percentile:
    """The value below which ``rank`` percent of the requests lie. nan in ``values`` is unknown."""

    values: Floats
    rank: float

    @property
    def known(self) -> NDArray[np.bool_]:
        return ~np.isnan(self.values)

    @property
    def steady(self) -> bool:
        return bool(self.known.sum() * min(self.rank, 100.0 - self.rank) >= 100.0 * BEYOND_MIN)

    def value(self) -> float | None:
        return percentile(self.values[self.known], self.rank)

    def resampled(self, block_of: Ints, counts: Ints) -> Floats:
        """Of each draw the percentile of its requests, each as often as its block was drawn, without listing them."""
        known = self.known
        order = np.argsort(self.values[known], kind="stable")
        values, block_of = self.values[known][order], block_of[known][order]
        drawn = np.full(len(counts), np.nan)
        for row, often in enumerate(counts):
            until = np.cumsum(often[block_of])
            total = int(until[-1]) if len(until) else 0
            if total:
                place = self.rank / 100.0 * (total - 1)
                below = int(place)
                at = np.searchsorted(until, (below, min(below + 1, total - 1)), side="right")
                drawn[row] = values[at[0]] + (values[at[1]] - values[at[0]]) * (place - below)
        return drawn


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure with the ends of its 95 % interval, and of how many requests it is. None is not known.

    ``drawn`` is the figure of each draw, where an interval can be told from so many requests and blocks.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    samples: int
    drawn: Floats | None = None


def percentile(values: Sequence[float] | Floats, rank: float) -> float | None:
    """The percentile as the module defines it; ``rank`` in percent. None of nothing."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), rank)) if len(values) else None


def window_width_s(span_s: float) -> float:
    """The shortest of 0.1, 0.2, 0.5, 1, 2, 5, ... seconds of which at most 40 cover ``span_s``."""
    width_s = next(
        step * 10.0**power
        for power in range(-1, 12)
        for step in (1.0, 2.0, 5.0)
        if step * 10.0**power * WINDOWS_MAX > span_s
    )
    return round(width_s, 1)


def blocks(times_s: Floats, width_s: float) -> Ints:
    """The number of each request's block; stretches of ``width_s`` without requests are no blocks."""
    return np.unique(np.floor(times_s / width_s), return_inverse=True)[1].astype(np.int64)


def draws(block_of: Ints, seed: int) -> Ints:
    """How often each block comes in each of 1000 draws of as many blocks, with replacement."""
    count = int(block_of.max()) + 1 if len(block_of) else 0
    if not count:
        return np.zeros((DRAWS, 0), dtype=np.int64)
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=DRAWS)


def estimate(statistic: Statistic, block_of: Ints, counts: Ints) -> Estimate:
    """The figure with its interval, where that can be told."""
    known = statistic.known
    drawn = None
    if statistic.steady and len(np.unique(block_of[known])) >= BLOCKS_MIN:
        drawn = statistic.resampled(block_of, counts)
    low, high = (None, None) if drawn is None else interval(drawn)
    return Estimate(value=statistic.value(), low=low, high=high, samples=int(known.sum()), drawn=drawn)


def ratio(over: Estimate, under: Estimate) -> tuple[float | None, float | None, float | None]:
    """One figure over another, and the ends of its interval.

    Draws of two runs of one plan must be the same ones, so that what both runs share goes out of the ratio; of two
    independent runs they must not be.
    """
    if over.value is None or not under.value:
        return None, None, None
    if over.drawn is None or under.drawn is None:
        return over.value / under.value, None, None
    nothing = np.full(len(under.drawn), np.nan)
    drawn = np.divide(over.drawn, under.drawn, out=nothing, where=under.drawn != 0)
    return over.value / under.value, *interval(drawn)


def interval(drawn: Floats) -> tuple[float, float] | tuple[None, None]:
    """The middle 95 % of the draws.

    None where all draws are alike, which says that the run never showed another case, not that there is none; and where
    more than one draw in 20 has no figure.
    """
    known = drawn[~np.isnan(drawn)]
    if len(known) < 0.95 * len(drawn) or not len(known):
        return None, None
    tail = 50.0 * (1.0 - LEVEL)
    low, high = (float(end) for end in np.percentile(known, (tail, 100.0 - tail)))
    # Sums of the same numbers in another order differ in their last digits.
    return (None, None) if np.isclose(low, high, rtol=1e-9, atol=0.0) else (low, high)

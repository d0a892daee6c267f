"""What was predicted of requests against what came of them. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from load.measures import Figure, figure
from load.run import ESTIMATE, Run
from load.statistics import Ints, Percentile, Ratio, Statistic, estimate
from load.types import Outcome

WITHIN = 0.2
_EDGES = np.logspace(-1, 1, 41)  # 20 bins a decade


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """How well one quantity was predicted. A ratio is the actual value over the predicted one.

    ``bins`` counts ratios between ``edges``; those beyond an end are in the bin at that end.
    """

    label: str
    basis: str
    samples: int
    median_ratio: Figure
    ratio_p5: Figure
    ratio_p95: Figure
    within_20_percent: Figure
    edges: tuple[float, ...]
    bins: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Quantity:
    label: str
    basis: str
    actual: Callable[[Outcome], float | None]
    predicted: Callable[[Outcome], float | None]


_QUANTITIES = {
    "ttft_s": _Quantity(
        label="TTFT",
        basis="from sending, over the predicted median; whole streamed answers with a prediction",
        actual=lambda one: None if one.first_s is None else one.first_s - one.sent_s,
        predicted=lambda one: one.predicted_ttft_s,
    ),
    "tpot_s": _Quantity(
        label="TPOT",
        basis="over the predicted median; whole streamed answers of 2 tokens or more with a prediction",
        actual=lambda one: one.tpot_s,
        predicted=lambda one: one.predicted_tpot_s,
    ),
    "energy_j": _Quantity(
        label="energy",
        basis="usage basis; whole answers with a prediction whose energy was measured, not estimated",
        actual=lambda one: None if one.method == ESTIMATE else one.energy_j,
        predicted=lambda one: one.predicted_energy_j,
    ),
    "cost_usd": _Quantity(
        label="cost",
        basis="usage basis; whole answers with a prediction whose cost was measured, not estimated",
        actual=lambda one: None if one.method == ESTIMATE else one.cost_usd,
        predicted=lambda one: one.predicted_cost_usd,
    ),
}


def predictions(run: Run, counts: Ints) -> dict[str, Prediction]:
    """Of TTFT, TPOT, energy and cost; ``counts`` are the draws of the run's blocks."""
    return {key: _prediction(run, counts, quantity) for key, quantity in _QUANTITIES.items()}


def _prediction(run: Run, counts: Ints, quantity: _Quantity) -> Prediction:
    ratios = run.column(lambda one: _ratio(one, quantity))
    known = ratios[~np.isnan(ratios)]
    # A prediction that is off by just 20 % counts, whatever its last digit.
    near = np.where(np.isnan(ratios), np.nan, np.abs(ratios - 1.0) <= WITHIN + 1e-9)
    bins, _ = np.histogram(np.clip(known, _EDGES[0], _EDGES[-1]), _EDGES)

    def of(statistic: Statistic, words: str, unit: str = "times") -> Figure:
        found = estimate(statistic, run.block_of, counts)
        return figure(found, label=f"{quantity.label}, {words}", unit=unit, basis=quantity.basis)

    return Prediction(
        label=quantity.label,
        basis=quantity.basis,
        samples=len(known),
        median_ratio=of(Percentile(ratios, 50.0), "actual over predicted, median"),
        ratio_p5=of(Percentile(ratios, 5.0), "actual over predicted, p5"),
        ratio_p95=of(Percentile(ratios, 95.0), "actual over predicted, p95"),
        within_20_percent=of(Ratio(near, run.ones), "within 20 % of the prediction", "share"),
        edges=tuple(float(edge) for edge in _EDGES),
        bins=tuple(int(count) for count in bins),
    )


def _ratio(one: Outcome, quantity: _Quantity) -> float | None:
    actual, predicted = quantity.actual(one), quantity.predicted(one)
    if not one.answered or actual is None or predicted is None or predicted <= 0:
        return None
    return actual / predicted

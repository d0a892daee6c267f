"""The figures of a run: what each is called, its unit, what it is of, and how it comes of the requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from load.run import Run
from load.statistics import Estimate, Percentile, Ratio, Statistic

Better = Literal["less", "more"]
LATENCIES = (
    ("ttft_s", "TTFT", "from the due time to the first token; whole answers that were streamed"),
    ("tpot_s", "TPOT", "per output token after the first; whole streamed answers of 2 tokens or more"),
    ("e2e_s", "end to end", "from the due time to the end; whole answers"),
)
RANKS = (50.0, 90.0, 95.0, 99.0)
OWN = "own"
BASES = {
    OWN: "the answers' own figures (usage basis), of the requests that tell theirs",
    "usage": "the meter's total of the run, without idle; one number, so an interval is that of the requests alone",
    "allocation": "the meter's total of the run, with idle; one number, so an interval is that of the requests alone",
}
_J_PER_KJ = 1e3


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A number with all that is needed to read it; ``low`` and ``high`` end its 95 % interval. None is not known."""

    label: str
    unit: str
    basis: str
    samples: int
    value: float | None
    low: float | None = None
    high: float | None = None


def figure(found: Estimate, *, label: str, unit: str, basis: str) -> Figure:
    """What was found, with its words."""
    return Figure(
        label=label,
        unit=unit,
        basis=basis,
        samples=found.samples,
        value=found.value,
        low=found.low,
        high=found.high,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """How a figure is taken of any run."""

    key: str
    label: str
    unit: str
    basis: str
    of: Callable[[Run], Statistic]
    better: Better | None = None

    def figure(self, found: Estimate) -> Figure:
        """The figure as it stands in the report."""
        return figure(found, label=self.label, unit=self.unit, basis=self.basis)


def measures() -> tuple[Measure, ...]:
    """All of them, in the order of the report."""
    return (*_kept(), *_latencies(), *_goodput(), *_spent(), *_other())


def _kept() -> Iterator[Measure]:
    yield Measure(
        key="slo",
        label="SLO attainment",
        unit="share",
        basis="of all requests sent; what failed or was refused missed its terms",
        better="more",
        of=lambda run: Ratio(run.met, run.ones),
    )
    yield Measure(
        key="answered",
        label="answered whole",
        unit="share",
        basis="of all requests sent",
        better="more",
        of=lambda run: Ratio(run.answered, run.ones),
    )
    yield Measure(
        key="goodput_per_s",
        label="goodput",
        unit="requests/s",
        basis="requests that met their terms, over the run's seconds",
        better="more",
        of=lambda run: Ratio(run.met, run.spread(run.duration_s, run.ones)),
    )
    yield Measure(
        key="output_tokens_per_s",
        label="output tokens",
        unit="tokens/s",
        basis="of answers that told their usage, over the run's seconds",
        better="more",
        of=_output_rate,
    )


def _output_rate(run: Run) -> Ratio:
    told = (~np.isnan(run.output_tokens)).astype(np.float64)
    return Ratio(run.output_tokens, run.spread(run.duration_s, told))


def _latencies() -> Iterator[Measure]:
    for key, name, basis in LATENCIES:
        for rank in RANKS:
            yield Measure(
                key=f"{key}_p{rank:g}",
                label=f"{name} p{rank:g}",
                unit="s",
                basis=basis,
                better="less",
                of=_latency(key, rank),
            )
        yield Measure(key=f"{key}_mean", label=f"{name} mean", unit="s", basis=basis, better="less", of=_mean(key))


def _latency(key: str, rank: float) -> Callable[[Run], Statistic]:
    return lambda run: Percentile(run.latency_s[key], rank)


def _mean(key: str) -> Callable[[Run], Statistic]:
    return lambda run: Ratio(run.latency_s[key], run.ones)


def _goodput() -> Iterator[Measure]:
    for basis, says in BASES.items():
        for spending, per, unit in (("energy_j", "kilojoule", "kJ"), ("cost_usd", "dollar", "USD")):
            yield Measure(
                key=f"goodput_per_{unit.lower()}_{basis}",
                label=f"goodput per {per}, {basis}",
                unit=f"requests/{unit}",
                basis=f"requests that met their terms; {says}",
                better="more",
                of=_met_over(basis, spending, _J_PER_KJ if unit == "kJ" else 1.0),
            )


def _met_over(basis: str, spending: str, unit: float) -> Callable[[Run], Statistic]:
    """Requests that met their terms over what all took whose spending is known, those that missed them included."""

    def of(run: Run) -> Ratio:
        spent = run.own[spending] if basis == OWN else run.spread(run.meter.total(basis, spending), run.ones)
        return Ratio(np.where(np.isnan(spent), np.nan, run.met), spent / unit)

    return of


def _spent() -> Iterator[Measure]:
    for basis, says in BASES.items():
        for spending, name, unit in (("energy_j", "energy", "J"), ("cost_usd", "cost", "USD")):
            yield Measure(
                key=f"{spending}_{basis}",
                label=f"{name} per request, {basis}",
                unit=unit,
                basis=f"{'mean' if basis == OWN else 'over the whole answers'}; {says}",
                better="less",
                of=_per_request(basis, spending),
            )
    yield Measure(
        key=f"carbon_g_{OWN}",
        label=f"carbon per request, {OWN}",
        unit="g CO2e",
        basis=f"mean; {BASES[OWN]}",
        better="less",
        of=lambda run: Ratio(run.carbon_g, run.ones),
    )


def _per_request(basis: str, spending: str) -> Callable[[Run], Statistic]:
    def of(run: Run) -> Ratio:
        spent = run.own[spending] if basis == OWN else run.spread(run.meter.total(basis, spending), run.answered)
        return Ratio(spent, run.ones)

    return of


def _other() -> Iterator[Measure]:
    yield Measure(
        key="quality_mean",
        label="delivered quality, mean",
        unit="of the full model's",
        basis="whole answers whose variant's quality is known",
        better="more",
        of=lambda run: Ratio(run.quality, run.ones),
    )
    yield Measure(
        key="output_tokens_mean",
        label="output tokens per answer, mean",
        unit="tokens",
        basis="answers that told their usage",
        of=lambda run: Ratio(run.output_tokens, run.ones),
    )
    for rank in (50.0, 99.0):
        yield Measure(
            key=f"late_s_p{rank:g}",
            label=f"lateness of the client p{rank:g}",
            unit="s",
            basis="sent after the due time; all requests; it is part of their TTFT and end-to-end time",
            of=_lateness(rank),
        )


def _lateness(rank: float) -> Callable[[Run], Statistic]:
    return lambda run: Percentile(run.late_s, rank)

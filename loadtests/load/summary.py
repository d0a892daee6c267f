"""One run in figures: in all, over time, by kind, tenant, terms and variant. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from load.measures import LATENCIES, Figure, figure, measures
from load.notes import notes
from load.predictions import Prediction, predictions
from load.run import Meter, Run, only
from load.statistics import Floats, Ints, Percentile, Ratio, draws, estimate, percentile
from load.terms import misses, sort_of
from load.types import Outcome

NOT_KNOWN = "not known"
_TIME_RANKS = (50.0, 95.0, 99.0)


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that have something in common. ``variants`` counts the whole answers of each variant."""

    requests: int
    slo: Figure
    ttft_s_p95: Figure
    e2e_s_p95: Figure
    energy_j: Figure
    cost_usd: Figure
    variants: dict[str, int]
    missed: dict[str, int]


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of each window of time."""

    label: str
    unit: str
    basis: str
    values: tuple[float | None, ...]
    samples: tuple[int, ...]


class OverTime(msgspec.Struct, frozen=True, kw_only=True):
    """The run in windows of ``window_s``, each with the requests that were due in it."""

    window_s: float
    starts_s: tuple[float, ...]
    requests: tuple[int, ...]
    series: dict[str, Series]
    variants: dict[str, tuple[int, ...]]


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """Requests without a whole answer, by HTTP status (None: none came) and error code."""

    status: int | None
    error: str
    requests: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the report says of one run."""

    name: str
    about: dict[str, Any]
    notes: tuple[str, ...]
    meter: Meter
    requests: int
    duration_s: float | None
    figures: dict[str, Figure]
    methods: dict[str, int]
    missed: dict[str, int]
    errors: tuple[Failed, ...]
    over_time: OverTime
    by_kind: dict[str, Group]
    by_tenant: dict[str, Group]
    by_terms: dict[str, Group]
    by_variant: dict[str, Group]
    variant_shares: dict[str, Figure]
    predictions: dict[str, Prediction]


def summarise(run: Run, counts: Ints | None = None) -> Summary:
    """All figures of a run. ``counts`` are the draws of its blocks; without them intervals come of seed 0."""
    counts = draws(run.block_of, 0) if counts is None else counts
    return Summary(
        name=run.name,
        about=run.about,
        notes=tuple(notes(run)),
        meter=run.meter,
        requests=len(run.outcomes),
        duration_s=run.duration_s,
        figures={one.key: one.figure(estimate(one.of(run), run.block_of, counts)) for one in measures()},
        methods=_counted(one.method or NOT_KNOWN for one in run.outcomes if one.energy_j is not None),
        missed=_counted(why for one in run.outcomes for why in misses(one)),
        errors=tuple(_failed(run.outcomes)),
        over_time=_over_time(run),
        by_kind=_groups(run, counts, lambda one: one.kind),
        by_tenant=_groups(run, counts, lambda one: one.tenant),
        by_terms=_groups(run, counts, lambda one: sort_of(one.terms)),
        by_variant=_groups(run, counts, _variant),
        variant_shares=dict(_shares(run, counts)),
        predictions=predictions(run, counts),
    )


def _variant(one: Outcome) -> str:
    return one.variant or NOT_KNOWN


def _counted(names: Iterator[str]) -> dict[str, int]:
    """How often each comes, the most frequent first."""
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _failed(outcomes: Sequence[Outcome]) -> Iterator[Failed]:
    found = Counter((one.status, one.error) for one in outcomes if one.error is not None)
    for (status, error), requests in sorted(found.items(), key=lambda item: (-item[1], str(item[0]))):
        yield Failed(status=status, error=error, requests=requests)


def _groups(run: Run, counts: Ints, of: Callable[[Outcome], str]) -> dict[str, Group]:
    return {name: _group(run, counts, places) for name, places in run.groups(of).items()}


def _group(run: Run, counts: Ints, places: Ints) -> Group:
    members = [run.outcomes[place] for place in places]
    met = estimate(Ratio(only(run.met, places), run.ones), run.block_of, counts)
    latencies = {
        key: figure(
            estimate(Percentile(only(run.latency_s[key], places), 95.0), run.block_of, counts),
            label=f"{name} p95",
            unit="s",
            basis=basis,
        )
        for key, name, basis in LATENCIES
    }
    return Group(
        requests=len(members),
        slo=figure(met, label="SLO attainment", unit="share", basis="of all requests of the group"),
        ttft_s_p95=latencies["ttft_s"],
        e2e_s_p95=latencies["e2e_s"],
        energy_j=_sum(run.own["energy_j"][places], "energy", "J"),
        cost_usd=_sum(run.own["cost_usd"][places], "cost", "USD"),
        variants=_counted(_variant(one) for one in members if one.answered),
        missed=_counted(why for one in members for why in misses(one)),
    )


def _sum(values: Floats, name: str, unit: str) -> Figure:
    known = values[~np.isnan(values)]
    return Figure(
        label=name,
        unit=unit,
        basis="sum of the answers' own figures (usage basis), of the requests that tell theirs",
        samples=len(known),
        value=float(known.sum()) if len(known) else None,
    )


def _shares(run: Run, counts: Ints) -> Iterator[tuple[str, Figure]]:
    """Each variant's part of the whole answers."""
    whole = np.flatnonzero(run.answered)
    for name, places in run.groups(_variant).items():
        answered_by_it = np.zeros(len(run.outcomes))
        answered_by_it[places] = 1.0
        found = estimate(Ratio(only(answered_by_it, whole), run.ones), run.block_of, counts)
        if found.value:
            yield name, figure(found, label=f"answered by {name}", unit="share", basis="of the whole answers")


def _over_time(run: Run) -> OverTime:
    windows = int(run.window_of.max()) + 1 if len(run.outcomes) else 0
    edges = np.searchsorted(run.window_of, np.arange(windows + 1))
    parts = [slice(int(begin), int(end)) for begin, end in pairwise(edges)]
    variants = [Counter(_variant(one) for one in run.outcomes[part] if one.answered) for part in parts]
    names = [name for name in run.groups(_variant) if any(found[name] for found in variants)]
    return OverTime(
        window_s=run.window_s,
        starts_s=tuple(round(number * run.window_s, 1) for number in range(windows)),
        requests=tuple(part.stop - part.start for part in parts),
        series=dict(_series(run, parts)),
        variants={name: tuple(found[name] for found in variants) for name in names},
    )


def _series(run: Run, parts: Sequence[slice]) -> Iterator[tuple[str, Series]]:
    for key, name, basis in LATENCIES:
        columns = [known[~np.isnan(known)] for known in (run.latency_s[key][part] for part in parts)]
        samples = tuple(len(column) for column in columns)
        for rank in _TIME_RANKS:
            values = tuple(percentile(column, rank) for column in columns)
            label = f"{name} p{rank:g}"
            yield f"{key}_p{rank:g}", Series(label=label, unit="s", basis=basis, values=values, samples=samples)
    met = [run.met[part] for part in parts]
    samples = tuple(len(column) for column in met)
    yield (
        "slo",
        Series(
            label="SLO attainment",
            unit="share",
            basis="of the requests due in the window",
            values=tuple(float(column.mean()) if len(column) else None for column in met),
            samples=samples,
        ),
    )
    yield (
        "goodput_per_s",
        Series(
            label="goodput",
            unit="requests/s",
            basis="requests due in the window that met their terms, over its length",
            values=tuple(float(column.sum()) / run.window_s for column in met),
            samples=samples,
        ),
    )

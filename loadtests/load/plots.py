"""A report's pictures, each an SVG of its own with an alternative text. Every number in them is in its tables too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from load.comparison import Comparison, SideBySide
from load.drawing import (
    COLOURS,
    HATCHES,
    HEIGHT,
    MARKERS,
    Plot,
    column,
    in_short,
    legend,
    line,
    looks_of,
    middles,
    plot,
    style,
)
from load.measures import LATENCIES
from load.summary import Summary

_DASHES = {"p50": "solid", "p95": "dashed", "p99": "dotted"}
_BY_RUN = ("solid", "dashed")
_TENANTS = 15


def plots(runs: Sequence[Summary], comparison: Comparison | None) -> list[Plot]:
    """All that there is data for."""
    with style():
        return [
            *_latencies(runs),
            *_attainment(runs),
            *_variants_over_time(runs),
            *_variants_by_terms(runs),
            *_predictions(runs),
            *_energy_by_tenant(runs),
            *(_ratios(comparison) if comparison else ()),
        ]


def _latencies(runs: Sequence[Summary]) -> Iterator[Plot]:
    shown = [latency for latency in LATENCIES if any(_has(run, f"{latency[0]}_p50") for run in runs)]
    if not shown:
        return
    figure = Figure(figsize=(9, HEIGHT * len(shown)), layout="constrained")
    for axes, (key, name, _) in zip(column(figure, len(shown)), shown, strict=True):
        for number, run in enumerate(runs):
            for rank, dashes in _DASHES.items():
                line(axes, run, f"{key}_{rank}", number, f"{run.name} {rank}", dashes)
        axes.set(ylabel=f"{name}, s", xlabel="due, s after the run's start", ylim=(0, None))
        axes.legend(fontsize=8, ncols=len(runs))
    names = ", ".join(name for _, name, _ in shown)
    said = "; ".join(
        f"{run.name}: {name} {', '.join(f'{rank} {_said(run, key, rank)} s' for rank in _DASHES)}"
        for run in runs
        for key, name, _ in shown
    )
    yield plot("Latency over time", f"Lines of p50, p95 and p99 of {names} by window of time. In all, {said}.", figure)


def _attainment(runs: Sequence[Summary]) -> Iterator[Plot]:
    if not any(run.requests for run in runs):
        return
    figure = Figure(figsize=(9, 2 * HEIGHT), layout="constrained")
    above, below = column(figure, 2)
    for number, run in enumerate(runs):
        line(above, run, "slo", number, run.name, "solid")
        line(below, run, "goodput_per_s", number, f"{run.name}: met their terms", "solid")
        sent = [requests / run.over_time.window_s for requests in run.over_time.requests]
        label = f"{run.name}: sent"
        below.step(middles(run), sent, where="mid", color=COLOURS[number], linestyle="dotted", label=label)
    above.set(ylabel="SLO attainment, share", ylim=(-0.03, 1.03))
    below.set(ylabel="requests/s", xlabel="due, s after the run's start", ylim=(0, None))
    above.legend(fontsize=8)
    below.legend(fontsize=8, ncols=len(runs))
    said = "; ".join(f"{run.name}: {in_short(run.figures['slo'].value)} of {run.requests} requests" for run in runs)
    alt = f"Share of requests that met their terms, and requests a second sent and good, by window of time. {said}."
    yield plot("SLO attainment and goodput over time", alt, figure)


def _variants_over_time(runs: Sequence[Summary]) -> Iterator[Plot]:
    shown = [run for run in runs if run.over_time.variants]
    if not shown:
        return
    looks = looks_of(shown)
    figure = Figure(figsize=(9, HEIGHT * len(shown)), layout="constrained")
    for axes, run in zip(column(figure, len(shown)), shown, strict=True):
        answers = np.array([run.over_time.variants.get(name, [0] * len(run.over_time.starts_s)) for name in looks])
        total = answers.sum(axis=0)
        shares = np.divide(answers, total, out=np.zeros(answers.shape), where=total > 0)
        bottom = np.zeros(len(total))
        for (colour, hatch), share in zip(looks.values(), shares, strict=True):
            axes.bar(
                middles(run),
                share,
                run.over_time.window_s,
                bottom,
                color=colour,
                hatch=hatch,
                edgecolor="white",
            )
            bottom = bottom + share
        axes.set(ylabel="share of whole answers", xlabel="due, s after the run's start", ylim=(0, 1), title=run.name)
    legend(figure, looks)
    yield plot("Variants over time", f"Stacked bars by window of time. In all, {_shares(shown)}.", figure)


def _variants_by_terms(runs: Sequence[Summary]) -> Iterator[Plot]:
    shown = [run for run in runs if run.variant_shares]
    if not shown:
        return
    looks = looks_of(shown)
    rows = [(run, terms, group) for run in shown for terms, group in run.by_terms.items() if group.variants]
    figure = Figure(figsize=(9, 1.2 + 0.38 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    labels = [f"{terms} ({run.name})" if len(shown) > 1 else terms for run, terms, _ in rows]
    left = np.zeros(len(rows))
    for name, (colour, hatch) in looks.items():
        width = np.array([group.variants.get(name, 0) / sum(group.variants.values()) for _, _, group in rows])
        axes.barh(range(len(rows)), width, left=left, color=colour, hatch=hatch, edgecolor="white")
        left = left + width
    axes.set(yticks=range(len(rows)), yticklabels=labels, xlabel="share of whole answers", xlim=(0, 1))
    axes.invert_yaxis()
    legend(figure, looks)
    alt = f"A stacked bar of the variants' shares for each sort of terms. In all, {_shares(shown)}."
    yield plot("Variants by terms", alt, figure)


def _predictions(runs: Sequence[Summary]) -> Iterator[Plot]:
    keys = [key for key in (runs[0].predictions if runs else ()) if any(run.predictions[key].samples for run in runs)]
    if not keys:
        return
    figure = Figure(figsize=(9, HEIGHT * ((len(keys) + 1) // 2)), layout="constrained")
    grid = np.ravel(figure.subplots((len(keys) + 1) // 2, 2, squeeze=False))
    for axes, key in zip(grid, keys, strict=False):
        for number, run in enumerate(runs):
            found = run.predictions[key]
            if found.samples:
                share = np.array(found.bins) / found.samples
                axes.stairs(share, found.edges, color=COLOURS[number], linestyle=_BY_RUN[number], label=run.name)
        axes.axvspan(0.8, 1.2, color="0.85", zorder=0)
        axes.set(xscale="log", xlim=(0.1, 10), ylabel="share")
        axes.set_xlabel(f"{runs[0].predictions[key].label}: actual over predicted")
        axes.xaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10]))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(fontsize=8)
    for axes in grid[len(keys) :]:
        axes.set_axis_off()
    said = "; ".join(
        f"{run.name}: {run.predictions[key].label} median ratio {in_short(run.predictions[key].median_ratio.value)}, "
        f"{in_short(run.predictions[key].within_20_percent.value)} within 20 %"
        for run in runs
        for key in keys
    )
    alt = f"Histograms of actual over predicted values on a logarithmic axis; within 20 % is shaded. {said}."
    yield plot("Predictions against actuals", alt, figure)


def _energy_by_tenant(runs: Sequence[Summary]) -> Iterator[Plot]:
    energies = {
        tenant: [run.by_tenant[tenant].energy_j.value if tenant in run.by_tenant else None for run in runs]
        for tenant in dict.fromkeys(tenant for run in runs for tenant in run.by_tenant)
    }
    known = {tenant: values for tenant, values in energies.items() if any(value is not None for value in values)}
    shown = dict(list(known.items())[:_TENANTS])
    if not shown:
        return
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(shown) * len(runs)), layout="constrained")
    axes = figure.add_subplot()
    thick = 0.8 / len(runs)
    for number, run in enumerate(runs):
        at = np.arange(len(shown)) + (number - (len(runs) - 1) / 2) * thick
        width = [np.nan if (value := values[number]) is None else value for values in shown.values()]
        axes.barh(at, width, thick, color=COLOURS[number], hatch=HATCHES[number], edgecolor="white", label=run.name)
    axes.set(yticks=range(len(shown)), yticklabels=list(shown), xlabel="J, the answers' own figures (usage basis)")
    axes.invert_yaxis()
    axes.legend(fontsize=8)
    more = f" of {len(known)}, those with most requests" if len(known) > len(shown) else ""
    said = "; ".join(f"{tenant} {' and '.join(map(in_short, values))} J" for tenant, values in shown.items())
    yield plot("Energy by tenant", f"Bars of {len(shown)} tenants{more}: {said}.", figure)


def _ratios(comparison: Comparison) -> Iterator[Plot]:
    shown = [one for one in comparison.figures.values() if one.better is not None and one.ratio]
    if not shown:
        return
    figure = Figure(figsize=(9, 1.0 + 0.24 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for place, one in enumerate(shown):
        assert one.ratio is not None
        number = 0 if _gained(one) else 1
        axes.plot(one.ratio, place, marker=MARKERS[number], color=COLOURS[number], linestyle="none")
        if one.ratio_low and one.ratio_high:
            axes.plot([one.ratio_low, one.ratio_high], [place, place], color=COLOURS[number], linewidth=1.5)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(
        yticks=range(len(shown)),
        yticklabels=[f"{one.first.label} ({one.better} is better)" for one in shown],
        xscale="log",
        xlabel="second run over first; circle: better in the second, square: not; line: 95 % interval",
    )
    axes.xaxis.set_major_locator(FixedLocator(_ticks([one.ratio for one in shown if one.ratio])))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.invert_yaxis()
    alt = f"Ratios of {len(shown)} figures with their intervals on a logarithmic axis; the first table holds them."
    yield plot("Second run over first", alt, figure)


def _gained(one: SideBySide) -> bool:
    return one.ratio is not None and (one.ratio < 1 if one.better == "less" else one.ratio > 1)


def _ticks(ratios: Sequence[float]) -> list[float]:
    """Round numbers about these ratios, few enough to be read."""
    low, high = min((*ratios, 0.8)), max((*ratios, 1.25))
    digits = (1.0, 1.2, 1.4, 1.7, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0) if high < 4 * low else (1.0, 2.0, 5.0)
    ticks = [round(digit * 10.0**power, 6) for power in range(-6, 7) for digit in digits]
    return [tick for tick in ticks if 0.6 * low <= tick <= 1.6 * high]


def _has(run: Summary, series: str) -> bool:
    return any(value is not None for value in run.over_time.series[series].values)


def _shares(runs: Sequence[Summary]) -> str:
    return "; ".join(
        f"{run.name}: {', '.join(f'{name} {in_short(one.value)}' for name, one in run.variant_shares.items())}"
        for run in runs
    )


def _said(run: Summary, key: str, rank: str) -> str:
    return in_short(run.figures[f"{key}_{rank}"].value)

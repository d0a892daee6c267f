"""What a report's pictures have in common: colours and other looks, lines over time, a column of axes, SVG.

Colours are those of Okabe and Ito ("Color Universal Design", 2008), which colour-blind readers can tell apart; dashes,
markers and hatches tell the same without colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from load.summary import Summary

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
MARKERS = ("o", "s")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")
HEIGHT = 2.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """A picture. ``alt`` says what it shows, for those who do not see it."""

    title: str
    alt: str
    svg: bytes


def style() -> AbstractContextManager[None]:
    """Within it matplotlib draws as all pictures here look."""
    return mpl.rc_context(
        {
            "svg.hashsalt": "economizer",  # the same figures make the same bytes
            "svg.fonttype": "path",
            "text.parse_math": False,  # a dollar in a tenant's name is a dollar
            "font.size": 9,
            "axes.grid": True,
            "grid.alpha": 0.25,
        }
    )


def middles(run: Summary) -> list[float]:
    """Where a window's value is drawn, in seconds after the run's start."""
    return [start_s + run.over_time.window_s / 2 for start_s in run.over_time.starts_s]


def line(axes: Axes, run: Summary, series: str, number: int, label: str, dashes: str) -> None:
    """Draw a series of the run with this number (0 or 1), with gaps where it is not known."""
    values = [np.nan if value is None else value for value in run.over_time.series[series].values]
    axes.plot(
        middles(run),
        values,
        color=COLOURS[number],
        marker=MARKERS[number],
        markersize=3,
        linestyle=dashes,
        label=label,
    )


def column(figure: Figure, count: int) -> list[Axes]:
    """Axes one below the other."""
    return [figure.add_subplot(count, 1, place + 1) for place in range(count)]


def looks_of(runs: Sequence[Summary]) -> dict[str, tuple[str, str]]:
    """A colour and a hatch for each variant, the same in all pictures."""
    names = sorted({name for run in runs for name in run.variant_shares})
    return {name: (COLOURS[place % len(COLOURS)], HATCHES[place % len(HATCHES)]) for place, name in enumerate(names)}


def legend(figure: Figure, looks: dict[str, tuple[str, str]]) -> None:
    """Say which look is which variant's, below all axes."""
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=name) for name, (colour, hatch) in looks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8, frameon=False)


def in_short(value: float | None) -> str:
    """A number for an alternative text."""
    return "not known" if value is None else f"{value:.3g}"


def plot(title: str, alt: str, figure: Figure) -> Plot:
    """The figure as SVG, without what matplotlib writes around it: a date, and links to definitions elsewhere."""
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    return Plot(title=title, alt=alt, svg=svg[svg.index(b"<svg") :])

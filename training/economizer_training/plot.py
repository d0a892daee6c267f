"""A run as a picture: held-out KL against the tokens learnt from, and against the joules spent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from economizer_training.pacing import learning_j

_LINE, _FAINT = "#0072b2", "#b0b0b0"


def plot_run(scores: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Writes a PNG of the held-out scores, as `record.scores` gives them.

    Joules of pauses are left out, and points whose joules are unknown.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    by_tokens, by_joules = figure.subplots(1, 2, sharey=True)
    _draw(by_tokens, [(score["tokens"] / 1000, score["kl"]) for score in scores])
    spent = [(learning_j(score), score["kl"]) for score in scores]
    known = [(joules / 1000, kl) for joules, kl in spent if joules is not None]
    _draw(by_joules, known)
    by_tokens.set_ylabel("held-out KL to the teacher, nats")
    by_tokens.set_xlabel("tokens learnt from, thousands")
    by_joules.set_xlabel("energy used, kJ" if known else "energy used: not known")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110, format="png")


def _draw(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    axes.grid(color=_FAINT, linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    if not points:
        return
    axes.plot(*zip(*points, strict=True), color=_LINE, marker="o", markersize=3)
    x, y = points[-1]
    axes.annotate(f"{y:.3f}", (x, y), textcoords="offset points", xytext=(-4, 8), ha="right", color=_LINE)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)

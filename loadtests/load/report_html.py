"""A report as one HTML page that needs nothing beside it: styles and pictures are in it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from load.comparison import Comparison
from load.plots import plots
from load.summary import NOT_KNOWN, Summary

_TEMPLATE = "report.html.j2"
METHOD = (
    "SLO attainment and goodput count requests that came whole and kept every term that the client can see: TTFT, "
    "TPOT, end-to-end time, quality floor. A term on what nobody told is not kept. TTFT and end-to-end time begin when "
    "the request was due, so that a client that is late itself hides no wait.",
    "Latencies are of whole answers; what failed or was refused has none, and counts in SLO attainment.",
    "A percentile lies between two of the sorted values, in proportion (type 7 of Hyndman and Fan, The American "
    "Statistician 50, 1996).",
    "Goodput per kilojoule and per dollar: requests that met their terms over what all requests took, those that "
    "missed their terms included. On the basis own both are of the requests that tell what they took.",
    "Intervals: percentile bootstrap at 95 % (Efron and Tibshirani 1993, chapter 13) from 1,000 seeded draws of blocks "
    "of time that do not overlap (Carlstein, Annals of Statistics 14, 1986); a block is a window of the tables over "
    "time. Where blocks are independent an interval holds the truth 90 % of the time at 10 blocks, 93 % at 20, 94 % at "
    "40.",
    "No interval is told of fewer than 10 blocks, of a percentile with fewer than 5 samples on either side of it, and "
    "where all draws are alike (as where every request met its terms; then 3 / n is a usual upper bound on the rate of "
    "what was never seen).",
    "Two runs of one plan are drawn by the same blocks, so that what both share leaves the ratio; other runs "
    "independently.",
    "Intervals are over the requests of these runs. What changes from run to run (the machine, its other load) is not "
    "in them: repeat runs in turns to see it.",
)


def page(runs: Sequence[Summary], comparison: Comparison | None) -> str:
    """The page of one run, or of two with their comparison."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"known": _known, "in_words": _in_words, "base64": lambda raw: b64encode(raw).decode()}
    return environment.get_template(_TEMPLATE).render(
        runs=runs, comparison=comparison, plots=plots(runs, comparison), method=METHOD
    )


def _known(value: float | None) -> str:
    """A number with four digits that count."""
    if value is None:
        return NOT_KNOWN
    return f"{float(f'{value:.4g}'):,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}"


def _in_words(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()

"""The requests that both fleets get: a trace's arrivals and lengths at a chosen load, round by round. Pure.

Round after round takes the next rows of the trace: first those of the warm-up, then those that are measured. Each piece
is stretched or pressed to its length in time, so that every round offers the same load; the speed-up that takes is in
the plan.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import log, sqrt

import msgspec

from load.arrivals import Rate, Row, TraceError, Window, arrivals
from load.mixes import Mix, Sort
from load.plan import Plan, Shape, make_plan
from load.prompts import Prompts
from load.traces import Trace

_DRAWN, _DRAWN_S = 4_000, 7_200.0
# Median and mean of prompts and answers in tokens, in Azure's trace of conversations of 2023.
_LENGTHS = ((1020, 1155), (129, 211))


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests a second are offered, and for how many seconds they are measured and the fleet is warmed up."""

    requests_per_s: float
    seconds: float
    warm_s: float


class Workload:
    """Plans out of one trace. ``shape``'s speed is not used: it comes of the load."""

    def __init__(self, trace: Trace, prompts: Prompts, *, model: str, shape: Shape, seed: int) -> None:
        self._trace = trace
        self._prompts = prompts
        self._model = model
        self._shape = shape
        self._seed = seed

    def warm_up(self, mix: Mix, load: Load, number: int) -> Plan:
        """The requests before those of a round (from 0)."""
        start, warm, _ = self._pieces(load, number)
        return self._plan(mix, start, warm, load.warm_s, number)

    def round(self, mix: Mix, load: Load, number: int) -> Plan:
        """The requests of a round (from 0)."""
        start, warm, measured = self._pieces(load, number)
        return self._plan(mix, start + warm, measured, load.seconds, number)

    def burst(self, count: int) -> Plan:
        """The first requests, without terms, all due at once."""
        plan = self._plan(Mix(name="", sorts={"any": Sort(share=1.0)}), 0, count, 1.0, 0)
        requests = tuple(msgspec.structs.replace(one, due_s=0.0) for one in plan.requests)
        return msgspec.structs.replace(plan, requests=requests)

    def speed(self, load: Load, number: int) -> float:
        """How much faster than it was recorded a round's piece of the trace goes by; below 1 it is slowed down."""
        start, warm, measured = self._pieces(load, number)
        return self._seconds(start + warm, measured) / load.seconds

    def _pieces(self, load: Load, number: int) -> tuple[int, int, int]:
        """Where a round's rows start, and how many there are of its warm-up and of what is measured."""
        warm, measured = (max(1, round(load.requests_per_s * span_s)) for span_s in (load.warm_s, load.seconds))
        return number * (warm + measured), warm, measured

    def _plan(self, mix: Mix, start: int, count: int, seconds: float, number: int) -> Plan:
        span_s = self._seconds(start, count)
        first_s = self._trace.rows[start].at_s
        rows = [
            msgspec.structs.replace(row, at_s=row.at_s - first_s) for row in self._trace.rows[start : start + count]
        ]
        return make_plan(
            msgspec.structs.replace(self._trace, rows=tuple(rows)),
            self._prompts,
            mix,
            model=self._model,
            shape=msgspec.structs.replace(self._shape, speed=span_s / seconds),
            seed=self._seed + number,
        )

    def _seconds(self, start: int, count: int) -> float:
        """From the first of these rows to the one that follows them."""
        rows = self._trace.rows
        if start + count >= len(rows):
            raise TraceError(
                f"the trace has {len(rows)} requests and {start + count + 1} are wanted: name a longer one, or ask for "
                "fewer rounds or minutes"
            )
        return max(rows[start + count].at_s - rows[start].at_s, 1e-6)


def mean_lengths(plans: Sequence[Plan]) -> tuple[float, float]:
    """Mean tokens of prompts and answers, as planned."""
    count = sum(len(plan.requests) for plan in plans)
    return sum(plan.prompt_tokens for plan in plans) / count, sum(plan.output_tokens for plan in plans) / count


def floors(mix: Mix) -> list[float]:
    """The quality floors in a mix, 0 for none."""
    return [sort.terms.quality_min or 0.0 for sort in mix.sorts.values()]


def drawn_trace(seed: int) -> Trace:
    """A trace where none is given: Poisson arrivals, and lengths as skewed as those of Azure's conversations."""
    draw = random.Random(f"{seed} lengths")
    lengths = [(_length(draw, *_LENGTHS[0]), _length(draw, *_LENGTHS[1])) for _ in range(_DRAWN)]
    rates = [Rate(at_s=0.0, per_s=1.0), Rate(at_s=_DRAWN_S / 2, per_s=1.0)]
    rows: list[Row] = arrivals(rates, lengths, window=Window(), seed=seed, clients={}, bursty=False)
    return Trace(format="drawn: Poisson arrivals, lognormal lengths", rows=tuple(rows), share=None)


def _length(draw: random.Random, median: float, mean: float) -> int:
    return max(1, round(draw.lognormvariate(log(median), sqrt(2 * log(mean / median)))))


def capacity_rps(ends_s: Sequence[float]) -> float:
    """Requests a second that a fleet answers while it is full, from when the answers to a burst ended.

    It is the rate in the middle: while the first wave fills the batches and while the last one empties them fewer end.
    Raises ValueError for less than 20 answers.
    """
    if len(ends_s) < 20:
        raise ValueError(f"ends_s has {len(ends_s)} answers: must be 20 or more, to tell a rate")
    ends = sorted(ends_s)
    first, last = round(0.25 * len(ends)), round(0.75 * len(ends))
    return (last - first) / (ends[last] - ends[first])

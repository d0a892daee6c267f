"""What one fleet took and how it answered, beside another one on the same requests. Pure.

Figures are of all rounds together; beside a sum per request stands what each round came to alone. Intervals are the
block bootstrap's (``statistics.py``), over blocks of 10 seconds of all rounds: joules of a block over whole answers to
requests that were due in it. Both fleets get the same requests at the same seconds, so blocks are drawn in pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from load.spending import Machine, Reading, Spending, cut, engine_seconds, spending
from load.statistics import Estimate, Floats, Ints, Percentile, Ratio, Statistic, draws, estimate
from load.statistics import ratio as ratio_of
from load.types import Outcome

BLOCK_S = 10.0
AMOUNTS = ("usage_j", "allocation_j", "gateway_j", "idle_j", "usage_usd", "allocation_usd")
_SEED = 0


class Bill(Struct, frozen=True, kw_only=True):
    """What the gateway's own books say of a run; None is unknown. ``idle`` has startup and lost work in it, too."""

    energy_j: float | None
    with_idle_j: float | None
    cost_usd: float | None
    with_idle_usd: float | None
    closes: bool


class Ran(Struct, frozen=True, kw_only=True):
    """One run of a fleet: which it was, how many requests it was sent, and what was read of it.

    ``fleet`` is ``full`` (the control), ``economizer``, or the name of a step between them; ``mix`` and ``policy`` are
    empty where they do not matter. ``engines`` are those started at first. ``gateway_cores`` are booked for what is no
    engine. ``variant`` is whose the answers are that do not say so themselves.
    """

    round: int
    mix: str
    fleet: str
    policy: str
    variant: str
    engines: int
    began: str
    seconds: float
    planned: int
    gateway_cores: float
    readings: tuple[Reading, ...]
    bill: Bill | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A run, and what came of its requests."""

    ran: Ran
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, kw_only=True)
class Side:
    """The runs of one fleet under one mix and policy, in the order of their rounds."""

    runs: tuple[Measured, ...]
    machine: Machine

    @cached_property
    def block_of(self) -> Ints:
        """The block of each outcome: that in which its request was due."""
        starts = np.concatenate([[0], np.cumsum([len(_edges(run.ran)) - 1 for run in self.runs])]).astype(int)
        found = [
            start + min(int(one.due_s / BLOCK_S), end - start - 1)
            for run, start, end in zip(self.runs, starts[:-1], starts[1:], strict=True)
            for one in run.outcomes
        ]
        return np.array(found, dtype=np.int64)

    @property
    def outcomes(self) -> list[Outcome]:
        """Of all rounds."""
        return [one for run in self.runs for one in run.outcomes]

    @cached_property
    def spent(self) -> tuple[Spending, ...]:
        """What each round took."""
        return tuple(spending(run.ran.readings, self.machine, run.ran.gateway_cores) for run in self.runs)

    @cached_property
    def blocks(self) -> tuple[Spending, ...]:
        """What each block of each round took; the last one of a round has all that came after it."""
        return tuple(
            spending(part, self.machine, run.ran.gateway_cores)
            for run in self.runs
            for part in cut(run.ran.readings, _edges(run.ran))
        )

    @cached_property
    def answers(self) -> Floats:
        """Whole answers by block."""
        answered = np.array([one.answered for one in self.outcomes], dtype=np.float64)
        return np.bincount(self.block_of, weights=answered, minlength=len(self.blocks)).astype(np.float64)

    def per_request(self, amount: str) -> Ratio:
        """An amount for each whole answer, block by block."""
        return Ratio(np.array([getattr(block, amount) for block in self.blocks]), self.answers)

    def each_round(self, amount: str) -> list[float]:
        """An amount for each whole answer of every round that has one."""
        answered = [sum(one.answered for one in run.outcomes) for run in self.runs]
        return [getattr(of, amount) / count for of, count in zip(self.spent, answered, strict=True) if count]

    def per_output_token(self) -> float | None:
        """Usage in joules for each token of an answer; None of none."""
        tokens = sum(one.output_tokens or 0 for one in self.outcomes)
        return sum(of.usage_j for of in self.spent) / tokens if tokens else None

    def engines(self) -> float:
        """Engines that were there, on average over the runs' time."""
        return sum(engine_seconds(run.ran.readings) for run in self.runs) / sum(of.seconds for of in self.spent)

    def in_time(self) -> Ratio:
        """The share of requests that were answered whole and within their latency terms."""
        return Ratio(np.array([float(in_time(one)) for one in self.outcomes]), np.ones(len(self.outcomes)))

    def latency(self, name: str, rank: float) -> Percentile:
        """``ttft_s``, ``tpot_s`` or ``e2e_s`` of whole answers."""
        values = [getattr(one, name) if one.answered else None for one in self.outcomes]
        return Percentile(np.array([np.nan if value is None else value for value in values]), rank)

    def of_requests(self, statistic: Statistic) -> Estimate:
        """A figure of the requests with its interval."""
        return estimate(statistic, self.block_of, draws(np.arange(len(self.blocks)), _SEED))

    def variants(self) -> Mapping[str, float]:
        """The share of whole answers that came from each variant, the largest first."""
        answers = Counter(one.variant or run.ran.variant for run in self.runs for one in run.outcomes if one.answered)
        return {name: count / answers.total() for name, count in sorted(answers.items(), key=lambda n: (-n[1], n[0]))}


def ratio(full: Side, ours: Side, amount: str) -> Estimate:
    """How many times as much the first takes for a request as the second. Both must be of the same rounds."""
    places = np.arange(len(full.blocks))
    drawn = draws(places, _SEED)
    over, under = (estimate(side.per_request(amount), places, drawn) for side in (full, ours))
    value, low, high = ratio_of(over, under)
    return Estimate(value=value, low=low, high=high, samples=len(places))


def in_time(one: Outcome) -> bool:
    """Whether it was answered whole and within its latency terms, whoever answered it."""
    return replace(one, terms=replace(one.terms, quality_min=None)).met


def paired(full: Sequence[Measured], ours: Sequence[Measured]) -> tuple[list[Measured], list[Measured]]:
    """The runs of both of those rounds that both have."""
    rounds = {run.ran.round for run in full} & {run.ran.round for run in ours}
    first, second = ([run for run in runs if run.ran.round in rounds] for runs in (full, ours))
    return sorted(first, key=lambda run: run.ran.round), sorted(second, key=lambda run: run.ran.round)


def _edges(ran: Ran) -> list[float]:
    """Where blocks begin and end; the last one goes on to the last reading."""
    count = max(1, int(ran.seconds / BLOCK_S))
    return [index * BLOCK_S for index in range(count)] + [max(ran.readings[-1].at_s, count * BLOCK_S)]

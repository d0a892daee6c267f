"""A run as its report sees it: what came of its requests by column, its windows of time, and what meters said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

import msgspec
import numpy as np

from load.statistics import Floats, Ints, blocks, window_width_s
from load.types import Outcome

ESTIMATE = "estimate"  # the method of what comes of a variant's cards: no actual to hold a prediction against
MANY = 50  # tenants, kinds or terms that a table names; the rest are one row


class Spent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run took, of all its engines; None is not known."""

    energy_j: float | None = None
    cost_usd: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("energy_j", self.energy_j), ("cost_usd", self.cost_usd)):
            if value is not None and not (isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value!r}: must be a number above 0, or left out where it is not known")


class Meter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was metered of a whole run, from outside: ``usage`` of work alone, ``allocation`` with what idled.

    ``source`` says which meter it was, over which processes and for how long.
    """

    source: str = "not stated"
    usage: Spent = Spent()
    allocation: Spent = Spent()

    def total(self, basis: str, spending: str) -> float | None:
        """The run's joules or dollars: ``usage`` or ``allocation``, ``energy_j`` or ``cost_usd``."""
        spent = {"usage": self.usage, "allocation": self.allocation}[basis]
        return {"energy_j": spent.energy_j, "cost_usd": spent.cost_usd}[spending]


class Run:
    """What came of one run's requests, in the order in which they were due.

    ``about`` is what the run says of itself, ``planned`` how many requests it was to send, ``plan_sha256`` the hash of
    all of them with their prompts. Columns hold a number for each request; nan is not known. Raises ValueError where
    two requests have the same number.
    """

    def __init__(
        self,
        name: str,
        outcomes: Sequence[Outcome],
        *,
        meter: Meter | None = None,
        about: Mapping[str, Any] | None = None,
        planned: int | None = None,
        plan_sha256: str | None = None,
    ) -> None:
        self.name = name
        self.outcomes = tuple(sorted(outcomes, key=lambda one: (one.due_s, one.number)))
        self.meter = meter or Meter()
        self.about = dict(about or {})
        self.planned = planned
        self.plan_sha256 = plan_sha256
        _require_own_numbers(self.outcomes)
        due_s = self.column(lambda one: one.due_s)
        self.window_s = window_width_s(float(due_s.max(initial=0.0)))
        self.window_of: Ints = np.floor(due_s / self.window_s).astype(np.int64)
        self.block_of: Ints = blocks(due_s, self.window_s)
        self.ones: Floats = np.ones(len(self.outcomes))
        self.met = self.column(lambda one: one.met)
        self.answered = self.column(lambda one: one.answered)
        self.latency_s = {
            "ttft_s": self.column(lambda one: one.ttft_s if one.answered else None),
            "tpot_s": self.column(lambda one: one.tpot_s if one.answered else None),
            "e2e_s": self.column(lambda one: one.e2e_s if one.answered else None),
        }
        self.late_s = self.column(lambda one: one.sent_s - one.due_s)
        self.carbon_g = self.column(lambda one: one.carbon_g)
        self.own = {
            "energy_j": self.column(lambda one: one.energy_j),
            "cost_usd": self.column(lambda one: one.cost_usd),
        }
        self.output_tokens = self.column(lambda one: one.output_tokens)
        self.quality = self.column(lambda one: one.quality if one.answered else None)

    def column(self, value: Callable[[Outcome], float | None]) -> Floats:
        """A number of each request; nan where it is None."""
        return np.array([np.nan if (of := value(one)) is None else of for one in self.outcomes], dtype=np.float64)

    @property
    def duration_s(self) -> float | None:
        """Seconds from the first request's due time to the last end; None of a run without requests."""
        if not self.outcomes:
            return None
        return max(one.ended_s for one in self.outcomes) - self.outcomes[0].due_s

    def spread(self, total: float | None, among: Floats) -> Floats:
        """A run's total, in equal parts on the requests that are 1 in ``among``; nan on the others."""
        count = int((among == 1).sum())
        part = np.nan if total is None or not count else total / count
        return np.where(among == 1, part, np.nan)

    def groups(self, of: Callable[[Outcome], str]) -> dict[str, Ints]:
        """The places of the requests of each group, the largest first; what is beyond 50 groups is one of its own."""
        found: dict[str, list[int]] = {}
        for place, one in enumerate(self.outcomes):
            found.setdefault(of(one), []).append(place)
        names = sorted(found, key=lambda name: (-len(found[name]), name))
        named = {name: np.array(found[name], dtype=np.int64) for name in names[:MANY]}
        if rest := names[MANY:]:
            places = sorted(place for name in rest for place in found[name])
            named[f"({len(rest)} others)"] = np.array(places, dtype=np.int64)
        return named


def only(values: Floats, places: Ints) -> Floats:
    """The values at these places, nan elsewhere."""
    kept = np.full(len(values), np.nan)
    kept[places] = values[places]
    return kept


def _require_own_numbers(outcomes: Sequence[Outcome]) -> None:
    seen: set[int] = set()
    for one in outcomes:
        if one.number in seen:
            raise ValueError(f"number is {one.number} in two outcomes: must be of one request alone")
        seen.add(one.number)

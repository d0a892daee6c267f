"""Whether a run kept its objectives: the limits that its options name, against what was measured. Pure."""

from __future__ import annotations

from math import floor, log10

import msgspec


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    """A limit on one figure of a run. ``measured`` is None where nothing was measured, which keeps no limit."""

    name: str
    unit: str
    limit: float
    measured: float | None

    @property
    def met(self) -> bool:
        """Whether the figure is known and not above its limit."""
        return self.measured is not None and self.measured <= self.limit

    def __str__(self) -> str:
        measured = "nothing measured" if self.measured is None else f"{self.measured:g} {self.unit}".rstrip()
        limit = f"{self.limit:g} {self.unit}".rstrip()
        return f"SLO {'met' if self.met else 'MISSED'}: {self.name} {measured}, at most {limit}"


def exit_code(objectives: list[Objective], *, requests: int, failures_judged: bool, broken: bool) -> int | None:
    """1 where an objective was missed or nothing was asked; 0 where an objective covers the failures, and all are kept.

    None leaves it to Locust, for which any failure is a 1; so does a run that is ``broken`` by an error of its own.
    """
    if requests == 0 or not all(objective.met for objective in objectives):
        return 1
    return 0 if failures_judged and not broken else None


def three_digits(response_time: float) -> float:
    """A time in ms, rounded as Locust's histograms keep it: to three digits, and to 0.01 ms at the finest.

    Locust's own rounding is to two digits and whole ms: too coarse for the time of a token, and 5 % of any limit.
    """
    if response_time < 1.0:
        return round(response_time, 2)
    return round(response_time, 2 - floor(log10(response_time)))

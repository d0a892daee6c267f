"""What is thought of a soak: whether anything is missing, and the table and the figures that say so. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from load.accounting import FATES, Books, fates, reasons
from load.growth import Growth
from load.soaking import Soaked
from load.watching import ENGINES_GROUP, QUEUES_GROUP

# What a quantity may grow by in a minute. A gateway's bounded stores fill up for its first 20,000 requests, by about
# 1.5 kB each; descriptors, threads and queues follow the load, whose chance ups and downs a short run takes for growth.
LIMITS_PER_MIN = {
    "rss_mb": 1.0,
    "fds": 0.5,
    "threads": 0.5,
    "processes": 0.1,
    "in_gateway": 0.5,
    "in_engines": 0.5,
    "in_haproxy": 0.5,
    "haproxy_connections": 0.5,
    "unbooked": 0.5,
    "spooled": 0.1,
}
# Engines' memory is vLLM's own, and begins anew whenever one is killed. Connections stay open between requests.
_NOT_JUDGED = frozenset({f"{ENGINES_GROUP} rss_mb", f"{ENGINES_GROUP} fds", f"{ENGINES_GROUP} threads"})
MAY_REMAIN = frozenset({"haproxy_connections"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A soak's figures; ``problems`` is empty where nothing is missing, and ``growth`` is by group and quantity."""

    seconds: float
    interrupted: bool
    planned: int
    sent: int
    fates: dict[str, int]
    reasons: dict[str, int]
    kills: int
    recovered_s: list[float | None]
    tenants: dict[str, Any]
    queues_at_end: dict[str, float]
    growth: dict[str, dict[str, Any]]
    problems: list[str]

    def table(self) -> str:
        """For people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        ended = "ended early by hand" if self.interrupted else "to its end"
        yield f"\n{self.seconds / 60:.1f} minutes, {ended}: {self.sent} of {self.planned} requests sent"
        yield "  " + ", ".join(f"{self.fates.get(name, 0)} {name}" for name in FATES)
        for reason, count in self.reasons.items():
            yield f"    {count:6} {reason}"
        back = ", ".join("never" if one is None else f"{one:.0f} s" for one in self.recovered_s)
        yield f"  {self.kills} engines killed; back after: {back or '-'}"
        yield f"\n{'tenant':14}{'sent':>8}{'booked':>8}{'asked':>8}{'billed':>8}{'booked J':>14}{'billed J':>14}"
        for tenant, of in self.tenants.items():
            joules = f"{of['booked_uj'] / 1e6:>14.6f}{of['billed_uj'] / 1e6:>14.6f}"
            yield f"{tenant:14}{of['sent']:>8}{of['booked']:>8}{of['asked']:>8}{of['billed']:>8}{joules}"
        heads = f"{'first':>10}{'last':>10}{'most':>10}"
        yield f"\n{'':32}{heads}{'a minute (95 %)':>26}{'limit':>8}  after warm-up"
        for name, of in self.growth.items():
            slope = "-" if of["per_min"] is None else f"{of['per_min']:.2f} ({of['low']:.2f} to {of['high']:.2f})"
            seen = f"{of['first']:>10.1f}{of['last']:>10.1f}{of['most']:>10.1f}"
            yield f"{name:32}{seen}{slope:>26}{of['limit']:>8g}  {of['verdict']}"
        yield ""
        yield from (f"MISSING: {problem}" for problem in self.problems)
        if not self.problems:
            yield "nothing is missing: every request is accounted for, the bill closes, nothing is seen to grow"


def judge(
    soaked: Soaked, books: Books, *, queues: Mapping[str, float], grown: Mapping[str, Growth], planned: int
) -> Judged:
    """Put everything together. ``queues`` are what waited after the load, when there was time to end it all."""
    return Judged(
        seconds=round(soaked.seconds, 1),
        interrupted=soaked.interrupted,
        planned=planned,
        sent=len(soaked.outcomes),
        fates=fates(soaked.outcomes),
        reasons=reasons(soaked.outcomes),
        kills=len(soaked.kills),
        recovered_s=[None if one.recovered_s is None else round(one.recovered_s, 1) for one in soaked.kills],
        tenants=books.numbers(),
        queues_at_end=dict(queues),
        growth={name: _figures(name, grown[name]) for name in sorted(grown)},
        problems=[*books.problems(), *_left(queues), *_not_back(soaked, planned), *_leaks(grown)],
    )


def _figures(name: str, of: Growth) -> dict[str, Any]:
    slope = of.slope
    return {
        "first": round(of.first, 3),
        "last": round(of.last, 3),
        "most": round(of.most, 3),
        "per_min": None if slope is None else round(slope.per_min, 4),
        "low": None if slope is None else round(slope.low, 4),
        "high": None if slope is None else round(slope.high, 4),
        "limit": of.limit_per_min,
        "verdict": "not judged" if name in _NOT_JUDGED else of.verdict,
    }


def _left(queues: Mapping[str, float]) -> Iterator[str]:
    """What still waits once all is over."""
    if "in_gateway" not in queues:
        yield "the gateway did not say what waits in it after the load"
    for name, value in queues.items():
        if value and name not in MAY_REMAIN:
            yield f"{QUEUES_GROUP}: {name} is {value:g} after the load, and must be 0"


def _not_back(soaked: Soaked, planned: int) -> Iterator[str]:
    if soaked.all_back is False:
        yield "not every engine is ready again after the load"
    if not soaked.interrupted:
        if len(soaked.outcomes) != planned:
            yield f"{planned} requests were to be sent, and {len(soaked.outcomes)} have an outcome"
        yield from (
            f"an engine killed at {one.at_s:.0f} s was not ready again" for one in soaked.kills if not one.recovered_s
        )


def _leaks(grown: Mapping[str, Growth]) -> Iterator[str]:
    for name, of in sorted(grown.items()):
        if of.verdict == "grows" and name not in _NOT_JUDGED and of.slope is not None:
            slope = f"{of.slope.per_min:.2f} a minute ({of.slope.low:.2f} to {of.slope.high:.2f})"
            yield f"{name} grows by {slope}, and at most {of.limit_per_min:g} is no leak"

"""What came of requests as Locust's own statistics, so that its web UI, CSV, HTML and percentiles show all of it.

Requests are events (type POST). TTFT, TPOT and what Economizer says are entries of their own beside them, written to
Locust's statistics directly: as events they would count as requests, and joules as response times, in the row
``Aggregated`` and in every chart. Workers hand them to the master with all others.

    TTFT, TPOT     ms, by user class; TPOT is the mean of one answer's later tokens
    variant        ms to the end, by the variant that answered: the counts are its share
    mJ, uUSD, ug   millijoules, millionths of a dollar and of a gram of CO2 equivalent of an answer, by tenant
"""

from __future__ import annotations

from collections.abc import Iterator

from locust.env import Environment
from locust.stats import RequestStats, StatsEntry

from load.slo import Objective
from load.types import Outcome

TTFT, TPOT, POST, VARIANT = "TTFT", "TPOT", "POST", "variant"
_SPENT = (("mJ", 1e3, "J"), ("uUSD", 1e6, "USD"), ("ug", 1e6, "g CO2e"))


class Failed(Exception):
    """Why there is no whole answer: OpenAI's error code or type, or what happened on the way."""

    def __repr__(self) -> str:
        return str(self)


def record(environment: Environment, outcome: Outcome) -> None:
    """Put one outcome into the statistics."""
    environment.events.request.fire(
        request_type=POST,
        name=outcome.kind,
        response_time=outcome.e2e_s * 1e3,
        response_length=outcome.output_tokens or 0,  # tokens say more of an answer than its bytes
        exception=None if outcome.error is None else Failed(outcome.error),
        context={"tenant": outcome.tenant},
    )
    if not outcome.answered:
        return
    stats, tokens = environment.stats, outcome.output_tokens or 0
    for kind, value_s in ((TTFT, outcome.ttft_s), (TPOT, outcome.tpot_s)):
        if value_s is not None:
            _log(stats, kind, outcome.kind, value_s * 1e3, tokens)
    if outcome.variant is not None:
        _log(stats, VARIANT, outcome.variant, outcome.e2e_s * 1e3, tokens)
    spent = (outcome.energy_j, outcome.cost_usd, outcome.carbon_g)
    for (kind, scale, _), value in zip(_SPENT, spent, strict=True):
        if value is not None:
            _log(stats, kind, outcome.tenant, value * scale, tokens)


def _log(stats: RequestStats, kind: str, name: str, value: float, tokens: int) -> None:
    stats.get(name, kind).log(value, tokens)  # type: ignore[arg-type]  # Locust's own values are floats, too


def pooled(stats: RequestStats, kind: str) -> StatsEntry:
    """All entries of a kind as one."""
    all_of_it = StatsEntry(stats, "all", kind)
    for (_, method), entry in stats.entries.items():
        if method == kind:
            all_of_it.extend(entry)
    return all_of_it


def p95_ms(stats: RequestStats, kind: str) -> float | None:
    """The 95th percentile over all user classes, to three digits; None where nothing was measured."""
    entry = pooled(stats, kind)
    return entry.get_response_time_percentile(0.95) if entry.num_requests else None


def objectives(
    stats: RequestStats, *, ttft_ms: float | None, tpot_ms: float | None, e2e_ms: float | None, failures: float | None
) -> list[Objective]:
    """What was measured against each limit that there is; ``failures`` is a share of the requests."""
    times = (("TTFT p95", TTFT, ttft_ms), ("TPOT p95", TPOT, tpot_ms), ("end-to-end p95", POST, e2e_ms))
    found = [
        Objective(name=name, unit="ms", limit=limit, measured=p95_ms(stats, kind))
        for name, kind, limit in times
        if limit is not None
    ]
    if failures is not None:
        share = stats.total.fail_ratio if stats.total.num_requests else None
        found.append(Objective(name="share of requests that failed", unit="", limit=failures, measured=share))
    return found


def summary(stats: RequestStats) -> Iterator[str]:
    """What Economizer said of its answers, in lines: variants' shares, and what each tenant's answers took."""
    by_kind: dict[str, dict[str, StatsEntry]] = {}
    for (name, kind), entry in sorted(stats.entries.items()):
        by_kind.setdefault(kind, {})[name] = entry
    variants = by_kind.get(VARIANT, {})
    answered = sum(entry.num_requests for entry in variants.values())
    for name, entry in variants.items():
        yield f"variant {name}: {entry.num_requests} answers, {entry.num_requests / answered:.1%}"
    for kind, scale, unit in _SPENT:
        for tenant, entry in by_kind.get(kind, {}).items():
            total = entry.total_response_time / scale
            yield f"tenant {tenant}: {total:.4g} {unit}, {total / entry.num_requests:.3g} {unit} an answer"


def progress(stats: RequestStats, *, elapsed_s: float, run_s: float | None, users: int) -> str:
    """Where the run stands, in a line."""
    of = f" of {run_s:.0f} s, {max(0.0, run_s - elapsed_s):.0f} s left" if run_s else " s"
    total, ttft = stats.total, p95_ms(stats, TTFT)
    figures = f"{users} users, {total.num_requests} requests, {total.num_failures} failed"
    return f"{elapsed_s:.0f}{of}: {figures}" + ("" if ttft is None else f", TTFT p95 {ttft:g} ms")

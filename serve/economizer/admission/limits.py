"""Rate limits and budgets of all tenants over all gateways, in one place. Pure: time is an argument.

::

    Ask --admit--> Verdict ... finished          what a request is predicted to use is reserved in between
    spent                                        what the books say was used, as windows settle

A rate is a token bucket: it holds a minute's worth, and refills evenly. A budget counts what was spent in its day or
month and what is reserved. A request that is refused changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from typing import Literal

from economizer.admission.buckets import MINUTE_S, Bucket, Rate
from economizer.admission.tenants import (
    MICRO,
    PERS,
    UNITS,
    Budget,
    Per,
    Tenant,
    Unit,
    window_began_s,
    window_ends_s,
)
from economizer.errors import Overloaded, QuotaSpent, require

# The window that runs, the one before it, whose last work may settle late, and one more should a clock go astray.
_WINDOWS_KEPT = 3
# A gateway may not tell of a request's end, such as where its caller left while the verdict was on its way.
_RESERVED_S_MAX = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """What a request uses or is predicted to use: micro-dollars, microjoules, micrograms. None is unknown."""

    uusd: int | None = None
    uj: int | None = None
    ug: int | None = None

    def micro(self, unit: Unit) -> int:
        """Millionths of ``unit``, 0 where unknown."""
        return {"usd": self.uusd, "joules": self.uj, "grams_co2": self.ug}[unit] or 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A gateway's question whether a request may run.

    ``request_id`` is the gateway's own, unique among all requests ever. ``settings`` are the tenant's as the gateway
    has them. ``tokens`` is what the request is expected to need, prompt and answer; ``predicted`` what it is to use.
    """

    request_id: str
    gateway: str
    tenant: str
    settings: Tenant
    tokens: int
    predicted: Use = Use()

    def __post_init__(self) -> None:
        require(self.tokens >= 0, "tokens", self.tokens, "must be 0 or more")
        for unit in UNITS:
            require(self.predicted.micro(unit) >= 0, "predicted", self.predicted, "must be 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftEnd:
    """A budget whose soft end is passed: its unit, and in words how much of it is used."""

    unit: Unit
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """Why a request may not run now. ``retry_after_s`` is None where waiting would not help."""

    code: Literal["rate_limit_exceeded", "insufficient_quota"]
    message: str
    retry_after_s: float | None

    def error(self) -> Overloaded:
        """The error that the caller sees."""
        kind = QuotaSpent if self.code == "insufficient_quota" else Overloaded
        return kind(self.message, retry_after_s=self.retry_after_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a request may run, and why not.

    ``requests`` and ``tokens`` are how the tenant's rates stand now, None where there is no limit. ``soft`` is the
    budget that asks for cheaper terms: of several, the one of which the largest share is used.
    """

    refused: Refused | None = None
    soft: SoftEnd | None = None
    requests: Rate | None = None
    tokens: Rate | None = None

    @property
    def admitted(self) -> bool:
        """It may run, and what it is predicted to use is reserved."""
        return self.refused is None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Running:
    """A request that was admitted, and has not finished."""

    ask: Ask
    verdict: Verdict
    admitted_s: float


class Limits:
    """The rates and budgets of all tenants. One call at a time.

    ``now_s`` is seconds since the epoch. Where that clock steps back, nothing refills twice and nobody waits for it to
    catch up: buckets go on from where they are, and budgets return to the window before.
    """

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._spent: dict[tuple[str, Unit, Per], dict[float, int]] = {}
        self._reserved: Counter[tuple[str, Unit]] = Counter()
        self._running: dict[str, _Running] = {}
        self._swept_s = 0.0

    def admit(self, ask: Ask, now_s: float) -> Verdict:
        """Whether a request may run. One that was admitted and has not finished gets the same verdict again."""
        if ask.request_id in self._running:
            return self._running[ask.request_id].verdict
        self._sweep(now_s)
        requests = self._bucket(ask, "requests", ask.settings.requests_per_minute, now_s)
        tokens = self._bucket(ask, "tokens", ask.settings.tokens_per_minute, now_s)
        refused = self._over_budget(ask, now_s) or _over_rate(ask, requests, tokens)
        if refused is None:
            for bucket, count in ((requests, 1), (tokens, ask.tokens)):
                if bucket is not None:
                    bucket.take(count)
        verdict = Verdict(
            refused=refused,
            soft=None if refused is not None else self._soft_end(ask, now_s),
            requests=None if requests is None else requests.rate,
            tokens=None if tokens is None else tokens.rate,
        )
        if refused is None:
            self._running[ask.request_id] = _Running(ask=ask, verdict=verdict, admitted_s=now_s)
            for unit in UNITS:
                self._reserved[ask.tenant, unit] += ask.predicted.micro(unit)
        return verdict

    def finished(self, request_id: str, tokens: int | None, now_s: float) -> None:
        """Release what was reserved for a request, and take the tokens that it really needed, None being unknown.

        To be called once what the request used is in ``spent``: in between, nothing would count it. Until then what
        is in both counts twice, which errs on the budget's side. A request that is not known finished already, is
        over an hour old, or was admitted before this process began.
        """
        ask = self._release(request_id)
        if ask is not None and tokens is not None:
            bucket = self._bucket(ask, "tokens", ask.settings.tokens_per_minute, now_s)
            if bucket is not None:
                bucket.take(tokens - ask.tokens)

    def gone(self, gateway: str) -> None:
        """A gateway died: what its requests had reserved is released."""
        for request_id in [name for name, running in self._running.items() if running.ask.gateway == gateway]:
            self._release(request_id)

    def spent(self, tenant: str, use: Use, at_s: float) -> None:
        """Book what was used at ``at_s``, in seconds since the epoch, to the day and the month of that moment.

        Negative amounts take back.
        """
        for unit in UNITS:
            for per in PERS:
                micro = use.micro(unit)
                if micro:
                    windows = self._spent.setdefault((tenant, unit, per), {})
                    began_s = window_began_s(per, at_s)
                    windows[began_s] = windows.get(began_s, 0) + micro
                    if len(windows) > _WINDOWS_KEPT:
                        del windows[min(windows)]

    def begin_with(self, spent: Mapping[Per, Mapping[str, Use]], now_s: float) -> None:
        """Forget all that was spent: in the running day and month it was this, by tenant."""
        self._spent.clear()
        for per, uses in spent.items():
            began_s = window_began_s(per, now_s)
            for tenant, use in uses.items():
                for unit in UNITS:
                    self._spent[tenant, unit, per] = {began_s: use.micro(unit)}

    def used_micro(self, tenant: str, budget: Budget, now_s: float) -> int:
        """What is spent and reserved of a budget, in millionths of its unit."""
        windows = self._spent.get((tenant, budget.unit, budget.per), {})
        return windows.get(window_began_s(budget.per, now_s), 0) + self._reserved[tenant, budget.unit]

    def _release(self, request_id: str) -> Ask | None:
        running = self._running.pop(request_id, None)
        if running is None:
            return None
        ask = running.ask
        for unit in UNITS:
            self._reserved[ask.tenant, unit] -= ask.predicted.micro(unit)
            if not self._reserved[ask.tenant, unit]:
                del self._reserved[ask.tenant, unit]
        return ask

    def _bucket(self, ask: Ask, kind: str, per_minute: int | None, now_s: float) -> Bucket | None:
        if per_minute is None:
            return None
        bucket = self._buckets.setdefault((ask.tenant, kind), Bucket(per_minute, now_s))
        bucket.refill(per_minute, now_s)
        return bucket

    def _over_budget(self, ask: Ask, now_s: float) -> Refused | None:
        for budget in ask.settings.budgets:
            used, own = self.used_micro(ask.tenant, budget, now_s), ask.predicted.micro(budget.unit)
            amount = budget.amount_micro
            if budget.hard and (used >= amount or used + own > amount):
                ends_s = window_ends_s(budget.per, now_s)
                predicted = f", and it is predicted to take {_number(own)}" if own else ""
                message = (
                    f"The budget of {_number(amount)} {budget.name} does not allow this request: {_number(used)} is "
                    f"used or reserved{predicted}. "
                    f"The budget begins anew at {datetime.fromtimestamp(ends_s, UTC):%Y-%m-%dT%H:%M:%SZ}."
                )
                retry_after_s = None if own > amount else ends_s - now_s
                return Refused(code="insufficient_quota", message=message, retry_after_s=retry_after_s)
        return None

    def _soft_end(self, ask: Ask, now_s: float) -> SoftEnd | None:
        used = {budget: self.used_micro(ask.tenant, budget, now_s) for budget in ask.settings.budgets}
        past = [budget for budget in used if used[budget] >= budget.soft * budget.amount_micro]
        if not past:
            return None
        budget = max(past, key=lambda one: used[one] / one.amount_micro)
        words = f"{budget.name}: {_number(used[budget])} of {_number(budget.amount_micro)}"
        return SoftEnd(unit=budget.unit, words=words)

    def _sweep(self, now_s: float) -> None:
        """Once a minute, forget full buckets (one that is made anew is full too), and requests that never ended."""
        if abs(now_s - self._swept_s) < MINUTE_S:
            return
        self._swept_s = now_s
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if not bucket.full(now_s)}
        since_s = now_s - _RESERVED_S_MAX
        for request_id in [name for name, running in self._running.items() if running.admitted_s < since_s]:
            self._release(request_id)


def _over_rate(ask: Ask, requests: Bucket | None, tokens: Bucket | None) -> Refused | None:
    if tokens is not None and ask.tokens > tokens.per_minute:
        message = (
            f"This request may need {ask.tokens} tokens, prompt and answer, which is more than the "
            f"{tokens.per_minute} that may be used in a minute: it would never be let in. Ask for fewer."
        )
        return Refused(code="rate_limit_exceeded", message=message, retry_after_s=None)
    waits = tuple(_waits(ask, requests, tokens))
    if not waits:
        return None
    wait_s = max(wait_s for _, wait_s in waits)
    limits = " and ".join(words for words, _ in waits)
    message = f"The limit of {limits} is reached. Try again in {ceil(wait_s)} s."
    return Refused(code="rate_limit_exceeded", message=message, retry_after_s=wait_s)


def _waits(ask: Ask, requests: Bucket | None, tokens: Bucket | None) -> Iterator[tuple[str, float]]:
    """Each rate that does not allow the request now, in words, and the seconds until it does."""
    for words, bucket, count in (("requests", requests, 1), ("tokens", tokens, ask.tokens)):
        if bucket is not None and (wait_s := bucket.wait_s(count)):
            yield f"{bucket.per_minute} {words} per minute", wait_s


def _number(micro: int) -> str:
    """Millionths as a decimal number, without zeros at its end."""
    return f"{micro / MICRO:.6f}".rstrip("0").rstrip(".")

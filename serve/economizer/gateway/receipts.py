"""Receipts: the decision and what really happened. Each answer has the short form; the long one is kept a while."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from msgspec import Struct, json, to_builtins
from msgspec.structs import asdict
from pydantic_core import to_json

from economizer.admission.limits import Verdict
from economizer.errors import EconomizerError
from economizer.gateway.relay import Usage
from economizer.gateway.work import AttemptWork
from economizer.ledger.types import UNKNOWN as NOTHING
from economizer.ledger.types import Amounts, Booking, Charge, Counterfactual
from economizer.router.types import Candidate, Decision, Terms
from economizer.variants.estimate import UNKNOWN, Costs, request_costs
from economizer.variants.types import Variant

logger = logging.getLogger("economizer.requests")
ESTIMATE = "estimate"  # the method of what comes from the variant's cards
_MICRO = 1e6
_Z95 = 1.96  # half the width of a 95 % interval, in standard deviations


def new_request_id() -> str:
    """An id that cannot be guessed."""
    return f"ecr-{secrets.token_hex(16)}"


def estimated_costs(variant: Variant, usage: Usage, batch: float) -> Costs:
    """What an answer took by its variant's cards: joules, dollars, grams; None where a card is unknown."""
    return request_costs(
        variant,
        prompt_tokens=max(0, usage.prompt_tokens - (usage.cached_tokens or 0)),
        output_tokens=usage.output_tokens,
        batch=batch,
    )


@dataclass(slots=True)
class Measured:
    """What meters and prices said of a request, as far as its windows are settled; see ``ledger.types.Share``."""

    usage: Amounts = NOTHING
    idle: Amounts = NOTHING
    variance_uj2: float = 0.0
    method: str = ""

    def add(self, charge: Charge) -> None:
        """Take in what came since."""
        self.usage += charge.usage
        self.idle += charge.idle
        self.variance_uj2 = max(0.0, self.variance_uj2 + charge.variance_uj2)
        self.method = charge.method or self.method

    def energy_range_j(self) -> tuple[float, float] | None:
        """The 95 % interval of the usage's joules, from the residual of the attribution; None where not measured."""
        if self.usage.energy_uj is None:
            return None
        half_uj = _Z95 * self.variance_uj2**0.5
        return max(0.0, self.usage.energy_uj - half_uj) / _MICRO, (self.usage.energy_uj + half_uj) / _MICRO

    def short(self) -> dict[str, Any]:
        """Both bases, in whole units."""
        short: dict[str, Any] = {"method": self.method, **amounts(self.usage)}
        if interval := self.energy_range_j():
            short["energy_j_low"], short["energy_j_high"] = interval
        short["allocation"] = amounts(self.usage + self.idle)
        return short


def amounts(given: Amounts) -> dict[str, float | None]:
    """In whole units."""
    return {
        "energy_j": None if given.energy_uj is None else given.energy_uj / _MICRO,
        "cost_usd": None if given.cost_uusd is None else given.cost_uusd / _MICRO,
        "carbon_g": None if given.carbon_ug is None else given.carbon_ug / _MICRO,
    }


class Attempt(Struct, frozen=True, kw_only=True, gc=False):
    """One try at one replica, and why it failed, if it did."""

    variant: str
    replica: str
    error: str | None = None


@dataclass(kw_only=True, slots=True)
class Receipt:
    """One request from its arrival to its end. Filled in as the request goes on; read-only once kept.

    ``given_up`` says that its charges are not complete here: what it took is in the books alone.
    ``caller`` is who may read it; ``tenant`` and ``key_id`` are whom it is booked on. ``redecision`` is what was
    decided after the first engine failed. ``outcome`` is ok, engine_error, client_closed, refused or failed; ``arm``
    and ``degraded`` are as in ``ledger.types.Booking``. Times in seconds from arrival.
    """

    id: str
    caller: str
    tenant: str
    key_id: str
    created_s: float
    endpoint: str
    model: str
    stream: bool
    terms: Terms
    decision: Decision
    redecision: Decision | None = None
    attempts: list[Attempt] = field(default_factory=list)
    variant: Variant | None = None
    full: Variant | None = None
    replica: str | None = None
    outcome: str = "failed"
    status: int | None = None
    error: str | None = None
    ttft_s: float | None = None
    e2e_s: float | None = None
    tpot_s: float | None = None
    batch: float = 1.0
    usage: Usage | None = None
    costs: Costs | None = None
    full_costs: Costs | None = None
    arm: Literal["full", "routed"] | None = None
    degraded: str | None = None
    limits: Verdict | None = None
    measured: Measured = field(default_factory=Measured)
    open_attempts: int = 0
    given_up: bool = False
    work: AttemptWork | None = None
    _settled: asyncio.Event | None = None

    @property
    def settled(self) -> bool:
        """Its energy is measured, and nothing more will come."""
        return self.open_attempts == 0 and bool(self.measured.method) and not self.given_up

    def charge(self, charge: Charge) -> None:
        """Take in what the books say of it."""
        self.measured.add(charge)
        self.open_attempts -= charge.final
        if self._settled is not None and self.settled:
            self._settled.set()

    def give_up(self) -> None:
        """Be an estimate from now on, also for an answer that waits."""
        self.given_up, self.measured = True, Measured()
        if self._settled is not None:
            self._settled.set()

    async def until_settled(self, wait_s: float) -> None:
        """Returns once it is settled or given up, or after ``wait_s``."""
        if self.settled or self.given_up:
            return
        self._settled = asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._settled.wait()

    @property
    def last_decision(self) -> Decision:
        """The one that the answer came of."""
        return self.redecision or self.decision

    def ended(self, outcome: str, *, status: int | None, error: str | None = None) -> None:
        """Write down how it ended; a status that the caller has seen already stays."""
        self.outcome = outcome
        self.error = error
        if status is not None:
            self.status = status

    def settle(self, usage: Usage) -> None:
        """Put the answer's usage and what it cost into the receipt, beside what the full variant would have cost."""
        self.usage = usage
        if self.variant is None:
            return
        self.costs = estimated_costs(self.variant, usage, self.batch)
        if self.full is not None:
            self.full_costs = estimated_costs(self.full, usage, self.batch)

    def short(self) -> dict[str, Any]:
        """What ``usage.economizer`` holds."""
        short: dict[str, Any] = {
            "request_id": self.id,
            "variant": self.variant.name if self.variant else None,
            **self._best(),
            "full": {"variant": self.full.name, **_costs(self.full_costs)} if self.full else None,
        }
        if self.degraded is not None:
            short["degraded"] = self.degraded
        if self.arm == "full":
            short["hold_out"] = True
        if self.last_decision.missed:
            short["missed"] = [refusal.reason for refusal in self.last_decision.missed]
        return short

    def _best(self) -> dict[str, Any]:
        """What it took as it is known by now: measured, or by the cards, and then beside what was measured so far."""
        if self.settled:
            return {**self.measured.short(), "estimate": _costs(self.costs)}
        return {"method": ESTIMATE, **_costs(self.costs)}

    def short_json(self) -> str:
        """The same as JSON."""
        return to_json(self.short()).decode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The response headers that every answer has; costs are in them once they are known."""
        name = self.variant.name if self.variant else ""
        headers = [(b"x-economizer-variant", name.encode()), (b"x-economizer-request-id", self.id.encode())]
        if self.costs is not None:
            best = self._best()
            for header, value in (
                (b"x-energy-joules", best["energy_j"]),
                (b"x-cost-usd", best["cost_usd"]),
                (b"x-carbon-gco2e", best["carbon_g"]),
            ):
                if value is not None:
                    headers.append((header, f"{value:.6g}".encode()))
            headers.append((b"x-economizer-method", best["method"].encode()))
        if self.degraded is not None:
            headers.append((b"x-economizer-degraded", self.degraded.encode()))
        return headers + rate_headers(self.limits)

    def log_line(self) -> str:
        """What the log says of it: no prompt, no answer, no key."""
        usage, costs = self.usage, self.costs
        return to_json(
            {
                "time": round(self.created_s, 3),
                "event": "request",
                "request_id": self.id,
                "endpoint": self.endpoint,
                "model": self.decision.family,
                "variant": self.variant.name if self.variant else None,
                "replica": self.replica,
                "outcome": self.outcome,
                "status": self.status,
                "error": self.error,
                "attempts": len(self.attempts),
                "ttft_s": _rounded(self.ttft_s),
                "e2e_s": _rounded(self.e2e_s),
                "prompt_tokens": usage.prompt_tokens if usage else None,
                "output_tokens": usage.output_tokens if usage else None,
                "energy_j": _rounded(costs.energy_j) if costs else None,
                "cost_usd": costs.cost_usd if costs else None,
            }
        ).decode()

    def long(self) -> dict[str, Any]:
        """What ``GET /v1/receipts/{id}`` answers."""
        return {
            "id": self.id,
            "object": "economizer.receipt",
            "created": int(self.created_s),
            "endpoint": self.endpoint,
            "model": self.model,
            "stream": self.stream,
            "variant": self.variant.id if self.variant else None,
            "replica": self.replica,
            "outcome": self.outcome,
            "status": self.status,
            "error": self.error,
            "terms": to_builtins(self.terms),
            "decision": to_builtins(self.decision),
            "redecision": to_builtins(self.redecision) if self.redecision else None,
            "attempts": to_builtins(self.attempts),
            "actual": {
                "ttft_s": self.ttft_s,
                "tpot_s": self.tpot_s,
                "e2e_s": self.e2e_s,
                "usage": to_builtins(self.usage) if self.usage else None,
                **self._best(),
            },
            "full": {"variant": self.full.id, "method": ESTIMATE, **_costs(self.full_costs)} if self.full else None,
            "degraded": self.degraded,
            "arm": self.arm,
        }

    def booking(self) -> Booking:
        """What the books keep of it."""
        usage, decision = self.usage, self.last_decision
        predicted = None
        if self.variant is not None:
            predicted = decision.candidate(self.variant.name).prediction
        refused = [candidate for candidate in decision.candidates if candidate.refusals]
        return Booking(
            request_id=self.id,
            tenant=self.tenant,
            key_id=self.key_id,
            family=decision.family,
            variant=self.variant.name if self.variant else "",
            engine=self.replica or "",
            endpoint=self.endpoint,
            stream=self.stream,
            outcome=self.outcome,
            status=self.status,
            error=self.error,
            attempts=len(self.attempts),
            began_s=self.created_s,
            ended_s=self.created_s + (self.e2e_s or 0.0),
            ttft_s=self.ttft_s,
            tpot_s=self.tpot_s,
            prompt_tokens=usage.prompt_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            batch=self.batch if self.attempts else None,
            predicted_ttft_s=predicted.ttft_s.p50 if predicted and predicted.ttft_s else None,
            predicted_e2e_s=predicted.e2e_s.p50 if predicted and predicted.e2e_s else None,
            predicted_energy_uj=_micro(predicted.costs.energy_j) if predicted else None,
            predicted_cost_uusd=_micro(predicted.costs.cost_usd) if predicted else None,
            estimate=_estimated(self.costs),
            full=self._counterfactual(),
            arm=self.arm,
            degraded=self.degraded,
            policy=decision.policy,
            terms=_terms_json(self.terms),
            refusals=_refusals_json(refused) if refused else "{}",
        )

    def _counterfactual(self) -> Counterfactual | None:
        if self.full is None or self.full_costs is None:
            return None
        return Counterfactual(variant=self.full.name, amounts=_estimated(self.full_costs))


def _costs(costs: Costs | None) -> Mapping[str, float | None]:
    known = costs or UNKNOWN
    return {"energy_j": known.energy_j, "cost_usd": known.cost_usd, "carbon_g": known.carbon_g}


def rate_headers(verdict: Verdict | None) -> list[tuple[bytes, bytes]]:
    """OpenAI's ``x-ratelimit-*``, where the tenant has rate limits."""
    if verdict is None:
        return []
    headers = []
    for name, rate in ((b"requests", verdict.requests), (b"tokens", verdict.tokens)):
        if rate is not None:
            headers += [
                (b"x-ratelimit-limit-" + name, str(rate.limit).encode()),
                (b"x-ratelimit-remaining-" + name, str(rate.remaining).encode()),
                (b"x-ratelimit-reset-" + name, f"{rate.reset_s:.3f}s".encode()),
            ]
    return headers


@lru_cache(1000)
def _terms_json(terms: Terms) -> str:
    """Those that are set; most requests have the same."""
    return json.encode({name: value for name, value in asdict(terms).items() if value is not None}).decode()


def _refusals_json(candidates: Sequence[Candidate]) -> str:
    """By variant the names of the terms that it failed."""
    return json.encode({one.variant: [refusal.term for refusal in one.refusals] for one in candidates}).decode()


def _micro(value: float | None) -> int | None:
    return None if value is None else round(value * _MICRO)


def _estimated(costs: Costs | None) -> Amounts:
    known = costs or UNKNOWN
    return Amounts(energy_uj=_micro(known.energy_j), cost_uusd=_micro(known.cost_usd), carbon_ug=_micro(known.carbon_g))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


class ReceiptStore:
    """The latest receipts of this gateway, in memory."""

    def __init__(self, receipts_max: int) -> None:
        self._receipts: OrderedDict[str, Receipt] = OrderedDict()
        self._max = receipts_max

    def keep(self, receipt: Receipt) -> None:
        """Keep a receipt, dropping the oldest beyond the limit."""
        self._receipts[receipt.id] = receipt
        if len(self._receipts) > self._max:
            self._receipts.popitem(last=False)

    def get(self, receipt_id: str, caller: str) -> Receipt | None:
        """The receipt, if it is kept and belongs to this caller."""
        receipt = self._receipts.get(receipt_id)
        return receipt if receipt is not None and receipt.caller == caller else None


class RequestLog:
    """One line of JSON per request, written a batch at a time: a log record each costs as much CPU as deciding does."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, receipt: Receipt) -> None:
        """Note what the log says of a request that has ended."""
        self._lines.append(receipt.log_line())

    def add_refusal(self, request_id: str, endpoint: str, error: EconomizerError, now_s: float) -> None:
        """Note a request that was refused before anything was decided."""
        line = {"time": round(now_s, 3), "event": "request", "request_id": request_id, "endpoint": endpoint}
        self._lines.append(
            to_json({**line, "outcome": "refused", "status": error.status, "error": error.code or error.type}).decode()
        )

    def write(self) -> None:
        """Write what was noted since the last time."""
        if self._lines:
            lines, self._lines = self._lines, []
            logger.info("\n".join(lines))

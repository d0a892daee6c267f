"""Receipts: the decision and what really happened. Each answer has the short form; the long one is kept a while."""

from __future__ import annotations

import logging
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic_core import to_json

from economizer.errors import EconomizerError
from economizer.gateway.relay import Usage
from economizer.router.types import Decision, Terms
from economizer.variants.estimate import UNKNOWN, Costs, request_costs
from economizer.variants.types import Variant

logger = logging.getLogger("economizer.requests")
METHOD = "estimate"  # from the variant's cards; measured joules come with the meters


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One try at one replica, and why it failed, if it did."""

    variant: str
    replica: str
    error: str | None = None


@dataclass(kw_only=True, slots=True)
class Receipt:
    """One request from its arrival to its end. Filled in as the request goes on; read-only once kept.

    ``redecision`` is what was decided after the first engine failed.
    ``outcome`` is ok, engine_error, client_closed, refused or failed. Times in seconds from arrival.
    """

    id: str
    caller: str
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
            "method": METHOD,
            **_costs(self.costs),
            "full": {"variant": self.full.name, **_costs(self.full_costs)} if self.full else None,
        }
        if self.last_decision.missed:
            short["missed"] = [refusal.reason for refusal in self.last_decision.missed]
        return short

    def short_json(self) -> str:
        """The same as JSON."""
        return to_json(self.short()).decode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The response headers that every answer has; costs are in them once they are known."""
        name = self.variant.name if self.variant else ""
        headers = [(b"x-economizer-variant", name.encode()), (b"x-economizer-request-id", self.id.encode())]
        if self.costs is not None:
            for header, value in (
                (b"x-energy-joules", self.costs.energy_j),
                (b"x-cost-usd", self.costs.cost_usd),
                (b"x-carbon-gco2e", self.costs.carbon_g),
            ):
                if value is not None:
                    headers.append((header, f"{value:.6g}".encode()))
        return headers

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
            "terms": asdict(self.terms),
            "decision": asdict(self.decision),
            "redecision": asdict(self.redecision) if self.redecision else None,
            "attempts": [asdict(attempt) for attempt in self.attempts],
            "actual": {
                "ttft_s": self.ttft_s,
                "tpot_s": self.tpot_s,
                "e2e_s": self.e2e_s,
                "usage": asdict(self.usage) if self.usage else None,
                "method": METHOD,
                **_costs(self.costs),
            },
            "full": {"variant": self.full.id, "method": METHOD, **_costs(self.full_costs)} if self.full else None,
        }


def _costs(costs: Costs | None) -> Mapping[str, float | None]:
    known = costs or UNKNOWN
    return {"energy_j": known.energy_j, "cost_usd": known.cost_usd, "carbon_g": known.carbon_g}


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

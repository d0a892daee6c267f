"""Receipts of requests that this gateway no longer has, or cannot measure: from the books, in the same shape as far as
they know it."""

from __future__ import annotations

import json
from typing import Any

from economizer.gateway.receipts import ESTIMATE, Measured, amounts
from economizer.ledger.types import Booking, Counterfactual, RequestRow


def booked_receipt(row: RequestRow) -> dict[str, Any]:
    """What ``GET /v1/receipts/{id}`` answers of a request in the books.

    Of the decision they keep what was predicted of the chosen variant, and by which terms the others failed.
    """
    booking = row.booking
    measured = Measured(usage=row.usage, idle=row.idle, variance_uj2=row.variance_uj2, method=row.method or "")
    receipt: dict[str, Any] = {
        "id": row.request_id,
        "object": "economizer.receipt",
        "variant": f"{row.family}@{row.variant}" if row.variant else None,
        "outcome": booking.outcome if booking is not None else "unknown",
        "lost": amounts(row.lost),
    }
    if booking is None:
        return receipt | {"actual": measured.short()}
    return receipt | {
        "created": int(booking.began_s),
        "endpoint": booking.endpoint,
        "stream": booking.stream,
        "replica": booking.engine or None,
        "status": booking.status,
        "error": booking.error,
        "terms": json.loads(booking.terms),
        "decision": _decision(row, booking),
        "prediction_error": _prediction_error(row, booking),
        "attempts": booking.attempts,
        "actual": _actual(row, booking, measured),
        "full": _full(row.family, booking.full) if booking.full is not None else None,
        "degraded": booking.degraded,
        "arm": booking.arm,
    }


def _decision(row: RequestRow, booking: Booking) -> dict[str, Any]:
    return {
        "family": row.family,
        "policy": booking.policy,
        "variant": row.variant or None,
        "refused": json.loads(booking.refusals),
        "predicted": {
            "ttft_s": booking.predicted_ttft_s,
            "e2e_s": booking.predicted_e2e_s,
            "energy_j": _whole(booking.predicted_energy_uj),
            "cost_usd": _whole(booking.predicted_cost_uusd),
        },
    }


def _prediction_error(row: RequestRow, booking: Booking) -> dict[str, float | None]:
    return {
        "ttft": _error(booking.predicted_ttft_s, booking.ttft_s),
        "e2e": _error(booking.predicted_e2e_s, booking.ended_s - booking.began_s),
        "energy": _error(booking.predicted_energy_uj, row.usage.energy_uj),
        "cost": _error(booking.predicted_cost_uusd, row.usage.cost_uusd),
    }


def _actual(row: RequestRow, booking: Booking, measured: Measured) -> dict[str, Any]:
    """What it took: measured beside the estimate, or the estimate alone where no window of it is settled."""
    estimate = amounts(booking.estimate)
    return {
        "ttft_s": booking.ttft_s,
        "tpot_s": booking.tpot_s,
        "e2e_s": booking.ended_s - booking.began_s,
        "usage": {
            "prompt_tokens": booking.prompt_tokens,
            "output_tokens": booking.output_tokens,
            "cached_tokens": booking.cached_tokens,
        },
        **({**measured.short(), "estimate": estimate} if row.method else {"method": ESTIMATE, **estimate}),
    }


def _full(family: str, full: Counterfactual) -> dict[str, Any]:
    return {
        "variant": f"{family}@{full.variant}",
        **amounts(full.amounts),
        "energy_j_low": _whole(full.low_uj),
        "energy_j_high": _whole(full.high_uj),
        "cost_usd_low": _whole(full.low_uusd),
        "cost_usd_high": _whole(full.high_uusd),
    }


def _whole(micro: int | None) -> float | None:
    return None if micro is None else micro / 1e6


def _error(predicted: float | None, actual: float | None) -> float | None:
    """How far the prediction was off, relative to the actual; positive is too high. None where either is unknown."""
    return None if predicted is None or not actual else (predicted - actual) / actual

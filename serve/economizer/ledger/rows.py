"""Rows and the words of the books, one from the other. Pure."""

from __future__ import annotations

from typing import Any

from msgspec.structs import asdict
from sqlalchemy import RowMapping

from economizer.admission.keys import KeyRecord
from economizer.energy.types import UJ_PER_J, Measurement, Window
from economizer.ledger.schema import AMOUNTS, HOUR_S
from economizer.ledger.types import (
    UNKNOWN,
    Account,
    AccountRow,
    Amounts,
    Booking,
    Counterfactual,
    MeterRow,
    RequestRow,
    Settled,
)

_BOOKING = tuple(name for name in Booking.__struct_fields__ if name not in ("estimate", "full"))
_FULL = ("low_uj", "high_uj", "low_uusd", "high_uusd")
_MOST = 10**16  # of whatever one request counts: 10 GJ, and hundreds of them still add up in 64 bits


def hour_of(moment_s: float) -> int:
    """Hours since the epoch."""
    return int(moment_s // HOUR_S)


def amounts_row(amounts: Amounts, prefix: str = "") -> dict[str, Any]:
    """Three columns."""
    return {f"{prefix}{name}": getattr(amounts, name) for name in AMOUNTS}


def amounts_of(row: RowMapping, prefix: str = "") -> Amounts:
    """Sums come as decimals from PostgreSQL."""
    return Amounts(**{name: None if row[prefix + name] is None else int(row[prefix + name]) for name in AMOUNTS})


def booking_row(booking: Booking) -> dict[str, Any]:
    """The columns of a request that are its booking's."""
    row = asdict(booking)
    full = row.pop("full")
    row |= amounts_row(row.pop("estimate"), "estimate_")
    row["full_variant"] = None if full is None else full.variant
    row |= amounts_row(UNKNOWN if full is None else full.amounts, "full_")
    for name in _FULL:
        row[f"full_{name}"] = getattr(full, name, None)
    return {name: storable(value) for name, value in row.items()}


def storable(value: Any) -> Any:
    """A text without what PostgreSQL (NUL) and UTF-8 (half a surrogate pair) cannot hold, a number that can be one
    request's or None; anything else as it is.

    Callers and engines choose some of them: one character or count of theirs must not keep a whole batch out of the
    books.
    """
    if isinstance(value, int):
        return value if 0 <= value <= _MOST else None
    if not isinstance(value, str) or (value.isascii() and "\0" not in value):
        return value
    return value.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def request_of(row: RowMapping) -> RequestRow:
    """A request, with its booking where that is there."""
    return RequestRow(
        request_id=row["request_id"],
        tenant=row["tenant"],
        family=row["family"],
        variant=row["variant"],
        booking=_booking_of(row) if row["booked"] else None,
        usage=amounts_of(row, "usage_"),
        idle=amounts_of(row, "idle_"),
        lost=amounts_of(row, "lost_"),
        variance_uj2=max(0.0, row["variance_uj2"]),  # what was taken back may differ from what was put in the last bit
        method=row["method"],
    )


def _booking_of(row: RowMapping) -> Booking:
    full = None
    if row["full_variant"] is not None:
        ends = {name: row[f"full_{name}"] for name in _FULL}
        full = Counterfactual(variant=row["full_variant"], amounts=amounts_of(row, "full_"), **ends)
    return Booking(**{name: row[name] for name in _BOOKING}, estimate=amounts_of(row, "estimate_"), full=full)


def window_row(settled: Settled, epoch: str) -> dict[str, Any]:
    """A window, its measurement and its total, as the bookkeeper ``epoch`` split it."""
    window, measurement = settled.window, settled.window.measurement
    return {
        **{name: getattr(window, name) for name in ("engine", "number", "variant", "began_s", "ended_s", "state")},
        **{name: getattr(window, name) for name in ("last", "steps", "prefill_tokens", "decode_tokens")},
        **{name: getattr(measurement, name) for name in ("seconds", "idle_uj", "method", "uncertainty")},
        "measured_uj": measurement.energy_uj,
        "note": storable(measurement.note),
        **amounts_row(settled.total),
        "epoch": epoch,
    }


def window_of(row: RowMapping) -> Window:
    """A window as its meter told it."""
    return Window(
        **{name: row[name] for name in ("engine", "number", "variant", "began_s", "ended_s", "state", "last")},
        **{name: row[name] for name in ("steps", "prefill_tokens", "decode_tokens")},
        measurement=Measurement(
            energy_uj=row["measured_uj"],
            **{name: row[name] for name in ("seconds", "idle_uj", "method", "uncertainty", "note")},
        ),
    )


def account_of(row: RowMapping) -> AccountRow:
    """One account and its sums."""
    return AccountRow(
        account=Account(
            hour=row["hour"], tenant=row["tenant"], family=row["family"], variant=row["variant"], kind=row["kind"]
        ),
        amounts=amounts_of(row),
        requests=row["requests"],
        prompt_tokens=row["prompt_tokens"],
        cached_tokens=row["cached_tokens"],
        output_tokens=row["output_tokens"],
    )


def meter_of(row: RowMapping) -> MeterRow:
    """One engine's hour."""
    return MeterRow(
        hour=row["hour"],
        engine=row["engine"],
        family=row["family"],
        variant=row["variant"],
        method=row["method"],
        windows=row["windows"],
        seconds=row["metered_us"] / UJ_PER_J,
        unmeasured_s=row["unmeasured_us"] / UJ_PER_J,
        gaps=row["gaps"],
        total=Amounts(energy_uj=row["measured_uj"], cost_uusd=row["cost_uusd"], carbon_ug=row["carbon_ug"]),
    )


def key_of(row: RowMapping) -> KeyRecord:
    """One key."""
    return KeyRecord(**row)

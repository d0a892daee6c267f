"""How a batch gets into the tables: summed up first, so that each row is touched once.

The caller holds the only writing transaction, so what is read here stays true.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Table, case, func, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from economizer.energy.types import UJ_PER_J
from economizer.ledger.rows import amounts_row, booking_row, hour_of, storable, window_row
from economizer.ledger.schema import (
    ACCOUNTS,
    AMOUNTS,
    BATCHES,
    COEFFICIENTS,
    COUNTS,
    META,
    METERS,
    REQUESTS,
    WINDOWS,
)
from economizer.ledger.types import UNKNOWN, Account, Amounts, Batch, Booking, Moved, Settled, Share, plus, postings_of

Insert = postgresql.Insert | sqlite.Insert

_REQUEST_SUMS = (*(f"{part}_{name}" for part in ("usage", "idle", "lost") for name in AMOUNTS), "variance_uj2")
_ACCOUNT_KEY = ("hour", "tenant", "family", "variant", "kind")
_METER_SUMS = ("windows", "gaps", "metered_us", "unmeasured_us", "measured_uj", "cost_uusd", "carbon_ug")
_IN_MAX = 1000  # values in one IN; PostgreSQL and SQLite take some 32,000


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What a batch changed. ``repeated`` says that it was there already, as a whole; windows and bookings that were
    there are not counted."""

    repeated: bool = False
    windows: int = 0
    bookings: int = 0


def write_batch(connection: Connection, batch: Batch, written_s: float) -> Written:
    """Write what is not there yet."""
    if connection.scalar(select(BATCHES.c.id).where(BATCHES.c.id == batch.id)) is not None:
        return Written(repeated=True)
    connection.execute(upsert(connection, BATCHES), {"id": batch.id, "written_s": written_s})
    settled = _new_windows(connection, batch.settled)
    bookings = _new_bookings(connection, batch.bookings)
    if settled:
        connection.execute(upsert(connection, WINDOWS), [window_row(one, batch.epoch) for one in settled])
        _write_meters(connection, settled)
    moved = _moved(connection, batch)
    _write_accounts(connection, settled, moved, bookings)
    _write_requests(connection, settled, moved, bookings)
    if batch.coefficients:
        insert = upsert(connection, COEFFICIENTS)
        connection.execute(
            insert.on_conflict_do_update(index_elements=["key"], set_={"numbers": insert.excluded["numbers"]}),
            [{"key": key, "numbers": list(numbers)} for key, numbers in sorted(batch.coefficients.items())],
        )
    return Written(windows=len(settled), bookings=len(bookings))


def upsert(connection: Connection, table: Table) -> Insert:
    """An INSERT that may say ON CONFLICT."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def count_up(connection: Connection, name: str) -> None:
    """Add one to a counter."""
    connection.execute(_adding(upsert(connection, META), ("name",), ("number",)), {"name": name, "number": 1})


def _adding(insert: Insert, key: Sequence[str], sums: Iterable[str], **replaced: Any) -> Insert:
    """Where the row is there, add to it: unknown and known are known."""
    old, new = insert.table.c, insert.excluded
    added = {name: func.coalesce(old[name] + new[name], old[name], new[name]) for name in sums}
    return insert.on_conflict_do_update(index_elements=list(key), set_={**added, **replaced})


def _new_windows(connection: Connection, batch: Sequence[Settled]) -> list[Settled]:
    found = {(one.window.engine, one.window.number): one for one in reversed(batch)}
    key = tuple_(WINDOWS.c.engine, WINDOWS.c.number)
    for some in _by(_IN_MAX, list(found)):
        for engine, number in connection.execute(select(WINDOWS.c.engine, WINDOWS.c.number).where(key.in_(some))):
            del found[engine, number]
    return list(found.values())


def _new_bookings(connection: Connection, batch: Sequence[Booking]) -> list[dict[str, Any]]:
    found = {row["request_id"]: row for row in map(booking_row, reversed(batch))}
    key: Column[str] = REQUESTS.c.request_id
    for some in _by(_IN_MAX, list(found)):
        for request_id in connection.scalars(select(key).where(key.in_(some), REQUESTS.c.booked)):
            del found[request_id]
    return list(found.values())


def _moved(connection: Connection, batch: Batch) -> list[Moved]:
    """What is to be moved to ``lost``: what was charged by windows that this epoch wrote. Where another bookkeeper had
    written a window before, its shares are in the books, and those here are not."""
    parts = [part for transfer in batch.transfers for part in transfer.parts]
    key = tuple_(WINDOWS.c.engine, WINDOWS.c.number)
    own: set[tuple[str, int]] = set()
    for some in _by(_IN_MAX, list({(part.engine, part.number) for part in parts})):
        statement = select(WINDOWS.c.engine, WINDOWS.c.number).where(key.in_(some), WINDOWS.c.epoch == batch.epoch)
        own |= {(engine, number) for engine, number in connection.execute(statement)}
    return [part for part in parts if (part.engine, part.number) in own]


def _by(size: int, keys: list[Any]) -> Iterable[list[Any]]:
    return (keys[at : at + size] for at in range(0, len(keys), size))


def _write_meters(connection: Connection, settled: Iterable[Settled]) -> None:
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for one in settled:
        new = _meter_row(one)
        row = rows.setdefault((new["hour"], new["engine"]), new)
        if row is not new:
            row |= {name: plus(row[name], new[name]) for name in _METER_SUMS}
            if new["measured_uj"] is not None:
                row["method"] = new["method"]
    insert = upsert(connection, METERS)
    # A span that nothing measured does not take away the name of the meter that measures the others.
    method = case((insert.excluded.measured_uj.is_(None), METERS.c.method), else_=insert.excluded.method)
    statement = _adding(insert, ("hour", "engine"), _METER_SUMS, method=method)
    connection.execute(statement, [rows[key] for key in sorted(rows)])


def _meter_row(settled: Settled) -> dict[str, Any]:
    window, measurement = settled.window, settled.window.measurement
    family, _, variant = window.variant.partition("@")
    metered_us = round(measurement.seconds * UJ_PER_J)
    return {
        "hour": hour_of(window.ended_s),
        "engine": window.engine,
        "family": family,
        "variant": variant,
        "method": measurement.method,
        "windows": 1,
        "gaps": int(window.state == "gap"),
        "metered_us": metered_us,
        "unmeasured_us": metered_us if measurement.energy_uj is None else 0,
        "measured_uj": measurement.energy_uj,
        "cost_uusd": settled.total.cost_uusd,
        "carbon_ug": settled.total.carbon_ug,
    }


def _write_accounts(
    connection: Connection, settled: Iterable[Settled], moved: Iterable[Moved], bookings: Iterable[dict[str, Any]]
) -> None:
    rows: dict[tuple[int, str, str, str, str], dict[str, Any]] = {}

    def row_of(*key: Any) -> dict[str, Any]:
        if key not in rows:
            rows[key] = {
                **dict(zip(_ACCOUNT_KEY, key, strict=True)),
                **dict.fromkeys(COUNTS, 0),
                **amounts_row(UNKNOWN),
            }
        return rows[key]

    for posting in postings_of(settled, moved):
        row = row_of(*_account_key(posting.account))
        row |= {name: plus(row[name], getattr(posting.amounts, name)) for name in AMOUNTS}
    for booking in bookings:
        if booking["attempts"]:
            row = row_of(
                hour_of(booking["ended_s"]), booking["tenant"], booking["family"], booking["variant"], "active"
            )
            row["requests"] += 1
            for name in COUNTS[1:]:
                row[name] += booking[name] or 0
    if rows:
        statement = _adding(upsert(connection, ACCOUNTS), _ACCOUNT_KEY, (*AMOUNTS, *COUNTS))
        connection.execute(statement, [rows[key] for key in sorted(rows)])


def _account_key(account: Account) -> tuple[int, str, str, str, str]:
    return account.hour, storable(account.tenant), account.family, account.variant, account.kind


@dataclass(slots=True)
class _Charged:
    """What a batch charges to one request."""

    family: str = ""
    variant: str = ""
    ended_s: float = 0.0
    usage: Amounts = UNKNOWN
    idle: Amounts = UNKNOWN
    lost: Amounts = UNKNOWN
    variance_uj2: float = 0.0
    method: str | None = None

    def row(self) -> dict[str, Any]:
        """Its columns."""
        return {
            **amounts_row(self.usage, "usage_"),
            **amounts_row(self.idle, "idle_"),
            **amounts_row(self.lost, "lost_"),
            "variance_uj2": self.variance_uj2,
            "method": self.method,
        }


def _write_requests(
    connection: Connection, settled: Iterable[Settled], moved: Iterable[Moved], bookings: list[dict[str, Any]]
) -> None:
    charged = _charged(settled, moved)
    none = _Charged().row()
    booked = [
        {**booking, "booked": True, **(charge.row() if (charge := charged.pop(booking["request_id"], None)) else none)}
        for booking in bookings
    ]
    unbooked = [
        {
            "request_id": request_id,
            "tenant": "",
            "family": charge.family,
            "variant": charge.variant,
            "ended_s": charge.ended_s,
            "booked": False,
            **charge.row(),
        }
        for request_id, charge in charged.items()
    ]
    insert = upsert(connection, REQUESTS)
    method = func.coalesce(insert.excluded.method, REQUESTS.c.method)
    if booked:
        names = [name for name in booked[0] if name not in {"request_id", "method", *_REQUEST_SUMS}]
        fields = {name: insert.excluded[name] for name in names}
        connection.execute(_adding(insert, ("request_id",), _REQUEST_SUMS, method=method, **fields), booked)
    if unbooked:
        later_s = case(
            (REQUESTS.c.booked | (REQUESTS.c.ended_s > insert.excluded.ended_s), REQUESTS.c.ended_s),
            else_=insert.excluded.ended_s,
        )
        statement = _adding(insert, ("request_id",), _REQUEST_SUMS, method=method, ended_s=later_s)
        connection.execute(statement, unbooked)


def _charged(settled: Iterable[Settled], moved: Iterable[Moved]) -> dict[str, _Charged]:
    """By request: shares of new windows, less those that a transfer takes back."""
    found: dict[str, _Charged] = {}
    for one in settled:
        family, _, variant = one.window.variant.partition("@")
        for share in one.shares:
            charge = found.setdefault(storable(share.request_id), _Charged())
            charge.family, charge.variant = family, variant
            charge.ended_s = max(charge.ended_s, one.window.ended_s)
            _charge(charge, share.usage, share.idle, share.variance_uj2, share)
    for part in moved:
        share = part.share
        charge = found.setdefault(storable(share.request_id), _Charged())
        _charge(charge, -share.usage, -share.idle, -share.variance_uj2, share)
        charge.lost += share.usage
    return found


def _charge(charge: _Charged, usage: Amounts, idle: Amounts, variance_uj2: float, share: Share) -> None:
    charge.usage += usage
    charge.idle += idle
    charge.variance_uj2 += variance_uj2
    charge.method = share.method

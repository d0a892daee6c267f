"""The ledger on disk: what is written once and never changed, and what is read out of it.

One bookkeeper writes batches; people add and revoke keys, from other processes too, and anyone may read meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Table,
    delete,
    exists,
    func,
    insert,
    select,
    tuple_,
    update,
)

from economizer.admission.keys import KeyRecord
from economizer.energy.types import Window
from economizer.ledger.database import Database, LedgerRefused, LedgerUnreachable, LedgerUnusable
from economizer.ledger.rows import account_of, amounts_of, hour_of, key_of, meter_of, request_of, window_of
from economizer.ledger.schema import (
    ACCOUNTS,
    AMOUNTS,
    API_KEYS,
    BATCHES,
    COEFFICIENTS,
    HOUR_S,
    META,
    METERS,
    REQUESTS,
    WINDOWS,
)
from economizer.ledger.types import GAPS_FROM, AccountRow, Amounts, Batch, MeterRow, RequestRow
from economizer.ledger.writing import Written, count_up, write_batch

__all__ = ["Closing", "LedgerRefused", "LedgerUnreachable", "LedgerUnusable", "Store", "Written"]

_KEYS_VERSION = "keys_version"
_PAGE = 1000
_PRUNED_AT_ONCE = 10_000  # rows; a tenth of a second


@dataclass(frozen=True, kw_only=True, slots=True)
class Closing:
    """What the accounts add up to, and what the meters and the price list do."""

    accounts: Amounts
    meters: Amounts

    @property
    def closes(self) -> bool:
        """Every joule, dollar and gram is in exactly one account."""
        return self.accounts == self.meters


class Store:
    """An open ledger, which threads may share.

    Every method raises :class:`LedgerUnusable` where something is wrong with the database. Of its two kinds,
    :class:`LedgerUnreachable` says that the same may work later, with this same object, and :class:`LedgerRefused` that
    the values are at fault.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    @classmethod
    def open(cls, url: str, *, clock: Callable[[], float] = time.time) -> Store:
        """Open the ledger at ``sqlite:///FILE`` or ``postgresql://...``, and make or migrate its tables.

        ``clock`` gives seconds since the epoch. Raises LedgerUnusable for other URLs, and for a database that a newer
        Economizer has migrated.
        """
        with ExitStack() as undo:
            database = Database(url)
            undo.callback(database.close)
            database.upgrade()
            undo.pop_all()
        return cls(database, clock)

    def close(self) -> None:
        """Give up all connections."""
        self._database.close()

    def write(self, batch: Batch) -> Written:
        """Write a batch whole or not at all; it is on disk when this returns.

        What is there already changes nothing: the batch, or a window or a booking of it. Where this raises, the batch
        may be there all the same (the connection broke while it was committed), and can be written again.
        """
        with self._database.writing() as connection:
            return write_batch(connection, batch, self._clock())

    def accounts(self, since_s: float, until_s: float) -> list[AccountRow]:
        """All accounts of the hours that lie in the span, whole or in part."""
        return self.statement(since_s, until_s)[0]

    def meters(self, since_s: float, until_s: float) -> list[MeterRow]:
        """All engines' hours that lie in the span, whole or in part."""
        return self.statement(since_s, until_s)[1]

    def close_check(self, since_s: float, until_s: float) -> Closing:
        """Whether the accounts of these hours add up to what the meters measured and the price list charged."""
        charged = dict(zip(AMOUNTS, ("measured_uj", "cost_uusd", "carbon_ug"), strict=True))
        posted = select(*(func.sum(ACCOUNTS.c[name]).label(name) for name in AMOUNTS))
        metered = select(*(func.sum(METERS.c[column]).label(name) for name, column in charged.items()))
        with self._database.reading() as connection:
            accounts = connection.execute(posted.where(*_hours(ACCOUNTS, since_s, until_s))).mappings().one()
            meters = connection.execute(metered.where(*_hours(METERS, since_s, until_s))).mappings().one()
        return Closing(accounts=amounts_of(accounts), meters=amounts_of(meters))

    def spent(self, since_s: float, tenants: Collection[str] | None = None) -> dict[str, Amounts]:
        """By tenant, what was charged to its requests since the beginning of that hour; tenants without any are left
        out."""
        sums = [func.sum(ACCOUNTS.c[name]).label(name) for name in AMOUNTS]
        statement = select(ACCOUNTS.c.tenant, *sums).group_by(ACCOUNTS.c.tenant)
        statement = statement.where(ACCOUNTS.c.hour >= hour_of(since_s), ACCOUNTS.c.kind == "active")
        if tenants is not None:
            statement = statement.where(ACCOUNTS.c.tenant.in_(list(tenants)))
        with self._database.reading() as connection:
            return {row["tenant"]: amounts_of(row) for row in connection.execute(statement).mappings()}

    def request(self, request_id: str, tenant: str | None = None) -> RequestRow | None:
        """One request, or None where it is not there or, with ``tenant``, not this tenant's."""
        statement = select(REQUESTS).where(REQUESTS.c.request_id == request_id)
        if tenant is not None:
            statement = statement.where(REQUESTS.c.tenant == tenant)
        with self._database.reading() as connection:
            row = connection.execute(statement).mappings().one_or_none()
        return None if row is None else request_of(row)

    def requests(
        self, since_s: float, until_s: float, *, tenant: str | None = None, family: str | None = None
    ) -> Iterator[RequestRow]:
        """The requests that ended in the span, in the order of their ends, from some pages read one after another.

        One that is not booked counts as ended with its last window.
        """
        key = tuple_(REQUESTS.c.ended_s, REQUESTS.c.request_id)
        statement = select(REQUESTS).order_by(REQUESTS.c.ended_s, REQUESTS.c.request_id).limit(_PAGE)
        statement = statement.where(REQUESTS.c.ended_s < until_s)
        if tenant is not None:
            statement = statement.where(REQUESTS.c.tenant == tenant)
        if family is not None:
            statement = statement.where(REQUESTS.c.family == family)
        page = statement.where(REQUESTS.c.ended_s >= since_s)
        while True:
            with self._database.reading() as connection:
                rows = connection.execute(page).mappings().all()
            yield from map(request_of, rows)
            if len(rows) < _PAGE:
                return
            page = statement.where(key > (rows[-1]["ended_s"], rows[-1]["request_id"]))

    def unfinished(self) -> list[Window]:
        """The latest window of every engine that lives, or died without a last one and without a gap to show it."""
        metered = WINDOWS.c.number < GAPS_FROM
        latest = select(WINDOWS.c.engine, func.max(WINDOWS.c.number)).where(metered).group_by(WINDOWS.c.engine)
        gap = WINDOWS.alias()
        seen = exists().where(gap.c.engine == WINDOWS.c.engine, gap.c.number == WINDOWS.c.number + GAPS_FROM)
        place = tuple_(WINDOWS.c.engine, WINDOWS.c.number)
        statement = select(WINDOWS).where(place.in_(latest), WINDOWS.c.last.is_(False), ~seen)
        with self._database.reading() as connection:
            return [window_of(row) for row in connection.execute(statement).mappings()]

    def statement(self, since_s: float, until_s: float) -> tuple[list[AccountRow], list[MeterRow]]:
        """Accounts and meters of the hours in the span, as of one moment: what is booked meanwhile is in neither."""
        with self._database.reading() as connection:
            accounts = _rows_of_hours(connection, ACCOUNTS, since_s, until_s)
            meters = _rows_of_hours(connection, METERS, since_s, until_s)
        return [account_of(row) for row in accounts], [meter_of(row) for row in meters]

    def coefficients(self) -> dict[str, tuple[float, ...]]:
        """What was learnt, as it was last written."""
        with self._database.reading() as connection:
            rows = connection.execute(select(COEFFICIENTS)).mappings()
            return {row["key"]: tuple(map(float, row["numbers"])) for row in rows}

    def prune(self, before_s: float) -> None:
        """Forget windows and requests that ended before, and batches written before. The sums stay.

        A batch of before then would be counted again, so what is spooled is to be written first. Others may write in
        between.
        """
        for table, moment in ((WINDOWS, "ended_s"), (REQUESTS, "ended_s"), (BATCHES, "written_s")):
            old = select(*table.primary_key).where(table.c[moment] < before_s).limit(_PRUNED_AT_ONCE)
            statement = delete(table).where(tuple_(*table.primary_key).in_(old))
            pruned = _PRUNED_AT_ONCE
            while pruned == _PRUNED_AT_ONCE:
                with self._database.writing() as connection:
                    pruned = connection.execute(statement).rowcount

    def add_key(self, key: KeyRecord, *, replaced: KeyRecord | None = None) -> None:
        """Keep a new key, and with it the end of the one that it replaces.

        Raises:
            LedgerRefused: where its id or hash is there already, or the replaced key was revoked or replaced meanwhile.
        """
        with self._database.writing() as connection:
            connection.execute(insert(API_KEYS), {column.name: getattr(key, column.name) for column in API_KEYS.c})
            if replaced is not None:
                open_key = API_KEYS.c.replaced_by.is_(None) & API_KEYS.c.revoked_s.is_(None)
                ending = update(API_KEYS).where(API_KEYS.c.id == replaced.id, open_key)
                values = {"expires_s": replaced.expires_s, "replaced_by": key.id}
                if not connection.execute(ending.values(values)).rowcount:
                    raise LedgerRefused(f"The key {replaced.id} is not there, or was revoked or replaced meanwhile.")
            count_up(connection, _KEYS_VERSION)

    def keys(self, include_revoked: bool = False) -> list[KeyRecord]:
        """All keys, the oldest first."""
        statement = select(API_KEYS).order_by(API_KEYS.c.created_s, API_KEYS.c.id)
        if not include_revoked:
            statement = statement.where(API_KEYS.c.revoked_s.is_(None))
        with self._database.reading() as connection:
            return [key_of(row) for row in connection.execute(statement).mappings()]

    def revoke_key(self, key_id: str, at_s: float) -> bool:
        """Revoke a key; False where there is none, or it was revoked before."""
        with self._database.writing() as connection:
            statement = update(API_KEYS).where(API_KEYS.c.id == key_id, API_KEYS.c.revoked_s.is_(None))
            revoked = connection.execute(statement.values(revoked_s=at_s)).rowcount == 1
            if revoked:
                count_up(connection, _KEYS_VERSION)
        return revoked

    def keys_version(self) -> int:
        """A number that grows with every change of the keys, 0 before the first."""
        with self._database.reading() as connection:
            return connection.scalar(select(META.c.number).where(META.c.name == _KEYS_VERSION)) or 0


def _rows_of_hours(connection: Connection, table: Table, since_s: float, until_s: float) -> list[RowMapping]:
    statement = select(table).where(*_hours(table, since_s, until_s)).order_by(*table.primary_key)
    return list(connection.execute(statement).mappings())


def _hours(table: Table, since_s: float, until_s: float) -> tuple[ColumnElement[bool], ...]:
    return table.c.hour >= hour_of(since_s), table.c.hour < ceil(until_s / HOUR_S)

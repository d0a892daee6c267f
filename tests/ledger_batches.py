"""Batches for the ledger's tests, and what they come to, summed up in the plainest way.

python ledger_batches.py write URL SEED COUNT      writes a stream, says each batch's number once it is written
python ledger_batches.py spool FOLDER SEED COUNT   the same into a spool
python ledger_batches.py open URL                  opens the ledger
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from economizer.energy.types import Measurement, Window
from economizer.ledger.spool import Spool
from economizer.ledger.store import Store
from economizer.ledger.types import (
    NOBODY,
    UNKNOWN,
    Account,
    AccountRow,
    Amounts,
    Batch,
    Booking,
    Kind,
    Moved,
    Posting,
    Settled,
    Share,
    Transfer,
)

HOUR_S = 3600.0
FAMILY, VARIANT = "boiler", "int8"
_TENANTS = ("acme", "globex", "initech")


def booking(request_id: str = "request-1", **changes: Any) -> Booking:
    """A request of acme that ended half an hour after the epoch."""
    values: dict[str, Any] = {
        "request_id": request_id,
        "tenant": "acme",
        "family": FAMILY,
        "variant": VARIANT,
        "engine": "engine-1",
        "endpoint": "/v1/chat/completions",
        "outcome": "ok",
        "status": 200,
        "attempts": 1,
        "began_s": 1798.5,
        "ended_s": 1800.25,
        "prompt_tokens": 30,
        "cached_tokens": 10,
        "output_tokens": 7,
    }
    return Booking(**(values | changes))


def amounts(energy_uj: int | None, cost_uusd: int | None = None, carbon_ug: int | None = None) -> Amounts:
    return Amounts(energy_uj=energy_uj, cost_uusd=cost_uusd, carbon_ug=carbon_ug)


def share(request_id: str = "request-1", usage: Amounts = UNKNOWN, idle: Amounts = UNKNOWN, **changes: Any) -> Share:
    values: dict[str, Any] = {"attempt": 0, "variance_uj2": 0.25, "method": "replay"}
    return Share(request_id=request_id, usage=usage, idle=idle, **(values | changes))


def posting(what: Amounts, kind: Kind = "active", tenant: str = "acme", hour: int = 0) -> Posting:
    account = Account(hour=hour, tenant=tenant, family=FAMILY, variant=VARIANT, kind=kind)
    return Posting(account=account, amounts=what)


def settled(
    number: int = 0,
    *,
    engine: str = "engine-1",
    ended_s: float = 1800.0,
    postings: tuple[Posting, ...] = (),
    shares: tuple[Share, ...] = (),
    **changes: Any,
) -> Settled:
    """A window of two seconds whose meter measured what its postings add up to."""
    total = sum((one.amounts for one in postings), UNKNOWN)
    measurement = Measurement(
        seconds=2.0, energy_uj=total.energy_uj, method="none" if total.energy_uj is None else "replay"
    )
    window = Window(
        engine=engine,
        number=number,
        variant=f"{FAMILY}@{VARIANT}",
        began_s=ended_s - 2,
        ended_s=ended_s,
        measurement=measurement,
        **changes,
    )
    return Settled(window=window, total=total, postings=postings, shares=shares)


def small_bill(began_s: int, idle_uj: int = 800_000) -> Batch:
    """One window of 1 J and 20 micro-dollars in m@int8, from the 10th second on: 0.2 J and 4 micro-dollars are acme's,
    the rest idle; and acme's one request."""
    window = Window(
        engine="e1",
        number=0,
        variant="m@int8",
        began_s=began_s + 10,
        ended_s=began_s + 11,
        measurement=Measurement(seconds=1.0, energy_uj=1_000_000, idle_uj=800_000, method="rapl"),
    )

    def put(tenant: str, kind: Kind, energy_uj: int, cost_uusd: int) -> Posting:
        account = Account(hour=int(began_s // HOUR_S), tenant=tenant, family="m", variant="int8", kind=kind)
        return Posting(account=account, amounts=amounts(energy_uj, cost_uusd))

    one = Settled(
        window=window,
        total=amounts(1_000_000, 20),
        postings=(put("acme", "active", 200_000, 4), put(NOBODY, "idle", idle_uj, 16)),
        shares=(),
    )
    request = Booking(
        request_id="r1",
        tenant="acme",
        family="m",
        variant="int8",
        endpoint="/v1/chat/completions",
        outcome="ok",
        attempts=1,
        began_s=began_s + 10,
        ended_s=began_s + 11,
        prompt_tokens=8,
        cached_tokens=4,
        output_tokens=4,
    )
    return Batch(id="b1", settled=(one,), bookings=(request,))


def stream(seed: int, count: int) -> Iterator[Batch]:
    """Batches as a bookkeeper writes them, over some hours: windows, then the bookings of the requests in them, and
    transfers of attempts that failed."""
    random = Random(seed)
    for number in range(count):
        ended_s = 600.0 * number + 1.5
        windows, bookings, transfers = [], [], []
        for engine in ("engine-1", "engine-2"):
            ids = [f"{seed}-{engine}-{number}-{at}" for at in range(random.randrange(4))]
            tenants = {request_id: random.choice(_TENANTS) for request_id in ids}
            measured = random.random() < 0.8
            shares = tuple(share(request_id, _some(random, measured), _some(random, measured)) for request_id in ids)
            hour = int(ended_s // HOUR_S)
            active = [posting(one.usage, "active", tenants[one.request_id], hour) for one in shares]
            idle = posting(_some(random, measured), "idle", NOBODY, hour)
            windows.append(settled(number, engine=engine, ended_s=ended_s, postings=(*active, idle), shares=shares))
            bookings += [booking(one, tenant=tenants[one], began_s=ended_s - 1, ended_s=ended_s) for one in ids]
            for one in shares:
                if random.random() < 0.2:
                    account = posting(UNKNOWN, "active", tenants[one.request_id], hour).account
                    moved = Moved(engine=engine, number=number, account=account, share=one)
                    transfers.append(Transfer(request_id=one.request_id, attempt=0, parts=(moved,)))
        yield Batch(
            id=f"{seed}-{number}",
            settled=tuple(windows),
            bookings=tuple(bookings),
            transfers=tuple(transfers),
            coefficients={f"{FAMILY}@{VARIANT}|replay": (0.1 * number, 1.0)},
        )


def _some(random: Random, measured: bool) -> Amounts:
    energy_uj = random.randrange(10**15) if measured else None
    return amounts(energy_uj, random.randrange(1000), None if random.random() < 0.3 else random.randrange(1000))


def account_rows(batches: Iterable[Batch]) -> list[AccountRow]:
    """What the accounts come to with each of these batches counted once, in the order of the accounts."""
    found: dict[Account, dict[str, Any]] = {}

    def row(account: Account) -> dict[str, Any]:
        counts = ("requests", "prompt_tokens", "cached_tokens", "output_tokens")
        return found.setdefault(account, {"amounts": UNKNOWN, **dict.fromkeys(counts, 0)})

    for batch in batches:
        moved = [each for transfer in batch.transfers for each in transfer.postings]
        for each in [*(each for window in batch.settled for each in window.postings), *moved]:
            row(each.account)["amounts"] += each.amounts
        for each_booking in batch.bookings:
            hour = int(each_booking.ended_s // HOUR_S)
            mine = row(posting(UNKNOWN, "active", each_booking.tenant, hour).account)
            mine["requests"] += 1
            for name in ("prompt_tokens", "cached_tokens", "output_tokens"):
                mine[name] += getattr(each_booking, name)
    order = sorted(found, key=lambda one: (one.hour, one.tenant, one.family, one.variant, one.kind))
    return [AccountRow(account=account, **found[account]) for account in order]


def charges(batches: Iterable[Batch]) -> dict[str, tuple[Amounts, Amounts, Amounts]]:
    """By request what is charged to it as usage and as idle, and what it lost."""
    found: dict[str, tuple[Amounts, Amounts, Amounts]] = {}
    for batch in batches:
        for one in (one for window in batch.settled for one in window.shares):
            usage, idle, lost = found.get(one.request_id, (UNKNOWN, UNKNOWN, UNKNOWN))
            found[one.request_id] = (usage + one.usage, idle + one.idle, lost)
        for one in (part.share for transfer in batch.transfers for part in transfer.parts):
            usage, idle, lost = found.get(one.request_id, (UNKNOWN, UNKNOWN, UNKNOWN))
            found[one.request_id] = (usage + -one.usage, idle + -one.idle, lost + one.usage)
    return found


def _say_each(keep: Callable[[Batch], object], seed: int, count: int) -> None:
    for number, batch in enumerate(stream(seed, count)):
        keep(batch)
        print(number, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        _say_each(Store.open(sys.argv[2]).write, int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1] == "spool":
        _say_each(Spool(Path(sys.argv[2]), bytes_max=10**9).append, int(sys.argv[3]), int(sys.argv[4]))
    else:
        Store.open(sys.argv[2]).close()

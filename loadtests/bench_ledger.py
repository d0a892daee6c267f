"""What it takes to keep the books: bookings come at a steady rate, and a writer writes a batch each half second.

::

    python loadtests/bench_ledger.py [--url URL] [--seconds 20] [--rate 1000]

Without a URL the ledger is SQLite in a temporary folder on this disk; a ledger that is given grows by what is written.
Arrivals do not wait for the writer (open loop). Each booking has one share, in a window that ends when it does. The
last line is the result as JSON; CPU is this process's writing alone, so a PostgreSQL server's own comes on top.
"""

from __future__ import annotations

import argparse
import json
import secrets
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from economizer.energy.types import Measurement, Window
from economizer.ledger.store import Store
from economizer.ledger.types import (
    Account,
    Amounts,
    Batch,
    Booking,
    Counterfactual,
    Posting,
    Settled,
    Share,
)

_WRITE_S = 0.5
_ARRIVAL_S = 0.01
_TENANTS, _ENGINES = 20, 4
_FAMILY, _VARIANT = "boiler-8b", "int8"
_TERMS = json.dumps({"ttft_s_max": 0.5, "quality_min": 0.9})


@dataclass(slots=True)
class Run:
    """What waits, and what was measured on the way."""

    arrived: list[tuple[float, Booking]] = field(default_factory=list)
    ended: bool = False
    queue: list[int] = field(default_factory=list)
    durable_s: list[float] = field(default_factory=list)
    write_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    rows: int = 0


def main(words: Sequence[str] | None = None) -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--url")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=1000.0, help="bookings per second")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="eco-ledger-") as folder:
        store = Store.open(args.url or f"sqlite:///{Path(folder) / 'ledger.db'}")
        run = _run(store, args.rate, args.seconds)
        store.close()
    _write(run, args.rate, args.seconds, "postgresql" if args.url and args.url.startswith("postgres") else "sqlite")


def _run(store: Store, rate: float, seconds: float) -> Run:
    run = Run()
    writer = threading.Thread(target=_keep_writing, args=(store, run))
    writer.start()
    began_s, sent = time.monotonic(), 0
    while (passed_s := time.monotonic() - began_s) < seconds:
        due = int(passed_s * rate)
        run.arrived += [(time.monotonic(), _booking(number)) for number in range(sent, due)]
        sent = due
        time.sleep(_ARRIVAL_S)
    run.ended = True
    writer.join()
    return run


def _keep_writing(store: Store, run: Run) -> None:
    run_id, number = secrets.token_hex(6), 0
    while not run.ended or run.arrived:
        time.sleep(_WRITE_S)
        arrived, run.arrived = run.arrived, []
        run.queue.append(len(arrived))
        batch = _batch(run_id, number, [booking for _, booking in arrived])
        began_s, cpu_s = time.monotonic(), time.thread_time()
        store.write(batch)
        now_s = time.monotonic()
        run.cpu_s += time.thread_time() - cpu_s
        run.write_s.append(now_s - began_s)
        run.durable_s += [now_s - arrived_s for arrived_s, _ in arrived]
        run.rows += len(arrived) + 2 * len(batch.settled) + sum(len(one.postings) for one in batch.settled) + 1
        number += 1


def _booking(number: int) -> Booking:
    now_s = time.time()
    return Booking(
        request_id=secrets.token_hex(16),
        tenant=f"tenant-{number % _TENANTS}",
        key_id="0123456789ab",
        family=_FAMILY,
        variant=_VARIANT,
        engine=f"engine-{number % _ENGINES}",
        endpoint="/v1/chat/completions",
        outcome="ok",
        status=200,
        attempts=1,
        began_s=now_s - 2,
        ended_s=now_s,
        ttft_s=0.21,
        tpot_s=0.03,
        prompt_tokens=700,
        cached_tokens=500,
        output_tokens=60,
        batch=7.5,
        predicted_ttft_s=0.2,
        predicted_e2e_s=2.1,
        predicted_energy_uj=12_000_000,
        predicted_cost_uusd=90,
        estimate=Amounts(energy_uj=11_000_000, cost_uusd=80, carbon_ug=900),
        full=Counterfactual(variant="bf16", amounts=Amounts(energy_uj=30_000_000, cost_uusd=200, carbon_ug=2_500)),
        policy="cheap",
        terms=_TERMS,
    )


def _batch(run_id: str, number: int, bookings: Sequence[Booking]) -> Batch:
    by_engine: dict[str, list[Booking]] = {}
    for booking in bookings:
        by_engine.setdefault(booking.engine, []).append(booking)
    settled = tuple(_settled(f"{run_id}-{engine}", number, theirs) for engine, theirs in sorted(by_engine.items()))
    return Batch(id=f"{run_id}-{number}", settled=settled, bookings=tuple(bookings))


def _settled(engine: str, number: int, bookings: Sequence[Booking]) -> Settled:
    ended_s = max(booking.ended_s for booking in bookings)
    usage, idle = Amounts(energy_uj=10_000_000, cost_uusd=70, carbon_ug=800), Amounts(energy_uj=1_000, cost_uusd=1)
    posted: dict[Account, Amounts] = {}
    for booking in bookings:
        account = Account(
            hour=int(ended_s // 3600), tenant=booking.tenant, family=_FAMILY, variant=_VARIANT, kind="active"
        )
        posted[account] = posted.get(account, Amounts()) + usage
    total = sum(posted.values(), Amounts())
    return Settled(
        window=Window(
            engine=engine,
            number=number,
            variant=f"{_FAMILY}@{_VARIANT}",
            began_s=ended_s - _WRITE_S,
            ended_s=ended_s,
            measurement=Measurement(seconds=_WRITE_S, energy_uj=total.energy_uj, method="replay"),
        ),
        total=total,
        postings=tuple(Posting(account=account, amounts=amounts) for account, amounts in posted.items()),
        shares=tuple(
            Share(request_id=one.request_id, attempt=0, usage=usage, idle=idle, variance_uj2=1e9, method="replay")
            for one in bookings
        ),
    )


def _write(run: Run, rate: float, seconds: float, database: str) -> None:
    durable_s, write_s, booked = sorted(run.durable_s), sorted(run.write_s), len(run.durable_s)
    print(f"{booked} bookings in {seconds:g} s; waiting when a batch was drawn:")
    print("  " + " ".join(map(str, run.queue)))
    print(
        json.dumps(
            {
                "database": database,
                "rate_per_s": rate,
                "bookings": booked,
                "rows_per_s": round(run.rows / seconds),
                "queue_first": run.queue[1],
                "queue_last": run.queue[-2],
                "queue_max": max(run.queue),
                "durable_p50_ms": round(durable_s[booked // 2] * 1e3),
                "durable_p99_ms": round(durable_s[int(0.99 * booked)] * 1e3),
                "write_p50_ms": round(write_s[len(write_s) // 2] * 1e3, 1),
                "write_max_ms": round(write_s[-1] * 1e3, 1),
                "cpu_us_per_booking": round(run.cpu_s / booked * 1e6, 1),
            }
        )
    )


if __name__ == "__main__":
    main()

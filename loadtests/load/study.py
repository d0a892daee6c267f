"""The runs of a comparison, kept in a folder: what is there is not run again, and what was cut short is.

::

    settings.json      what all runs have in common; another study is refused the folder
    capacity.json      what the full model answers while it is full, and the load that comes of it
    runs/NAME/         outcomes.jsonl, meter.json (for report.py), run.json (readings of the meter)
    quality.json       the variants' quality on the replay's prompts
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from economizer.ledger.bill import MICRO, Bill
from economizer.ledger.store import Store

from load import results
from load.fleets import Fleet
from load.meters import FleetMeter
from load.plan import Plan
from load.progress import Progress
from load.run import Meter, Spent
from load.savings import Bill as Own
from load.savings import Measured, Ran
from load.sending import Target, replay
from load.spending import Machine, spending
from load.types import Outcome

_SETTLED_S = 6.0  # after the last answer everything is booked
_Kind = TypeVar("_Kind")


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


class Folder:
    """A study's files. Raises ValueError where the folder is another study's, or none."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = dict(settings)
        file = path / "settings.json"
        if not file.exists() and path.exists() and any(path.iterdir()):
            raise ValueError(f"--out {path}: must be a new folder, or one of an earlier start of this benchmark")
        (path / "runs").mkdir(parents=True, exist_ok=True)
        if file.exists():
            there = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
            ours = msgspec.to_builtins(self._settings)
            if other := sorted(name for name in there.keys() | ours.keys() if there.get(name) != ours.get(name)):
                told = ", ".join(f"{name} {there.get(name)!r}, now {ours.get(name)!r}" for name in other)
                raise ValueError(f"--out {path} holds runs with {told}: give the same, or another folder")
        else:
            self.keep("settings.json", self._settings)

    def keep(self, name: str, what: Any) -> None:
        """Write a file whole."""
        partial = self.path / f"{name}.partial"
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(what), indent=1))
        partial.replace(self.path / name)

    def kept(self, name: str, kind: type[_Kind]) -> _Kind | None:
        """What a file holds; None where it is not there."""
        file = self.path / name
        return msgspec.json.decode(file.read_bytes(), type=kind) if file.exists() else None

    def has(self, name: str) -> bool:
        """Whether a run is there, whole."""
        return (self.path / "runs" / name).is_dir()

    def runs(self) -> list[Measured]:
        """All that are there, by name."""
        found = []
        for folder in sorted((self.path / "runs").iterdir()):
            if (folder / "run.json").exists() and not folder.name.startswith("."):
                ran = msgspec.json.decode((folder / "run.json").read_bytes(), type=Ran)
                found.append(Measured(ran=ran, outcomes=results.read(folder).outcomes))
        return found

    def run(self, name: str, fleet: Fleet, plan: Plan, warm_up: Plan, machine: Machine, ran: Mapping[str, Any]) -> None:
        """Warm a fleet up, then send it the plan and keep what came of it; what is cut short leaves nothing.

        ``ran`` are the fields of :class:`Ran` that say which run it is.
        """
        asyncio.run(self._send(fleet, warm_up, f"{name} warm-up"))
        before = _bill(fleet)
        kept, partial = self.path / "runs" / name, self.path / "runs" / f".{name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        header = results.header(
            "bench_savings", plan.requests, settings=self._settings | {"run": name}, facts=plan.facts
        )
        meter = FleetMeter(fleet.roots, engine=fleet.engine)
        with results.Writer(partial / results.JSONL, header) as writer:
            outcomes = asyncio.run(self._send(fleet, plan, name, writer))
        done = Ran(
            **ran,
            began=header.began,
            planned=len(plan.requests),
            readings=meter.end(),
            bill=_since(before, _bill(fleet)),
        )
        (partial / "run.json").write_bytes(msgspec.json.encode(done))
        (partial / "meter.json").write_bytes(msgspec.json.encode(_meter(done, machine)))
        partial.rename(kept)
        say(f"  {sum(one.answered for one in outcomes)} of {len(outcomes)} requests answered")

    async def _send(self, fleet: Fleet, plan: Plan, name: str, writer: results.Writer | None = None) -> list[Outcome]:
        # The salt keeps an engine from finding the prompts of an earlier run in its prefix cache.
        target = Target(urls=fleet.urls, key=fleet.key, extra={"cache_salt": name})
        progress = Progress(plan.requests)
        showing = asyncio.create_task(progress.show())

        def ended(outcome: Outcome) -> None:
            progress.ended(outcome)
            if writer is not None:
                writer.write(outcome)

        try:
            return await replay(plan.requests, target, on_sent=progress.sent, on_outcome=ended)
        finally:
            showing.cancel()


def _bill(fleet: Fleet) -> Bill | None:
    """The books of the hours around now, once all is booked; None of a fleet without."""
    if fleet.ledger is None:
        return None
    time.sleep(_SETTLED_S)
    now_s = time.time()
    store = Store.open(fleet.ledger)
    try:
        since_s = now_s - 4 * 3600
        accounts, meters = store.statement(since_s, now_s)
    finally:
        store.close()
    return Bill.of(accounts, meters, int(since_s), int(now_s))


def _since(before: Bill | None, after: Bill | None) -> Own | None:
    """What was booked between two looks into the same books."""
    if before is None or after is None:
        return None

    def grown(basis: str, amount: str) -> float | None:
        first, last = (getattr(getattr(bill.total, basis), amount) for bill in (before, after))
        return None if last is None else (last - (first or 0)) / MICRO

    return Own(
        energy_j=grown("usage", "energy_uj"),
        with_idle_j=grown("with_idle", "energy_uj"),
        cost_usd=grown("usage", "cost_uusd"),
        with_idle_usd=grown("with_idle", "cost_uusd"),
        closes=after.closes,
    )


def _meter(ran: Ran, machine: Machine) -> Meter:
    spent = spending(ran.readings, machine, ran.gateway_cores)
    return Meter(
        source=f"CPU time of the fleet's processes over {spent.seconds:.0f} s, {machine.active_w:g} W a working core "
        f"and {machine.idle_w:g} W a waiting one ({machine.source})",
        usage=Spent(energy_j=spent.usage_j or None, cost_usd=spent.usage_usd or None),
        allocation=Spent(energy_j=spent.allocation_j or None, cost_usd=spent.allocation_usd or None),
    )


def of(runs: Sequence[Measured], **which: object) -> list[Measured]:
    """The runs whose record has these values."""
    return [run for run in runs if all(getattr(run.ran, name) == value for name, value in which.items())]

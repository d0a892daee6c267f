"""Processes of a whole fleet are killed hard under load: what was answered is booked once, and the bill closes."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from economizer.ledger.store import Store
from economizer.ledger.types import RequestRow
from fleet import Fleet, configuration, exists, until, variant
from replies import Caller, soon

EVER_S = 4e9
WATTS = 10
BURN = ("--burn-s-per-token", "0.002")
ENGINES = 4
LEDGER, GATEWAY = "ServeReplica:economizer:ledger", "ServeReplica:economizer:gateway"
FAMILIES = {
    "plain": {"full": "one", "variants": {"one": variant(*BURN)}},
    "swift": {"full": "one", "variants": {"one": variant()}},
    "pair": {"full": "a", "policy": "cheap", "variants": {"a": variant(*BURN), "b": variant(*BURN, hardware="gpu")}},
}


def fleet_of_its_own(folder: Path, **admission: Any) -> Fleet:
    """Up to its start. The same folder is the same ledger."""
    content = configuration(FAMILIES)
    arguments = content["applications"][0]["args"]
    arguments["ledger"] = {"meter": {"kind": "cpu", "watts_per_core": WATTS, "watts_per_core_idle": 0}}
    arguments["admission"] = admission
    fleet = Fleet(folder / "fleet.yaml", content)
    try:
        fleet.wait_until_ready()
    except BaseException:
        fleet.kill()
        raise
    return fleet


@pytest.fixture(scope="module")
def doomed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One fleet that loses one process after the other, and is killed whole at the end."""
    fleet = fleet_of_its_own(tmp_path_factory.mktemp("doomed"))
    yield fleet
    end_hard(fleet)


def end_hard(fleet: Fleet) -> None:
    """SIGKILL to every process of it at once."""
    below = fleet.processes()
    fleet.kill()
    for pid in below:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not [pid for pid in below if exists(pid)], 30)


def process_of(fleet: Fleet, title: str) -> int:
    """The one process that Ray has named so."""
    (found,) = (pid for pid in fleet.processes() if title.encode() in Path(f"/proc/{pid}/cmdline").read_bytes())
    return found


async def another(fleet: Fleet, title: str, old: int) -> None:
    """Serve has started another in its place."""

    def started() -> bool:
        try:
            return process_of(fleet, title) != old
        except (ValueError, OSError):
            return False

    await soon(started, 60)


class Asking:
    """Callers that go on asking, and note when each answer came and what was none."""

    def __init__(self, caller: Caller, model: str, workers: int = 4) -> None:
        self.answered: dict[str, float] = {}
        self.failures: list[str] = []
        self.caller = caller
        self._model = model
        self._going = True
        self._workers = [asyncio.create_task(self._ask(stream=number % 2 == 0)) for number in range(workers)]

    async def stop(self) -> None:
        """Everyone gets the last answer."""
        self._going = False
        await asyncio.gather(*self._workers)

    async def _ask(self, *, stream: bool) -> None:
        while self._going:
            try:
                reply = await self.caller.chat(self._model, stream=stream, fake={"tokens": 20, "tpot_s": 0.005})
            except Exception as error:  # noqa: BLE001 - whatever it is, it is noted
                self.failures.append(repr(error))
                await asyncio.sleep(0.1)
                continue
            if reply.status == 200 and (not stream or reply.body.endswith(b"data: [DONE]\n\n")):
                self.answered[reply.receipt_id] = time.monotonic()
            else:
                self.failures.append(f"{reply.status} {reply.body[-200:]!r}")
                await asyncio.sleep(0.1)


@asynccontextmanager
async def asking(fleet: Fleet, model: str) -> AsyncIterator[Asking]:
    async with fleet.caller() as caller:
        load = Asking(caller, model)
        try:
            yield load
        finally:
            await load.stop()


def rows_of(fleet: Fleet) -> dict[str, RequestRow]:
    """The requests that are booked."""
    store = Store.open(f"sqlite:///{fleet.ledger}")
    rows = {row.request_id: row for row in store.requests(0, EVER_S) if row.booking is not None}
    store.close()
    return rows


def spent_uj(fleet: Fleet, kind: str, variant_id: str) -> int:
    """The energy in a variant's accounts of a kind."""
    store = Store.open(f"sqlite:///{fleet.ledger}")
    accounts = [row for row in store.accounts(0, EVER_S) if row.account.kind == kind]
    store.close()
    return sum(
        row.amounts.energy_uj or 0 for row in accounts if f"{row.account.family}@{row.account.variant}" == variant_id
    )


def bill(fleet: Fleet) -> dict[str, Any]:
    """The totals of ``economizer bill``, which must close."""
    said = fleet.economizer("bill", str(fleet.file), "--since", "24h", "--json")
    assert said.returncode == 0, said.stderr
    totals: dict[str, Any] = json.loads(said.stdout)["totals"]
    return totals


def metered_uj(fleet: Fleet, variant_id: str) -> int:
    """What the meters of a variant's engines have measured."""
    store = Store.open(f"sqlite:///{fleet.ledger}")
    meters = store.meters(0, EVER_S)
    store.close()
    return sum(row.total.energy_uj or 0 for row in meters if f"{row.family}@{row.variant}" == variant_id)


def cpu_s(pid: int) -> float:
    """The CPU time that a process has used itself."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def unbooked(fleet: Fleet, request_ids: Collection[str], within_s: float) -> set[str]:
    """Those of the requests that are not booked after so long."""
    deadline_s = time.monotonic() + within_s
    missing = set(request_ids)
    while missing and time.monotonic() < deadline_s:
        await asyncio.sleep(0.25)
        missing -= rows_of(fleet).keys()
    return missing


async def test_while_the_bookkeeper_is_killed_requests_go_on_and_each_is_booked_once(doomed: Fleet) -> None:
    async with asking(doomed, "plain") as load:
        await soon(lambda: len(load.answered) > 20)
        bookkeeper = process_of(doomed, LEDGER)
        os.kill(bookkeeper, signal.SIGKILL)
        await another(doomed, LEDGER, bookkeeper)
        await asyncio.sleep(2)
    assert load.failures == []
    assert len(await unbooked(doomed, load.answered, 20)) == 0
    totals = bill(doomed)
    assert (totals["requests"], totals["gaps"]) == (len(rows_of(doomed)), 0)
    assert spent_uj(doomed, "unclaimed", "plain@one") == 0


async def test_a_killed_gateway_takes_along_what_it_had_not_told_yet_and_nothing_older(doomed: Fleet) -> None:
    async with asking(doomed, "plain") as load:
        await soon(lambda: len(load.answered) > 20)
        gateway = process_of(doomed, GATEWAY)
        async with load.caller.streamed("swift", fake={"tokens": 10_000, "tpot_s": 0.001}) as stream:
            await anext(stream.events())
            killed_s = time.monotonic()
            os.kill(gateway, signal.SIGSTOP)  # it tells nothing from here on, and the engine goes on
            await asyncio.sleep(1)
            os.kill(gateway, signal.SIGKILL)
        await another(doomed, GATEWAY, gateway)
        await soon(lambda: max(load.answered.values()) > killed_s + 2, 60)
    missing = await unbooked(doomed, load.answered, 4)
    ages_s = sorted(killed_s - load.answered[request_id] for request_id in missing)
    assert all(0 <= age_s < 1.0 for age_s in ages_s)
    assert spent_uj(doomed, "unclaimed", "swift@one") > 0
    assert bill(doomed)["gaps"] == 0


async def test_of_a_killed_engine_no_energy_is_lost_and_only_the_second_attempt_is_charged(doomed: Fleet) -> None:
    async with doomed.caller() as caller:
        assert (await caller.until_served("pair@a")).status == 200
        assert (await caller.until_served("pair@b")).status == 200
        (engine,) = doomed.engines("pair@a")
        whole = asyncio.create_task(caller.chat("pair", fake={"tokens": 200, "tpot_s": 0.02}))
        async with caller.streamed("pair@a", fake={"tokens": 500, "tpot_s": 0.02}) as stream:
            events = stream.events()
            for _ in range(60):
                await anext(events)
            used_s = cpu_s(engine.pid)
            os.kill(engine.pid, signal.SIGKILL)
            last = [event async for event in events][-1]
        reply = await whole
        assert '"code": "engine_failed"' in last
        assert (reply.status, reply.variant) == (200, "b")
        await caller.until_served("pair@a")
    assert await unbooked(doomed, {reply.receipt_id, stream.receipt_id}, 10) == set()
    await asyncio.sleep(2.5)  # until its last window is settled
    rows = rows_of(doomed)
    retried, broken = rows[reply.receipt_id], rows[stream.receipt_id]
    assert retried.variant == "b"
    assert (retried.usage.energy_uj or 0) > 0
    assert (retried.lost.energy_uj or 0) > 0
    assert ((broken.usage.energy_uj or 0), (broken.lost.energy_uj or 0) > 0) == (0, True)
    assert metered_uj(doomed, "pair@a") >= WATTS * used_s * 1e6
    assert bill(doomed)["gaps"] == 0
    assert spent_uj(doomed, "lost", "pair@a") >= (retried.lost.energy_uj or 0) + (broken.lost.energy_uj or 0)


async def test_requests_go_on_while_the_bookkeeper_answers_nobody(doomed: Fleet) -> None:
    bookkeeper = process_of(doomed, LEDGER)
    async with asking(doomed, "plain") as load:
        os.kill(bookkeeper, signal.SIGSTOP)
        try:
            await asyncio.sleep(7)
        finally:
            os.kill(bookkeeper, signal.SIGCONT)
    assert load.failures == []
    assert len(await unbooked(doomed, load.answered, 20)) == 0
    assert bill(doomed)["requests"] == len(rows_of(doomed))


async def requests_are_refused_while_the_bookkeeper_answers_nobody(fleet: Fleet) -> None:
    async with fleet.caller() as caller:
        assert (await caller.chat("plain")).status == 200
        bookkeeper = process_of(fleet, LEDGER)
        os.kill(bookkeeper, signal.SIGSTOP)
        try:
            await asyncio.sleep(7)
            reply = await caller.chat("plain")
        finally:
            os.kill(bookkeeper, signal.SIGCONT)
        assert (reply.status, reply.error["code"]) == (503, "ledger_unavailable")
        assert int(reply.headers["retry-after"]) >= 1
        answer = await caller.until_served("plain")
    assert await unbooked(fleet, {answer.receipt_id}, 10) == set()


async def test_a_fleet_that_is_killed_whole_loses_a_second_and_the_next_one_goes_on_with_its_ledger(
    doomed: Fleet,
) -> None:
    async with asking(doomed, "plain") as load:
        await soon(lambda: len(load.answered) > 20)
        await asyncio.sleep(2)
        killed_s = time.monotonic()
        end_hard(doomed)
    missing = set(load.answered) - rows_of(doomed).keys()
    ages_s = sorted(killed_s - load.answered[request_id] for request_id in missing)
    assert all(age_s < 2.0 for age_s in ages_s)
    assert bill(doomed)["gaps"] == 0

    fleet = fleet_of_its_own(doomed.file.parent, on_ledger_gone="refuse")
    try:
        await soon(lambda: bill(fleet)["gaps"] == ENGINES, 30)
        await requests_are_refused_while_the_bookkeeper_answers_nobody(fleet)
        assert bill(fleet)["gaps"] == ENGINES
        assert fleet.end() == (0, [])
    finally:
        fleet.kill()

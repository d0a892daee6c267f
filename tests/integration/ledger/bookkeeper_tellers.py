"""Who tells a bookkeeper: gateways with real reporters, and engines that are really metered, with random energies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from time import monotonic, time
from typing import Protocol, cast

from bookkeeper_process import VARIANT
from economizer.energy.meter import CountingMeter, Used
from economizer.energy.types import Window
from economizer.engine.metering import Metering
from economizer.engine.process import EngineProcess
from economizer.engine.scrape import EngineLoad
from economizer.gateway.receipts import Attempt, Receipt, new_request_id
from economizer.gateway.relay import Usage
from economizer.gateway.reporting import Ledger, Reporter
from economizer.gateway.work import AttemptWork
from economizer.ledger.bookkeeper import Reply, Seen
from economizer.ledger.store import Store
from economizer.ledger.types import Report
from economizer.router.types import Candidate, Decision, Prediction, Terms
from economizer.variants.estimate import UNKNOWN

_REPORT_S = 0.05
_WINDOW_S = 0.2
_DECISION = Decision(
    family=VARIANT.family,
    policy="cheap",
    variant=VARIANT.name,
    ranking=(VARIANT.name,),
    candidates=(
        Candidate(
            variant=VARIANT.name,
            prediction=Prediction(ttft_s=None, tpot_s=None, e2e_s=None, output_tokens=9.0, costs=UNKNOWN, quality=None),
            score=0.0,
        ),
    ),
)


class Told(Protocol):
    """A bookkeeper, as those call it who tell it something."""

    async def report(self, report: Report, seen: Seen) -> Reply: ...

    async def windows(self, engine: str, windows: Sequence[Window]) -> int: ...


class TellingGateway:
    """A gateway without callers: requests are made up here, and told by a real Reporter."""

    def __init__(self, told: Told, seed: int, engines: Sequence[str]) -> None:
        self.ended: list[Receipt] = []
        self.keys_known = False
        self._alive = True
        self._told = told
        self._random = Random(seed)
        self._engines = engines
        self.acknowledged = -1
        self._sent = 0
        self.reporter = Reporter(
            cast(Ledger, self),
            period_s=_REPORT_S,
            on_keys=self._know_keys,
            on_prices=lambda prices: None,
            on_posted=lambda posted: None,
        )
        self.reporter.start()

    def _know_keys(self, keys: object) -> None:
        self.keys_known = True

    async def report(self, report: Report, seen: Seen) -> Reply:
        """To the bookkeeper, noting what it acknowledges."""
        if not self._alive:
            await asyncio.Event().wait()
        self._sent = max(self._sent, report.number)
        reply = await self._told.report(report, seen)
        self.acknowledged = max(self.acknowledged, reply.acknowledged)
        return reply

    async def ask(self, for_s: float) -> None:
        """Some requests at once, one after the other each, for so long."""
        until_s = monotonic() + for_s
        await asyncio.gather(*(self._ask_until(until_s) for _ in range(3)))

    def kill(self) -> None:
        """It says nothing more."""
        self._alive = False

    async def until_acknowledged(self) -> None:
        """Everything that was told up to now is on disk."""
        await asyncio.sleep(2 * _REPORT_S)
        sent = self._sent
        await until(lambda: self.acknowledged >= sent)

    async def _ask_until(self, until_s: float) -> None:
        while monotonic() < until_s:
            await self.request(self._random.uniform(0.02, 0.3))

    async def request(self, lasts_s: float, *, lost: bool = False) -> Receipt:
        """One request that takes so long."""
        engine = self._random.choice(self._engines)
        tokens = self._random.randrange(1, 200)
        receipt, work = self.begin(engine, tokens)
        await asyncio.sleep(lasts_s)
        receipt.settle(Usage(prompt_tokens=100, output_tokens=tokens))
        work.end(monotonic(), receipt.usage, lost=lost)
        receipt.ended("failed" if lost else "ok", status=200)
        receipt.e2e_s = lasts_s
        self.reporter.ended(receipt)
        self.ended.append(receipt)
        return receipt

    def begin(self, engine: str, tokens: int) -> tuple[Receipt, AttemptWork]:
        """An attempt is sent to its engine."""
        receipt = Receipt(
            id=new_request_id(),
            caller="",
            tenant=self._random.choice(("acme", "globex")),
            key_id="",
            created_s=time(),
            endpoint="chat",
            model=VARIANT.family,
            stream=False,
            terms=Terms(),
            decision=_DECISION,
            variant=VARIANT,
            replica=engine,
            attempts=[Attempt(variant=VARIANT.name, replica=engine)],
        )
        work = AttemptWork(
            request_id=receipt.id,
            attempt=0,
            tenant=receipt.tenant,
            family=VARIANT.family,
            variant=VARIANT.name,
            engine=engine,
            sent_s=monotonic(),
            prompt_tokens=100.0,
            streamed=False,
            output_tokens_max=tokens,
            ttft_s=0.02,
            tpot_s=0.01,
        )
        self.reporter.begin(work, receipt)
        return receipt, work


@dataclass
class _Running:
    """As much of an engine's process as metering looks at."""

    state: str = "ready"
    last_load: EngineLoad = EngineLoad(decode_tokens=0)  # noqa: RUF009 - it is frozen


class MeteredEngine:
    """An engine that uses energy at random, metered for real."""

    def __init__(self, told: Told, name: str, seed: int) -> None:
        self.name = name
        self.process = _Running()
        self._alive = True
        self._told = told
        self._counter = _RandomCounter(seed)
        self.on_disk = self._read = -1
        self._metering = Metering(
            CountingMeter(self._counter),
            cast(EngineProcess, self.process),
            replica=name,
            variant=VARIANT.id,
            send=self._send,
        )
        self._metering.start(_WINDOW_S)

    @property
    def used_uj(self) -> int:
        """What it has used up to its latest window."""
        return self._counter.stands_uj - self._counter.first_uj

    async def _send(self, engine: str, windows: Sequence[Window]) -> int:
        if not self._alive:
            await asyncio.Event().wait()
        self._read = windows[-1].number if windows else self._read
        self.on_disk = await self._told.windows(engine, windows)
        return self.on_disk

    async def until_acknowledged(self) -> None:
        """All its windows are on disk; for an engine that is closed, nobody sends anything again."""
        while self.on_disk < self._read:
            self.on_disk = await self._told.windows(self.name, ())
            await asyncio.sleep(0.05)

    def kill(self) -> None:
        """It ends with its replica."""
        self._alive = False

    async def close(self) -> None:
        """It ends, with a last window."""
        await self._metering.close()


class _RandomCounter:
    method = "replay"
    tick_s = 0.0

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self.first_uj = self.stands_uj = 0

    def read(self) -> int:
        self.stands_uj += self._random.randrange(10**7)
        self.first_uj = self.first_uj or self.stands_uj
        return self.stands_uj

    def used(self, before: int, after: int, seconds: float) -> Used:
        return Used(energy_uj=after - before, idle_uj=(after - before) // 5, uncertainty=0.0)

    def describe(self) -> str:
        return "random energies"

    def close(self) -> None:
        pass


async def until(holds: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Poll until something holds."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)


async def end_well(gateways: Sequence[TellingGateway], engines: Sequence[MeteredEngine]) -> None:
    """All tell everything, and hear that it is on disk: requests first, since windows place what was told of them."""
    await asyncio.gather(*(gateway.until_acknowledged() for gateway in gateways))
    await asyncio.gather(*(engine.close() for engine in engines))
    await asyncio.gather(*(engine.until_acknowledged() for engine in engines))
    await asyncio.gather(*(gateway.reporter.stop() for gateway in gateways))


def hours() -> tuple[float, float]:
    """All hours in which a test may have run, with a clock that is an hour wrong."""
    return time() - 7200, time() + 7200


def assert_booked_once(url: str, gateways: Sequence[TellingGateway], engines: Sequence[MeteredEngine]) -> None:
    """Every request is booked and charged, every microjoule is in the books once, and they close."""
    store = Store.open(url)
    rows = {row.request_id: row for row in store.requests(*hours()) if row.booking is not None}
    ended = [receipt.id for gateway in gateways for receipt in gateway.ended]
    meters = store.meters(*hours())
    assert len(set(ended) - rows.keys()) == 0, f"{len(ended)} requests ended"
    assert [request_id for request_id, row in rows.items() if row.usage.energy_uj is None] == []
    assert sum(row.requests for row in store.accounts(*hours())) == len(ended)
    assert sum(row.total.energy_uj or 0 for row in meters) == sum(engine.used_uj for engine in engines)
    assert sum(row.gaps for row in meters) == 0
    assert store.close_check(*hours()).closes
    store.close()

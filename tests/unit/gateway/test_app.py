"""What the gateway says of a request whose bookkeeper died: what the books say, or the estimate."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import httpx
import pytest
from economizer.config import parse
from economizer.errors import LedgerGone
from economizer.gateway.app import App
from economizer.gateway.fleet import Choice
from economizer.gateway.receipts import Receipt
from economizer.gateway.relay import Usage
from economizer.gateway.reporting import Ledger, Reporter
from economizer.gateway.state import Gateway
from economizer.gateway.work import AttemptWork
from economizer.ledger.bookkeeper import Reply, Seen
from economizer.ledger.types import Amounts, Charge, Report, RequestRow
from examples import receipt
from msgspec.structs import replace

ARGS: dict[str, Any] = {
    "prices": {"cpu": {"usd_per_hour": 0.1, "source": "made up"}},
    "families": {
        "m": {
            "full": "full",
            "variants": {"full": {"engine": {"command": ["x"]}, "context_tokens_max": 4096, "hardware": "cpu"}},
        }
    },
    "ledger": {"report_s": 0.05},
}
METHOD = "cpu-time-model"
USAGE = Usage(prompt_tokens=128, output_tokens=9)
ESTIMATE_J = 25.0


class Nobody:
    """No replica is ever there."""

    def choose_now(self, variant_id: str, choice: Choice) -> str | None:
        return None

    async def choose(self, variant_id: str, choice: Choice) -> str:
        raise NotImplementedError


class Script:
    """A ledger that charges what it is told to, with the next report, and adds to its books only what is ``written``.
    Another ``epoch`` is another bookkeeper, which goes by the books and what it is told again."""

    def __init__(self) -> None:
        self.epoch = "one"
        self.acknowledges = False
        self.reports: list[Report] = []
        self.rows: dict[str, RequestRow] = {}
        self.away = False
        self._charges: list[Charge] = []
        self._written: list[Charge] = []

    async def report(self, report: Report, seen: Seen) -> Reply:
        self.reports.append(report)
        charges, self._charges = tuple(self._charges), []
        return Reply(
            epoch=self.epoch,
            acknowledged=report.number if self.acknowledges else -1,
            charges=charges,
            posted=(),
            seen=Seen(epoch=self.epoch),
            keys=None,
            prices=None,
            well=True,
        )

    async def request(self, request_id: str) -> RequestRow | None:
        if self.away:
            raise LedgerGone("away")
        return self.rows.get(request_id)

    def charge(self, request_id: str, joules: int, *, written: bool, final: bool = False) -> None:
        amounts = Amounts(energy_uj=joules * 1_000_000)
        charge = Charge(
            request_id=request_id, usage=amounts, idle=Amounts(), variance_uj2=0.0, method=METHOD, final=final
        )
        self._charges.append(charge)
        if written:
            self._written.append(charge)

    def book(self, one: Receipt) -> None:
        """Write what was charged to a request, and the request."""
        booking = one.booking()
        row = RequestRow(request_id=one.id, tenant=one.tenant, family="m", variant="int8", booking=booking)
        for charge in (charge for charge in self._written if charge.request_id == one.id):
            row = replace(row, usage=row.usage + charge.usage, method=charge.method)
        self.rows[one.id] = row

    async def told(self, holds: Callable[[Report], object]) -> None:
        """Returns once such a report came, and the answer to one after it was taken."""
        came = len(self.reports)
        async with asyncio.timeout(60):
            while not any(holds(report) for report in self.reports[came:]) or len(self.reports) < came + 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


class Served:
    """A gateway over a scripted ledger, and a client without a key."""

    def __init__(self, ledger: Script) -> None:
        self.ledger = ledger
        self.gateway = Gateway.create(parse(ARGS), Nobody(), cast(Ledger, ledger))
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(App(self.gateway)), base_url="http://economizer")

    @property
    def reporter(self) -> Reporter:
        assert self.gateway.reporter is not None
        return self.gateway.reporter

    def begun(self, name: str) -> tuple[Receipt, AttemptWork]:
        """A request of this client's whose first attempt was sent."""
        party = self.gateway.gatekeeper.identify({}, 0.0)
        one = receipt(name, caller=party.caller)
        one.key_id, one.created_s = party.key_id, time.time()
        work = AttemptWork(
            request_id=one.id,
            attempt=0,
            tenant=one.tenant,
            family="m",
            variant="int8",
            engine="e",
            sent_s=time.monotonic(),
            prompt_tokens=128.0,
            output_tokens_max=9,
            streamed=False,
            ttft_s=0.1,
            tpot_s=0.1,
        )
        self.reporter.begin(work, one)
        return one, work

    def end(self, one: Receipt, work: AttemptWork) -> None:
        """The request was answered."""
        one.settle(USAGE)
        work.end(time.monotonic(), USAGE)
        one.e2e_s = time.time() - one.created_s
        one.ended("ok", status=200)
        self.gateway.receipts.keep(one)
        self.reporter.ended(one)

    async def actual(self, one: Receipt) -> tuple[str, float]:
        """By what method ``GET /v1/receipts/{id}`` says how many joules it took."""
        answer = await self.client.get(f"/v1/receipts/{one.id}")
        assert answer.status_code == 200, answer.text
        actual = answer.json()["actual"]
        return actual["method"], actual["energy_j"]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    made = Served(Script())
    made.reporter.start()
    await made.reporter.until_answered()
    yield made
    await made.reporter.stop()
    await made.client.aclose()
    await made.gateway.relay.close()


async def test_what_a_dead_bookkeeper_had_charged_and_not_written_is_in_no_receipt(served: Served) -> None:
    ledger = served.ledger
    one, work = served.begun("ecr-1")
    await ledger.told(lambda report: report.slices)
    ledger.charge(one.id, 5, written=False)
    await ledger.told(lambda report: report.slices)
    assert one.measured.usage.energy_uj == 5_000_000
    ledger.epoch = "two"
    served.end(one, work)
    await ledger.told(lambda report: report.bookings)
    ledger.charge(one.id, 5, written=True)
    ledger.charge(one.id, 1, written=True, final=True)
    await ledger.told(lambda report: True)
    assert await served.actual(one) == ("estimate", ESTIMATE_J)
    ledger.book(one)
    assert await served.actual(one) == (METHOD, 6.0)
    assert ledger.rows[one.id].usage.energy_uj == 6_000_000
    ledger.away = True
    assert await served.actual(one) == ("estimate", ESTIMATE_J)


async def test_a_receipt_that_was_measured_before_it_was_on_disk_is_what_the_next_bookkeeper_writes(
    served: Served,
) -> None:
    ledger = served.ledger
    one, work = served.begun("ecr-1")
    served.end(one, work)
    await ledger.told(lambda report: report.bookings)
    ledger.charge(one.id, 5, written=False, final=True)
    await ledger.told(lambda report: True)
    assert await served.actual(one) == (METHOD, 5.0)
    ledger.epoch = "two"
    await ledger.told(lambda report: report.bookings)
    assert await served.actual(one) == ("estimate", ESTIMATE_J)
    ledger.charge(one.id, 4, written=True, final=True)
    await ledger.told(lambda report: True)
    ledger.book(one)
    assert await served.actual(one) == (METHOD, 4.0)


async def test_a_receipt_that_was_on_disk_stays_measured(served: Served) -> None:
    ledger = served.ledger
    one, work = served.begun("ecr-1")
    served.end(one, work)
    await ledger.told(lambda report: report.bookings)
    ledger.charge(one.id, 5, written=True, final=True)
    ledger.acknowledges = True
    await ledger.told(lambda report: True)
    ledger.epoch = "two"
    await ledger.told(lambda report: True)
    assert await served.actual(one) == (METHOD, 5.0)


async def test_an_answer_that_waits_to_be_measured_gets_the_estimate_once_another_bookkeeper_is_there(
    served: Served,
) -> None:
    one, work = served.begun("ecr-1")
    await served.ledger.told(lambda report: report.slices)
    served.end(one, work)
    waiting = asyncio.create_task(one.until_settled(3600))
    await served.ledger.told(lambda report: report.bookings)
    assert not waiting.done()
    served.ledger.epoch = "two"
    async with asyncio.timeout(60):
        await waiting
    assert one.short()["method"] == "estimate"

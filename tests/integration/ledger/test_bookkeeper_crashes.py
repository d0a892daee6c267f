"""The bookkeeper, a gateway or an engine is killed at any moment: what was told is booked once, and the books close."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from time import monotonic, time

import pytest
from bookkeeper_process import VARIANT, BookkeeperProcess, running_bookkeeper
from bookkeeper_tellers import MeteredEngine, TellingGateway, assert_booked_once, end_well, hours, until
from economizer.admission.limits import Ask, Use
from economizer.admission.tenants import Budget, Tenant
from economizer.energy.types import Measurement, Window, Work
from economizer.engine.scrape import EngineLoad
from economizer.ledger.bill import Bill
from economizer.ledger.bookkeeper import Seen
from economizer.ledger.store import Store
from economizer.ledger.types import Booking, Report, Slice


@pytest.fixture
def url(tmp_path: Path) -> str:
    """SQLite; what a database does in a crash, its own tests know."""
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def bookkeeper(url: str, tmp_path: Path) -> Iterator[BookkeeperProcess]:
    with running_bookkeeper(url, tmp_path) as process:
        yield process


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_bookkeeper_that_is_killed_again_and_again_books_everything_once(
    bookkeeper: BookkeeperProcess, url: str, seed: int
) -> None:
    random = Random(seed)
    engines = [MeteredEngine(bookkeeper, f"engine-{number}", seed) for number in range(2)]
    gateways = [TellingGateway(bookkeeper, seed + number, ["engine-0", "engine-1"]) for number in range(2)]
    asking = [asyncio.create_task(gateway.ask(8.0)) for gateway in gateways]
    for _ in range(2):
        await asyncio.sleep(random.uniform(0.3, 5.0))  # it settles nothing in its first three seconds
        bookkeeper.kill()
        await asyncio.to_thread(bookkeeper.start)
    await asyncio.gather(*asking)
    await end_well(gateways, engines)
    bookkeeper.kill()
    assert_booked_once(url, gateways, engines)


async def test_what_is_told_twice_counts_once_also_after_a_silence_and_by_the_next_bookkeeper(
    bookkeeper: BookkeeperProcess, url: str
) -> None:
    now_s = time()
    window = Window(
        engine="e",
        number=0,
        variant=VARIANT.id,
        began_s=now_s - 1,
        ended_s=now_s,
        measurement=Measurement(seconds=1.0, energy_uj=5_000_000, method="replay"),
        last=True,
    )
    piece = Slice(
        request_id="r",
        attempt=0,
        tenant="acme",
        family=VARIANT.family,
        variant=VARIANT.name,
        engine="e",
        began_s=now_s - 0.9,
        ended_s=now_s - 0.1,
        work=Work(prefill_tokens=100.0, decode_tokens=10.0),
        last=True,
    )
    booking = Booking(
        request_id="r",
        tenant="acme",
        family=VARIANT.family,
        variant=VARIANT.name,
        endpoint="chat",
        outcome="ok",
        attempts=1,
        began_s=now_s - 0.9,
        ended_s=now_s - 0.1,
        output_tokens=10,
    )
    report = Report(gateway="g", number=1, now_s=now_s, slices=(piece,), bookings=(booking,))

    async def tell() -> int:
        await bookkeeper.windows("e", (window,))
        acknowledged = (await bookkeeper.report(report, Seen())).acknowledged
        await bookkeeper.write()
        return acknowledged

    told = [await tell(), await tell()]
    await asyncio.sleep(3.5)  # so long that the gateway is not waited for
    told.append(await tell())
    bookkeeper.kill()
    bookkeeper.start()
    told.append(await tell())
    assert told == [-1, -1, 1, -1]
    await asyncio.sleep(3.5)
    assert await tell() == 1
    bookkeeper.kill()
    store = Store.open(url)
    (account,) = (row for row in store.accounts(*hours()) if row.account.kind == "active")
    assert (account.requests, account.output_tokens, account.amounts.energy_uj) == (1, 10, 5_000_000)
    assert store.close_check(*hours()).closes
    store.close()


async def test_a_silent_gateways_work_is_unclaimed_after_a_stall_and_its_reservations_end_when_it_is_dead(
    bookkeeper: BookkeeperProcess, url: str
) -> None:
    engine = MeteredEngine(bookkeeper, "engine-0", 7)
    gateways = [TellingGateway(bookkeeper, 7 + number, ["engine-0"]) for number in range(2)]
    tenant = Tenant(budgets=(Budget(per="day", usd=1.0),))
    use = Use(uusd=800_000)
    asks = [
        Ask(
            request_id=gateway.reporter.name, gateway=gateway.reporter.name, tenant="initech", settings=tenant, tokens=1
        )
        for gateway in gateways
    ]
    first, second = (replace(ask, predicted=use) for ask in asks)
    dying, other = gateways
    dying.begin("engine-0", 10)
    await asyncio.gather(*(gateway.ask(0.5) for gateway in gateways))
    assert (await bookkeeper.admit(first)).admitted
    assert not (await bookkeeper.admit(second)).admitted

    await dying.until_acknowledged()
    dying.kill()
    engine.process.last_load = EngineLoad(decode_tokens=20_000)  # what it had begun goes on, and nobody tells
    await asyncio.sleep(3.5)
    assert not (await bookkeeper.admit(second)).admitted
    other.ended += dying.ended
    await end_well([other], [engine])
    await bookkeeper.pass_time(61.0)
    await bookkeeper.write()
    assert (await bookkeeper.admit(second)).admitted
    bookkeeper.kill()
    assert_booked_once(url, [other], [engine])
    store = Store.open(url)
    unclaimed = [row.amounts.energy_uj or 0 for row in store.accounts(*hours()) if row.account.kind == "unclaimed"]
    assert sum(unclaimed) > 0
    store.close()


async def test_an_engine_that_ends_without_a_last_window_leaves_one_gap_whoever_keeps_the_books(
    bookkeeper: BookkeeperProcess, url: str
) -> None:
    dead, other = (MeteredEngine(bookkeeper, name, 3) for name in ("dead", "other"))
    await until(lambda: dead.on_disk >= 1)
    dead.kill()
    bookkeeper.kill()
    bookkeeper.start()
    store = Store.open(url)

    def gaps() -> dict[str, int]:
        return {row.engine: row.gaps for row in store.meters(*hours())}

    began_s = monotonic()
    await until(lambda: gaps() == {"dead": 1, "other": 0})
    assert 5 < monotonic() - began_s < 11
    await other.close()
    since_s, until_s = (int(moment_s) for moment_s in hours())
    bill = Bill.of(*store.statement(since_s, until_s), since_s, until_s)
    assert (bill.gaps, bill.closes) == (1, True)
    store.close()


async def test_what_was_learnt_of_a_variant_outlives_its_bookkeeper(bookkeeper: BookkeeperProcess, url: str) -> None:
    engine = MeteredEngine(bookkeeper, "engine-0", 5)
    gateway = TellingGateway(bookkeeper, 5, ["engine-0"])
    store = Store.open(url)

    async def observations() -> float:
        """How many it has learnt from, once it has learnt from some more."""
        await gateway.ask(0.3)
        await gateway.until_acknowledged()
        await asyncio.sleep(1.5)  # at rest, which ends what is one observation
        (state,) = store.coefficients().values()
        return state[1]

    before = await observations()
    bookkeeper.kill()
    bookkeeper.start()
    assert await observations() > before >= 1
    await asyncio.gather(gateway.reporter.stop(), engine.close())
    store.close()

"""The database goes, comes back, or was never there; the disk is full: what is acknowledged is on disk all the same."""

import asyncio
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from time import time

import pytest
from bookkeeper_process import running_bookkeeper
from bookkeeper_tellers import MeteredEngine, TellingGateway, assert_booked_once, end_well, until
from economizer.admission.keys import new_key
from economizer.ledger.bookkeeper import Seen
from economizer.ledger.store import Store
from economizer.ledger.types import Report
from postgres import Postgres

MIB = 2**20


@pytest.fixture
def own(postgres: Postgres) -> Iterator[str]:
    """A database whose server may be killed: it runs again afterwards."""
    yield postgres.new_database()
    postgres.stop()
    postgres.start()


async def test_while_the_database_is_gone_bookings_are_spooled_and_acknowledged_and_written_once_afterwards(
    postgres: Postgres, own: str, tmp_path: Path
) -> None:
    with running_bookkeeper(own, tmp_path) as bookkeeper:
        engine, gateway = MeteredEngine(bookkeeper, "engine-0", 1), TellingGateway(bookkeeper, 1, ["engine-0"])
        await gateway.ask(0.5)
        postgres.kill()
        await gateway.ask(0.5)
        await gateway.until_acknowledged()
        assert bookkeeper.spooled > 0
        bookkeeper.kill()
        bookkeeper.start()
        await gateway.ask(0.5)
        await gateway.until_acknowledged()
        assert not gateway.reporter.gone
        await asyncio.to_thread(postgres.start)
        await until(lambda: bookkeeper.spooled == 0)
        await gateway.ask(0.5)
        await end_well([gateway], [engine])
        bookkeeper.kill()
        assert bookkeeper.spooled == 0
    assert_booked_once(own, [gateway], [engine])


async def test_a_bookkeeper_without_its_database_spools_until_that_comes_and_knows_no_keys(
    postgres: Postgres, own: str, tmp_path: Path
) -> None:
    store = Store.open(own)
    store.add_key(new_key("acme", "tenant", now_s=0.0)[1])
    store.close()
    postgres.kill()
    with running_bookkeeper(own, tmp_path) as bookkeeper:
        engine, gateway = MeteredEngine(bookkeeper, "engine-0", 1), TellingGateway(bookkeeper, 1, ["engine-0"])
        await gateway.ask(0.5)
        await gateway.until_acknowledged()
        assert bookkeeper.spooled > 0
        assert not gateway.keys_known
        await asyncio.to_thread(postgres.start)
        await until(lambda: gateway.keys_known)
        await end_well([gateway], [engine])
        bookkeeper.kill()
        assert bookkeeper.spooled == 0
    assert_booked_once(own, [gateway], [engine])


async def test_on_a_full_disk_nothing_is_acknowledged_it_is_told_and_all_is_written_when_there_is_room(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    with running_bookkeeper(url, tmp_path) as bookkeeper:
        engine, gateway = MeteredEngine(bookkeeper, "engine-0", 1), TellingGateway(bookkeeper, 1, ["engine-0"])
        await gateway.ask(0.3)
        await gateway.until_acknowledged()
        await bookkeeper.limit_files(0)
        await bookkeeper.write()
        resident = await bookkeeper.resident_bytes()
        asking = asyncio.create_task(gateway.ask(60.0))
        for number in count():  # as often as it would write in some minutes
            reply = await bookkeeper.report(Report(gateway="other", number=number, now_s=time()), Seen())
            if not reply.well:
                break
            await bookkeeper.write()
        await until(lambda: gateway.reporter.gone)
        await asyncio.sleep(1.0)  # by then all have heard of what was on disk before
        before = gateway.acknowledged, engine.on_disk
        await asyncio.sleep(1.0)
        asking.cancel()
        assert (gateway.acknowledged, engine.on_disk) == before
        assert await bookkeeper.resident_bytes() - resident < 32 * MIB
        await bookkeeper.limit_files(None)
        await until(lambda: not gateway.reporter.gone)
        await end_well([gateway], [engine])
    assert_booked_once(url, [gateway], [engine])

"""The bookkeeper, a gateway or an engine is killed at any moment: what was told is booked once, and the books close."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from random import Random
from time import time

import pytest
from bookkeeper_process import BookkeeperProcess
from bookkeeper_tellers import MeteredEngine, TellingGateway, end_well
from economizer.ledger.store import Store
from economizer.ledger.types import RequestRow


@pytest.fixture
def bookkeeper(url: str, tmp_path: Path) -> Iterator[BookkeeperProcess]:
    process = BookkeeperProcess(url, tmp_path)
    process.start()
    yield process
    process.kill()


def hours() -> tuple[float, float]:
    """All hours in which a test may have run."""
    return time() - 7200, time() + 7200


def booked(store: Store) -> dict[str, RequestRow]:
    return {row.request_id: row for row in store.requests(*hours()) if row.booking is not None}


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_bookkeeper_that_is_killed_again_and_again_books_everything_once(
    bookkeeper: BookkeeperProcess, url: str, seed: int
) -> None:
    random = Random(seed)
    engines = [MeteredEngine(bookkeeper, f"engine-{number}", seed) for number in range(2)]
    gateways = [TellingGateway(bookkeeper, seed + number, ["engine-0", "engine-1"]) for number in range(2)]
    asking = [asyncio.create_task(gateway.ask(4.0)) for gateway in gateways]
    for _ in range(3):
        await asyncio.sleep(random.uniform(0.3, 1.2))
        bookkeeper.kill()
        await asyncio.to_thread(bookkeeper.start)
    await asyncio.gather(*asking)
    await end_well(gateways, engines)
    bookkeeper.kill()

    store = Store.open(url)
    rows = booked(store)
    missing = {receipt.id for gateway in gateways for receipt in gateway.ended} - rows.keys()
    assert missing == set()
    assert store.close_check(*hours()).closes
    meters = store.meters(*hours())
    assert sum(row.total.energy_uj or 0 for row in meters) == sum(engine.used_uj for engine in engines)
    assert sum(row.gaps for row in meters) == 0
    assert sum(row.requests for row in store.accounts(*hours())) == len(rows)
    assert [row.request_id for row in rows.values() if row.usage.energy_uj is None] == []
    store.close()

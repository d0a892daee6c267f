"""A bookkeeper begins without its database, or in the middle of things: budgets and books count everything once."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import time

import pytest
from bookkeeper_process import VARIANT, BookkeeperProcess, running_bookkeeper
from bookkeeper_tellers import hours, until
from economizer.admission.limits import Ask, Use, Verdict
from economizer.admission.tenants import Budget, Tenant
from economizer.energy.step_model import StepModel
from economizer.energy.types import Measurement, Window, Work
from economizer.ledger.bookkeeper import Seen
from economizer.ledger.store import Store
from economizer.ledger.types import Batch, Report, Slice

WINDOW_UUSD = 1_000_000  # what one of a second costs


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/books/ledger.db"


@pytest.fixture
def bookkeeper(url: str, tmp_path: Path) -> Iterator[BookkeeperProcess]:
    with running_bookkeeper(url, tmp_path) as process:
        yield process


@pytest.fixture
def no_database(tmp_path: Path) -> Path:
    """A file where the database's folder is to be; without it, that can be made."""
    (tmp_path / "books").write_text("")
    return tmp_path / "books"


def window(number: int, began_s: float) -> Window:
    measurement = Measurement(seconds=1.0, energy_uj=10_000_000, method="replay")
    return Window(
        engine="e", number=number, variant=VARIANT.id, began_s=began_s, ended_s=began_s + 1, measurement=measurement
    )


def report(number: int, began_s: float, *, last: bool = False, lost: bool = False) -> Report:
    """What acme's request r did in the second that began then."""
    piece = Slice(
        request_id="r",
        attempt=0,
        tenant="acme",
        family=VARIANT.family,
        variant=VARIANT.name,
        engine="e",
        began_s=began_s,
        ended_s=began_s + 1,
        work=Work(prefill_tokens=100.0, decode_tokens=10.0),
        last=last,
        lost=lost,
    )
    return Report(gateway="g", number=number, now_s=began_s + 1, slices=(piece,))


async def spent_uusd(bookkeeper: BookkeeperProcess) -> int:
    """What acme has spent of a budget, as a request that does not fit into what is left of it is told."""
    budget = Tenant(budgets=(Budget(per="month", usd=100.0),))
    for cents in range(0, 10_011, 10):
        verdict = await _asked(bookkeeper, budget, cents)
        if verdict.refused is not None:
            return (10_000 - cents + 10) * 10_000
    raise AssertionError("nothing is refused")


async def _asked(bookkeeper: BookkeeperProcess, settings: Tenant, cents: int) -> Verdict:
    request_id = f"asks-{time()}"
    use = Use(uusd=cents * 10_000)
    verdict = await bookkeeper.admit(
        Ask(request_id=request_id, gateway="asks", tenant="acme", settings=settings, tokens=1, predicted=use)
    )
    if verdict.admitted:
        await bookkeeper.report(Report(gateway="asks", number=0, now_s=time(), released=(request_id,)), Seen())
    return verdict


async def settle(bookkeeper: BookkeeperProcess, seconds: Sequence[int], began_s: float, **end: bool) -> None:
    """The request worked in these seconds, alone, and they are settled."""
    for number in seconds:
        ends = end if number == seconds[-1] else {}
        await bookkeeper.report(report(number + 1, began_s + number, **ends), Seen())
        await bookkeeper.windows("e", (window(number, began_s + number),))
    await bookkeeper.write()


async def test_what_is_settled_while_the_database_is_away_counts_once_towards_a_budget_when_it_is_back(
    no_database: Path, bookkeeper: BookkeeperProcess, url: str
) -> None:
    await bookkeeper.pass_time(11.0)  # so long it waits for what is on disk
    await settle(bookkeeper, range(5), time())
    assert bookkeeper.spooled > 0
    before_uusd = await spent_uusd(bookkeeper)
    assert before_uusd == pytest.approx(5 * WINDOW_UUSD, abs=100_000)
    await asyncio.to_thread(no_database.unlink)
    await until(lambda: bookkeeper.spooled == 0)
    await until(lambda: _accounts(url) == 5 * WINDOW_UUSD)
    await settle(bookkeeper, range(5, 6), time() - 5)
    assert await spent_uusd(bookkeeper) == pytest.approx(6 * WINDOW_UUSD, abs=100_000)


def _accounts(url: str) -> int:
    store = Store.open(url)
    found = sum(row.amounts.cost_uusd or 0 for row in store.accounts(*hours()) if row.account.kind == "active")
    store.close()
    return found


async def test_what_is_told_to_three_bookkeepers_is_in_the_books_and_in_the_budget_once(
    bookkeeper: BookkeeperProcess, url: str
) -> None:
    began_s = time()
    await until(lambda: Path(url.removeprefix("sqlite:///")).exists())
    await bookkeeper.pass_time(11.0)
    await settle(bookkeeper, range(3), began_s)
    assert await spent_uusd(bookkeeper) == pytest.approx(3 * WINDOW_UUSD, abs=100_000)
    bookkeeper.kill()  # between writing and acknowledging: all of it is told again
    bookkeeper.start()
    await bookkeeper.pass_time(11.0)
    await settle(bookkeeper, range(4), began_s, last=True, lost=True)
    bookkeeper.kill()
    bookkeeper.start()
    await bookkeeper.pass_time(11.0)
    await settle(bookkeeper, range(4), began_s, last=True, lost=True)
    store = Store.open(url)
    found = {row.account.kind: row.amounts.energy_uj or 0 for row in store.accounts(*hours())}
    assert store.close_check(*hours()).closes
    store.close()
    # What the first had charged to an attempt that failed only later stays with it.
    assert (found["active"], found["lost"]) == (30_000_000, 10_000_000)
    async with asyncio.timeout(20):  # as soon as the third has read what is on disk
        while await spent_uusd(bookkeeper) != pytest.approx(3 * WINDOW_UUSD, abs=100_000):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)


async def test_what_was_learnt_before_is_learnt_on_though_the_database_was_away_for_long_at_the_start(
    tmp_path: Path, url: str
) -> None:
    before = StepModel()
    for _ in range(9):
        before.observe(Work(decode_tokens=10.0), 10, 1e6, 1.0)
    store = Store.open(url)
    store.write(Batch(id="1", coefficients={f"{VARIANT.id}|replay": before.state()}))
    store.close()
    away = (tmp_path / "books").rename(tmp_path / "away")
    (tmp_path / "books").write_text("")
    began_s, learns = time(), 25  # that many seconds of work teach once
    with running_bookkeeper(url, tmp_path) as bookkeeper:
        await bookkeeper.pass_time(11.0)
        await settle(bookkeeper, range(learns), began_s)
        assert bookkeeper.spooled > 0
        (tmp_path / "books").unlink()
        away.rename(tmp_path / "books")
        await until(lambda: bookkeeper.spooled == 0)
        for number in range(learns, 40 * learns, learns):
            await settle(bookkeeper, range(number, number + learns), began_s)
            if (learnt := _observations(url)) != 9:
                break
    assert learnt == 10


def _observations(url: str) -> int:
    store = Store.open(url)
    (state,) = store.coefficients().values()
    store.close()
    return int(state[1])


async def test_a_failed_attempts_charges_are_given_back_to_its_tenants_budget(bookkeeper: BookkeeperProcess) -> None:
    await bookkeeper.pass_time(11.0)
    await settle(bookkeeper, range(3), time())
    assert await spent_uusd(bookkeeper) == pytest.approx(3 * WINDOW_UUSD, abs=100_000)
    await settle(bookkeeper, range(3, 4), time() - 3, last=True, lost=True)
    assert await spent_uusd(bookkeeper) == pytest.approx(0, abs=100_000)

"""A bookkeeper in this process, with a ledger in SQLite."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import time

import pytest
from economizer.energy.step_model import StepModel
from economizer.energy.types import Measurement, Window, Work
from economizer.ledger.bookkeeper import Bookkeeper, Seen
from economizer.ledger.database import Database
from economizer.ledger.store import LedgerUnusable, Store
from economizer.ledger.types import Amounts, Batch, Counterfactual, Report, Slice
from economizer.variants.price import CarbonProviderSettings
from economizer.variants.types import Price, Variant
from ledger_batches import FAMILY, VARIANT, booking
from msgspec.structs import replace

URL = "sqlite:///{}/books/ledger.db"


def bookkeeper(folder: Path, *variants: Variant) -> Bookkeeper:
    spool = folder / "spool"
    return Bookkeeper(url=URL.format(folder), spool=spool, spool_bytes_max=10**8, keep_days=1.0, variants=variants)


@asynccontextmanager
async def running(folder: Path, *variants: Variant) -> AsyncIterator[Bookkeeper]:
    """One that runs, and is closed in the end."""
    keeper = bookkeeper(folder, *variants)
    task = asyncio.create_task(keeper.run())
    yield keeper
    await end(task, keeper)


async def end(task: asyncio.Task[None], keeper: Bookkeeper) -> None:
    """As Serve ends it."""
    task.cancel()
    await asyncio.wait({task})
    await keeper.close()


async def until(holds: Callable[[], object]) -> None:
    """Poll until something holds."""
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)


def booked(folder: Path, request_id: str) -> bool:
    store = Store.open(URL.format(folder))
    row = store.request(request_id)
    store.close()
    return row is not None and row.booking is not None


def books_of(number: int, request_id: str) -> Report:
    """A report that books a request."""
    return Report(gateway="g", number=number, now_s=time(), bookings=(booking(request_id, ended_s=time()),))


async def test_what_was_learnt_in_another_form_is_learnt_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store.open(URL.format(tmp_path))
    store.write(Batch(id="1", coefficients={"boiler@int8|replay": (1.0, 2.0)}))
    store.close()
    async with running(tmp_path) as keeper:
        await until(lambda: "is learnt anew" in caplog.text)
        await keeper.report(books_of(1, "r"), Seen())
        await until(lambda: booked(tmp_path, "r"))


async def test_a_request_without_a_possible_counterfactual_is_booked_without_one_and_so_are_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learnt = StepModel()
    learnt.observe(Work(decode_tokens=5.0), 5, 1e6, 1.0)
    store = Store.open(URL.format(tmp_path))
    store.write(Batch(id="1", coefficients={f"{FAMILY}@{VARIANT}|replay": learnt.state()}))
    variant = Variant(family=FAMILY, name=VARIANT, context_tokens_max=4096, concurrency_max=16, hardware="cpu")
    full = Counterfactual(variant=VARIANT, amounts=Amounts())
    good = booking("good", ended_s=time(), full=full)
    async with running(tmp_path, variant) as keeper:
        await until(lambda: keeper._books.learnt(variant.id) is not None)
        bookings = replace(good, request_id="bad", output_tokens=-1), good
        await keeper.report(Report(gateway="g", number=1, now_s=time(), bookings=bookings), Seen())
        await until(lambda: booked(tmp_path, "good"))
    found = {row.request_id: row.booking.full for row in store.requests(0, time() + 60) if row.booking is not None}
    store.close()
    assert found["bad"] is None
    assert found["good"] is not None
    assert found["good"].amounts.energy_uj is not None
    assert "request bad is booked without its counterfactual" in caplog.text


async def test_a_gateway_and_an_engine_that_are_silent_for_an_hour_are_forgotten(tmp_path: Path) -> None:
    keeper = bookkeeper(tmp_path)
    window = Window(
        engine="e",
        number=0,
        variant=f"{FAMILY}@{VARIANT}",
        began_s=time() - 21,
        ended_s=time() - 20,
        measurement=Measurement(seconds=1.0, energy_uj=5, method="replay"),
    )
    await keeper.report(books_of(1, "r"), Seen())
    await keeper.windows("e", [window])
    keeper._books.nobody_was_silent(-20)  # it no longer waits for what is on disk
    await keeper.write()
    assert (keeper._outbox.reports, keeper._outbox.windows) == ({"g": 1}, {"e": 0})
    keeper._books.nobody_was_silent(-4000)
    await keeper.write()
    assert (keeper._outbox.reports, keeper._outbox.windows) == ({}, {})


@pytest.mark.parametrize(("stood", "gaps"), [(True, 0), (False, 1)])
async def test_an_engine_was_not_silent_while_the_bookkeeper_itself_stood_still(
    tmp_path: Path, stood: bool, gaps: int
) -> None:
    keeper = bookkeeper(tmp_path)
    window = Window(
        engine="e",
        number=0,
        variant=f"{FAMILY}@{VARIANT}",
        began_s=time() - 21,
        ended_s=time() - 20,
        measurement=Measurement(seconds=1.0, energy_uj=5, method="replay"),
    )
    keeper._books.nobody_was_silent(-20)  # it no longer waits for what is on disk
    await keeper.windows("e", [window])
    keeper._books.nobody_was_silent(-20)  # 20 seconds pass
    keeper._looked_s -= 20 if stood else 0
    keeper._settle(keeper._now_s())
    states = [settled.window.state for settled in keeper._books.draw().settled]
    assert states == ["serving"] + ["gap"] * gaps


async def test_without_a_spool_it_says_so_once_and_writes_to_the_database_until_there_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = tmp_path / "spool"
    spool.write_text("not a folder")
    async with running(tmp_path) as keeper:
        await until((tmp_path / "books/ledger.db").exists)
        assert (await keeper.report(books_of(1, "r"), Seen())).well
        for _ in range(3):
            await keeper.write()
        await until(lambda: booked(tmp_path, "r"))
        assert caplog.text.count("cannot be used, so bookings need the database") == 1
        await asyncio.to_thread(spool.unlink)
        await keeper.write()
        assert spool.is_dir()


async def test_with_neither_database_nor_spool_what_is_told_is_kept_until_memory_is_full(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("not a folder")
    (tmp_path / "books").write_text("not a folder")
    keeper = bookkeeper(tmp_path)
    well = []
    for number in range(1000):
        well.append((await keeper.report(books_of(number, f"r{number}"), Seen())).well)
        await keeper.write()
    assert well == [True] * 200 + [False] * 800
    with pytest.raises(LedgerUnusable, match="memory is full"):
        await keeper.report(books_of(1000, "too many"), Seen())
    for name in ("spool", "books"):
        await asyncio.to_thread((tmp_path / name).unlink)
    await keeper.write()
    assert (await keeper.report(books_of(1000, "r1000"), Seen())).acknowledged == 999


async def test_one_that_is_closed_in_the_middle_of_a_write_writes_everything(tmp_path: Path) -> None:
    keeper = bookkeeper(tmp_path)
    task = asyncio.create_task(keeper.run())
    Store.open(URL.format(tmp_path)).close()
    await keeper.report(books_of(1, "1"), Seen())
    await until(lambda: booked(tmp_path, "1"))
    other = Database(URL.format(tmp_path))
    with other.writing():
        await keeper.report(books_of(2, "2"), Seen())
        await asyncio.sleep(0.7)  # it comes to write, and has to wait
        await keeper.report(books_of(3, "3"), Seen())
        ending = asyncio.create_task(end(task, keeper))
        await asyncio.sleep(0.3)
        assert not ending.done()
    await ending
    other.close()
    assert [name for name in ("1", "2", "3") if not booked(tmp_path, name)] == []


async def test_charges_whose_answer_was_lost_are_told_again_and_numbers_of_another_bookkeeper_do_not_count(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as keeper:
        began_s = time() - 20
        done = Measurement(seconds=1.0, energy_uj=5, method="replay")
        window = Window(
            engine="e", number=0, variant=f"{FAMILY}@{VARIANT}", began_s=began_s, ended_s=began_s + 1, measurement=done
        )
        work = Slice(
            request_id="r",
            attempt=0,
            tenant="acme",
            family=FAMILY,
            variant=VARIANT,
            engine="e",
            began_s=began_s,
            ended_s=began_s + 1,
            work=Work(decode_tokens=10.0),
            last=True,
        )
        await keeper.report(Report(gateway="g", number=1, now_s=time(), slices=(work,)), Seen())
        await keeper.windows("e", (window,))
        number, lost = 2, await keeper.report(Report(gateway="g", number=2, now_s=time()), Seen())
        async with asyncio.timeout(30):
            while not lost.charges:
                number += 1
                lost = await keeper.report(Report(gateway="g", number=number, now_s=time()), Seen())
                await asyncio.sleep(0.1)
        other = Seen(epoch="of another", charges=1)
        again = await keeper.report(Report(gateway="g", number=number + 1, now_s=time()), other)
        after = await keeper.report(Report(gateway="g", number=number + 2, now_s=time()), again.seen)
    assert [charge.final for charge in lost.charges] == [True]
    assert again.charges == lost.charges
    assert after.charges == ()


async def test_a_provider_that_does_not_answer_keeps_nothing_from_being_written(tmp_path: Path) -> None:
    asked: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: asked.append(writer), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    price = Price(usd_per_hour=1.0, carbon_provider=CarbonProviderSettings(url=url), source="made up")
    variant = Variant(
        family=FAMILY, name=VARIANT, context_tokens_max=4096, concurrency_max=16, hardware="cpu", price=price
    )
    async with running(tmp_path, variant) as keeper:
        await until(lambda: asked)
        await keeper.report(books_of(1, "r"), Seen())
        await until(lambda: booked(tmp_path, "r"))
        assert not asked[0].is_closing(), "it was still being asked"
        assert len(asked) == 1
        for writer in asked:
            writer.close()
        server.close()

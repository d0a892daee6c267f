import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from economizer.gateway.receipts import Receipt
from economizer.gateway.reporting import Ledger, Reporter
from economizer.gateway.work import AttemptWork
from economizer.ledger.bookkeeper import Bookkeeper, Reply, Seen
from economizer.ledger.store import Store
from economizer.ledger.types import Report, Slice
from examples import receipt


class Line:
    """The way to a real bookkeeper, which can be cut; ``reports`` are those that came through."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'ledger.db'}"
        self.cut = False
        self.tried = 0
        self.reports: list[Report] = []
        self._bookkeeper = Bookkeeper(
            url=self.url, spool=folder / "spool", spool_bytes_max=10**6, keep_days=1.0, variants=()
        )
        self._task = asyncio.create_task(self._bookkeeper.run())

    async def report(self, report: Report, seen: Seen) -> Reply:
        self.tried += 1
        if self.cut:
            raise ConnectionError("cut")
        self.reports.append(report)
        return await self._bookkeeper.report(report, seen)

    async def tries(self, count: int) -> None:
        """Returns once it was tried to report so many times more."""
        wanted = self.tried + count
        await until(lambda: self.tried >= wanted)

    async def booked(self, count: int) -> set[str]:
        """The ids of the requests in the books, once there are so many."""
        store = Store.open(self.url)
        try:
            await until(lambda: len(list(store.requests(0, 4e9))) >= count)
            return {row.request_id for row in store.requests(0, 4e9) if row.booking is not None}
        finally:
            store.close()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        await self._bookkeeper.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - a database sets no events
            await asyncio.sleep(0.005)


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    made = Line(tmp_path)
    yield made
    await made.close()


def nothing(what: object) -> None:
    """Nobody wants to know."""


def reporter_over(line: Line, on_keys: Callable[[Any], None] = nothing, **bounds: int) -> Reporter:
    made = Reporter(cast(Ledger, line), period_s=0.005, on_keys=on_keys, on_prices=nothing, on_posted=nothing, **bounds)
    made.start()
    return made


def ended(number: int) -> Receipt:
    made = receipt(f"ecr-{number:02}")
    made.created_s, made.e2e_s = time.time(), 0.1
    made.ended("ok", status=200)
    return made


async def test_as_long_as_the_ledger_is_away_reports_that_say_nothing_push_no_booking_out(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    reporter = reporter_over(line, kept_max=20)
    await reporter.until_answered()
    line.cut = True
    for number in range(3):
        reporter.ended(ended(number))
        await line.tries(2)
    await line.tries(40)
    came = len(line.reports)
    line.cut = False
    assert await line.booked(3) == {"ecr-00", "ecr-01", "ecr-02"}
    assert sum(len(report.bookings) for report in line.reports[came : came + 4]) == 3, "none of the 40 is between them"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    await reporter.stop()


async def test_beyond_what_is_kept_the_oldest_bookings_are_dropped_and_it_is_said_how_many_the_books_will_miss(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    reporter = reporter_over(line, kept_max=20)
    await reporter.until_answered()
    line.cut = True
    for number in range(15):
        reporter.ended(ended(number))
        await line.tries(2)
    line.cut = False
    kept = {f"ecr-{number:02}" for number in range(5, 15)}
    assert await line.booked(len(kept)) == kept
    said = [record.args for record in caplog.records if "the books will miss" in record.message]
    assert sum(cast(tuple[int], one)[0] for one in said) == 5
    sent = [booking.request_id for report in line.reports for booking in report.bookings]
    assert sent == sorted(kept), "nothing that was dropped is sent, and nothing twice"
    await reporter.stop()


async def test_another_bookkeeper_is_told_again_what_was_not_on_disk(line: Line, tmp_path: Path) -> None:
    reporter = reporter_over(line)
    await reporter.until_answered()
    reporter.ended(ended(1))
    await until(lambda: any(report.bookings for report in line.reports))
    another = Line(tmp_path)
    line.report = another.report  # type: ignore[method-assign]  # the one before is heard of no more
    await until(lambda: any(report.bookings for report in another.reports))
    assert await another.booked(1) == {"ecr-01"}
    await reporter.stop()
    await another.close()


class Broken(AttemptWork):
    """An attempt that there is a mistake in."""

    def tell(self, now_s: float, epoch_s: float) -> list[Slice]:
        raise ZeroDivisionError


def work(of: Receipt, kind: type[AttemptWork] = AttemptWork) -> AttemptWork:
    return kind(
        request_id=of.id,
        attempt=0,
        tenant="t",
        family="m",
        variant="int8",
        engine="e",
        sent_s=time.monotonic(),
        prompt_tokens=8.0,
        output_tokens_max=8,
        streamed=False,
        ttft_s=0.1,
        tpot_s=0.1,
    )


async def test_an_attempt_that_cannot_be_told_is_left_out_with_its_traceback_in_the_log(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    reporter = reporter_over(line)
    wrong, right = ended(1), ended(2)
    reporter.begin(work(wrong, Broken), wrong)
    reporter.begin(work(right), right)
    reporter.ended(wrong)
    reporter.ended(right)
    await until(lambda: {one.request_id for report in line.reports for one in report.slices} == {"ecr-02"})
    assert await line.booked(2) == {"ecr-01", "ecr-02"}
    (said,) = [record for record in caplog.records if record.exc_info]
    assert said.message == "an attempt of request ecr-01 is told no more"
    assert said.exc_info is not None
    assert said.exc_info[0] is ZeroDivisionError
    await reporter.stop()


async def test_a_request_that_cannot_be_booked_is_left_out_with_its_traceback_in_the_log(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    reporter = reporter_over(line)
    wrong = ended(1)
    wrong.terms = None  # type: ignore[assignment]  # a mistake
    reporter.ended(wrong)
    reporter.ended(ended(2))
    assert await line.booked(1) == {"ecr-02"}
    (said,) = [record for record in caplog.records if record.exc_info]
    assert said.message == "request ecr-01 is not booked"
    await until(lambda: [one for report in line.reports for one in report.released] == ["ecr-01"])
    await reporter.stop()


async def test_a_mistake_in_what_is_done_with_an_answer_does_not_end_the_reports(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    def on_keys(keys: object) -> None:
        raise ZeroDivisionError

    reporter = reporter_over(line, on_keys)
    await until(lambda: any(record.exc_info for record in caplog.records))
    reporter.ended(ended(1))
    assert await line.booked(1) == {"ecr-01"}
    await reporter.stop()


async def test_keys_that_were_not_taken_are_told_again(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    taken: list[object] = []

    def on_keys(keys: object) -> None:
        if not any(record.exc_info for record in caplog.records):
            raise ZeroDivisionError
        taken.append(keys)

    reporter = reporter_over(line, on_keys)
    await until(lambda: bool(taken))
    came = len(line.reports)
    await until(lambda: len(line.reports) > came + 3)
    assert taken == [()], "once is enough"
    await reporter.stop()

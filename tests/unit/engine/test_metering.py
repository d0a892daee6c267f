import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest
from economizer.energy.meter import Counter, CountingMeter, Meter, ReplayMeter, Used
from economizer.energy.types import Window
from economizer.engine.metering import Metering
from economizer.engine.process import EngineProcess
from economizer.engine.types import EngineSpec


class Steps:
    """A counter that grows by 1 J with each reading; ``fails_at`` is a reading that there is a mistake in, and
    ``differs_not_at`` one that makes no difference to those before."""

    method = "steps"
    tick_s = 0.0

    def __init__(self, fails_at: int = -1, differs_not_at: int = -1) -> None:
        self.read_times = 0
        self._fails_at = fails_at
        self._differs_not_at = differs_not_at

    def read(self) -> int:
        self.read_times += 1
        if self.read_times == self._fails_at:
            raise ZeroDivisionError
        return self.read_times * 1_000_000

    def used(self, before: int, after: int, seconds: float) -> Used:
        if after == self._differs_not_at * 1_000_000:
            raise ZeroDivisionError
        return Used(energy_uj=after - before, uncertainty=0.0)

    def describe(self) -> str:
        return "a joule a reading"

    def close(self) -> None:
        pass


class Held(Steps):
    """One whose readings wait while it is ``held``."""

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.free = threading.Event(), threading.Event()
        self.free.set()

    def read(self) -> int:
        self.reading.set()
        assert self.free.wait(60)
        return super().read()


class Bookkeeper:
    """Takes windows; ``answers`` says up to which number they are on disk then, or does not."""

    def __init__(self, answers: bool = True) -> None:
        self.answers = answers
        self.calls: list[tuple[int, ...]] = []
        self.windows: dict[int, Window] = {}

    async def take(self, replica: str, windows: Sequence[Window]) -> int:
        self.calls.append(tuple(window.number for window in windows))
        if not self.answers:
            await asyncio.Event().wait()
        self.windows.update({window.number: window for window in windows})
        return windows[-1].number if windows else -1

    @property
    def energy_uj(self) -> int:
        return sum(window.measurement.energy_uj or 0 for window in self.windows.values())


def metered(meter: Meter, bookkeeper: Bookkeeper, **waits: float) -> Metering:
    engine = EngineProcess(EngineSpec(command=("server",)), name="m@full", host="127.0.0.1")
    return Metering(meter, engine, replica="r", variant="m@full", send=bookkeeper.take, **waits)


def counting(counter: Counter[int]) -> Meter:
    return CountingMeter(counter)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - a thread sets no events
            await asyncio.sleep(0.005)


async def test_the_meter_is_read_by_the_clock_while_the_bookkeeper_does_not_answer() -> None:
    counter, bookkeeper = Steps(), Bookkeeper(answers=False)
    metering = metered(counting(counter), bookkeeper)
    metering.start(0.01)
    await until(lambda: counter.read_times > 20)
    assert len(bookkeeper.calls) == 1
    bookkeeper.answers = True
    await metering.close()
    assert bookkeeper.energy_uj == (counter.read_times - 1) * 1_000_000


async def test_a_call_that_is_not_answered_in_time_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    bookkeeper = Bookkeeper(answers=False)
    metering = metered(counting(Steps()), bookkeeper, send_s=0.05)
    metering.start(0.01)
    await until(lambda: len(bookkeeper.calls) == 3)
    assert [call[0] for call in bookkeeper.calls] == [0, 0, 0]
    assert "windows wait for the bookkeeper: TimeoutError" in caplog.messages[0]
    bookkeeper.answers = True
    await until(lambda: 0 in bookkeeper.windows)
    await metering.close()


async def test_after_a_long_silence_windows_are_handed_over_in_parts_the_oldest_first() -> None:
    counter, bookkeeper = Steps(), Bookkeeper(answers=False)
    metering = metered(counting(counter), bookkeeper)
    metering.start(0.001)
    await until(lambda: counter.read_times > 300)
    bookkeeper.answers = True
    await metering.close()
    assert max(map(len, bookkeeper.calls)) == 120
    assert sorted(bookkeeper.windows) == list(range(counter.read_times - 1))
    firsts = [call[0] for call in bookkeeper.calls]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("counter", [Steps(fails_at=3), Steps(differs_not_at=3)], ids=["reading", "difference"])
async def test_a_meter_that_raises_is_asked_again_and_nothing_is_missing(
    counter: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    bookkeeper = Bookkeeper()
    metering = metered(counting(counter), bookkeeper)
    metering.start(0.01)
    await until(lambda: counter.read_times > 5)
    await metering.close()
    used = [window.measurement.energy_uj for window in bookkeeper.windows.values()]
    assert used[:3] == [1_000_000, 2_000_000, 1_000_000]
    (said,) = [record for record in caplog.records if record.exc_info]
    assert said.message == "r: its meter was not read"


async def test_a_recording_that_ends_leaves_windows_whose_energy_is_unknown() -> None:
    bookkeeper = Bookkeeper()
    metering = metered(ReplayMeter([(0.0, 0), (1.0, 5)]), bookkeeper)
    metering.start(0.01)
    await until(lambda: len(bookkeeper.windows) > 2)
    await metering.close()
    energies = [window.measurement.energy_uj for window in bookkeeper.windows.values()]
    assert energies == [5, *[None] * (len(energies) - 1)]


async def test_a_reading_that_is_under_way_when_the_replica_ends_is_kept() -> None:
    counter, bookkeeper = Held(), Bookkeeper()
    metering = metered(counting(counter), bookkeeper)
    counter.free.clear()
    counter.reading.clear()
    metering.start(0.01)
    await until(counter.reading.is_set)
    closing = asyncio.create_task(metering.close())
    await asyncio.sleep(0.05)
    counter.free.set()
    await closing
    assert [window.last for window in bookkeeper.windows.values()] == [False, True]
    assert bookkeeper.energy_uj == 2_000_000

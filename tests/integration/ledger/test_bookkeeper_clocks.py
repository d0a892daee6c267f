"""The machine's clock jumps: nothing is lost, nothing waits for the hour to come round again."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from time import time

import pytest
from bookkeeper_process import BookkeeperProcess, running_bookkeeper
from bookkeeper_tellers import MeteredEngine, TellingGateway, assert_booked_once, end_well
from economizer.energy.types import Window
from economizer.ledger.bookkeeper import Reply, Seen
from economizer.ledger.types import Report
from msgspec.structs import replace


class SteppingClock:
    """Gateways and engines on a machine whose clock is stepped together with the bookkeeper's."""

    def __init__(self, bookkeeper: BookkeeperProcess) -> None:
        self._bookkeeper = bookkeeper
        self._step_s = 0.0
        self._stepped_s = float("inf")

    async def step(self, seconds: float) -> None:
        self._step_s, self._stepped_s = seconds, time()
        await self._bookkeeper.step_clock(seconds)

    async def report(self, report: Report, seen: Seen) -> Reply:
        return await self._bookkeeper.report(self._shown(report), seen)

    async def windows(self, engine: str, windows: Sequence[Window]) -> int:
        return await self._bookkeeper.windows(engine, [self._shown_window(window) for window in windows])

    def _shown(self, report: Report) -> Report:
        step_s = self._step_s
        if report.now_s < self._stepped_s:
            return report
        return replace(
            report,
            now_s=report.now_s + step_s,
            slices=tuple(
                replace(one, began_s=one.began_s + step_s, ended_s=one.ended_s + step_s) for one in report.slices
            ),
            bookings=tuple(
                replace(one, began_s=one.began_s + step_s, ended_s=one.ended_s + step_s) for one in report.bookings
            ),
        )

    def _shown_window(self, window: Window) -> Window:
        if window.ended_s < self._stepped_s:
            return window
        return replace(window, began_s=window.began_s + self._step_s, ended_s=window.ended_s + self._step_s)


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0, -20.0])
async def test_a_clock_that_is_stepped_loses_nothing_and_makes_no_gap(tmp_path: Path, seconds: float) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    with running_bookkeeper(url, tmp_path) as bookkeeper:
        machine = SteppingClock(bookkeeper)
        engines = [MeteredEngine(machine, f"engine-{number}", 4 + number) for number in range(2)]
        gateways = [TellingGateway(machine, 4 + number, ["engine-0", "engine-1"]) for number in range(2)]
        asking = [asyncio.create_task(gateway.ask(1.5)) for gateway in gateways]
        await asyncio.sleep(0.75)
        await machine.step(seconds)
        await asyncio.gather(*asking)
        await end_well(gateways, engines)
    assert_booked_once(url, gateways, engines)

"""An engine's windows: read off its meter once a period, kept until the bookkeeper has them on disk."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import islice
from time import time

from economizer.energy.meter import Meter
from economizer.energy.types import Window, WindowState
from economizer.engine.process import EngineProcess
from economizer.engine.scrape import EngineLoad

_KEY = "engine"
_KEPT_MAX = 3600  # windows; beyond it the oldest are dropped, and their numbers are missing in the books
_CALL_MAX = 120  # windows in one call, the oldest first
_SEND_S = 5.0  # for the bookkeeper's answer to one
_CLOSE_S = 2.0  # for all of them at the end

logger = logging.getLogger("economizer.engine")

Send = Callable[[str, Sequence[Window]], Awaitable[int]]


class Metering:
    """Meters one engine from now on. ``send`` takes windows and answers up to which number they are on disk."""

    def __init__(
        self, meter: Meter, engine: EngineProcess, *, replica: str, variant: str, send: Send, send_s: float = _SEND_S
    ) -> None:
        self._meter = meter
        self._engine = engine
        self._replica = replica
        self._variant = variant
        self._send = send
        self._send_s = send_s
        self._number = 0
        self._kept: deque[Window] = deque(maxlen=_KEPT_MAX)
        self._before = EngineLoad()
        self._state = _state(engine)
        self._read_one = asyncio.Event()
        self._closing = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        logger.info("%s is metered by %s", replica, meter.describe())
        meter.begin(_KEY)

    def start(self, period_s: float) -> None:
        """Read the meter every ``period_s`` until closed, whether its windows are taken or not."""
        self._reading = asyncio.create_task(self._keep_reading(period_s))
        self._sending = asyncio.create_task(self._keep_sending())

    async def close(self) -> None:
        """Read the meter for the last time and hand over what is kept, as far as the bookkeeper still takes it."""
        self._closing.set()
        if self._reading is not None:
            await self._reading  # not cancelled: a meter that was read has begun its next window
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait({self._sending})
        await self._try_to_read(last=True)
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._hand_over_all()
        except TimeoutError:
            logger.warning("%s: the bookkeeper did not take the last windows", self._replica)
        self._meter.close()

    async def _keep_reading(self, period_s: float) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            due_s = max(due_s + period_s, loop.time())
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due_s):
                    await self._closing.wait()
                return
            await self._try_to_read(last=False)

    async def _keep_sending(self) -> None:
        while True:
            await self._read_one.wait()
            self._read_one.clear()
            await self._hand_over(tuple(islice(self._kept, _CALL_MAX)))

    async def _try_to_read(self, *, last: bool) -> None:
        try:
            await self._read(last=last)
        except Exception:  # whatever a meter raises, it is asked again: the next window is as long as both
            logger.exception("%s: its meter was not read", self._replica)

    async def _read(self, *, last: bool) -> None:
        """One window more. It counts as what its engine was at when it began."""
        # In a thread: /proc takes milliseconds on a busy machine, a counter of a failing GPU longer.
        measurement = await asyncio.to_thread(self._meter.end if last else self._meter.lap, _KEY)
        state, self._state = self._state, _state(self._engine)
        before, latest = self._before, self._engine.last_load
        if latest.decode_tokens is not None:  # else it did not answer, and the growth shows in a later window
            self._before = latest
        ended_s = time()
        window = Window(
            engine=self._replica,
            number=self._number,
            variant=self._variant,
            began_s=ended_s - measurement.seconds,
            ended_s=ended_s,
            state=state,
            measurement=measurement,
            steps=_growth(before.steps, latest.steps),
            prefill_tokens=_growth(before.prefill_tokens, latest.prefill_tokens),
            decode_tokens=_growth(before.decode_tokens, latest.decode_tokens),
            last=last,
        )
        self._number += 1
        self._kept.append(window)
        self._read_one.set()

    async def _hand_over_all(self) -> None:
        windows = tuple(self._kept)
        for first in range(0, len(windows), _CALL_MAX):
            await self._hand_over(windows[first : first + _CALL_MAX])

    async def _hand_over(self, windows: Sequence[Window]) -> None:
        """Send windows, and forget those that are on disk."""
        try:
            async with asyncio.timeout(self._send_s):
                kept = await self._send(self._replica, windows)
            while self._kept and self._kept[0].number <= kept:
                self._kept.popleft()
        except Exception as error:  # noqa: BLE001 - Ray and Serve raise many things while the bookkeeper is replaced
            problem = str(error) or type(error).__name__
            logger.warning("%s: %d windows wait for the bookkeeper: %s", self._replica, len(self._kept), problem)


def _state(engine: EngineProcess) -> WindowState:
    return "starting" if engine.state in ("starting", "restarting") else "serving"


def _growth(before: int | None, now: int | None) -> int | None:
    """How much a counter grew; an engine that was started anew begins at 0."""
    if now is None:
        return None
    return now - before if before is not None and now >= before else 0

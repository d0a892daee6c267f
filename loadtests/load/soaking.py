"""A soak under way: load is sent, engines are killed, samples are taken, until the time is up or somebody ends it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

from load.accounting import FATES, fate
from load.growth import Sample
from load.sending import Target, replay
from load.types import Outcome, Planned
from load.watching import Watch

_POLL_S = 0.5
_RECOVERY_S_MAX = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rhythm:
    """Every how many seconds something is done: a sample, a line of progress, an engine's end (None: never)."""

    sample_s: float
    progress_s: float
    kill_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """An engine's end, seconds after the start, and how long it took until all engines were ready again (None: never
    seen)."""

    at_s: float
    recovered_s: float | None


@dataclass(kw_only=True, slots=True)
class Soaked:
    """What was measured. ``series`` are the samples of each quantity; ``all_back`` says whether every engine was ready
    again after the load, None where nobody waited for it."""

    seconds: float = 0.0
    interrupted: bool = False
    all_back: bool | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    series: dict[str, list[Sample]] = field(default_factory=dict)
    kills: list[Kill] = field(default_factory=list)

    def add(self, at_s: float, sample: Mapping[str, float]) -> None:
        """Take in a sample."""
        for name, value in sample.items():
            self.series.setdefault(name, []).append((at_s, value))


class Soak:
    """One run of it on a running fleet."""

    def __init__(
        self,
        watch: Watch,
        rhythm: Rhythm,
        *,
        seconds: float,
        seed: int,
        on_outcome: Callable[[Outcome], None],
        on_sample: Callable[[float, Mapping[str, float]], None],
        say: Callable[[str], None],
    ) -> None:
        self._watch = watch
        self._rhythm = rhythm
        self._seconds = seconds
        self._draw = random.Random(f"kills {seed}")
        self._on_outcome = on_outcome
        self._on_sample = on_sample
        self._say = say
        self._sent = 0
        self._started_s = 0.0
        self._stop = asyncio.Event()
        self.soaked = Soaked()

    def stop(self) -> None:
        """End it now; what was measured so far is kept."""
        self.soaked.interrupted = True
        self._stop.set()

    async def run(self, plan: Sequence[Planned], target: Target, leaves_s: Mapping[int, float]) -> Soaked:
        """Until every request has ended and every engine is back, or until ``stop``."""
        self._started_s = monotonic()
        besides = [asyncio.create_task(each) for each in (self._sample(), self._progress(), self._kill())]
        load = asyncio.create_task(
            replay(plan, target, on_sent=self._was_sent, on_outcome=self._ended, leaves_s=leaves_s)
        )
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({load, stopped, *besides}, return_when=asyncio.FIRST_COMPLETED)
            for task in besides:
                if task.done():
                    task.result()  # they have no end of their own: one that ended failed
        finally:
            await _end(load, stopped, *besides)
        self.soaked.seconds = self._now_s()
        if load.done() and not load.cancelled():
            load.result()
        if not self.soaked.interrupted:
            self.soaked.all_back = (await self._recovery_s(_RECOVERY_S_MAX)) is not None
        return self.soaked

    def _now_s(self) -> float:
        return monotonic() - self._started_s

    def _was_sent(self, planned: Planned, late_s: float) -> None:
        self._sent += 1

    def _ended(self, outcome: Outcome) -> None:
        self.soaked.outcomes.append(outcome)
        self._on_outcome(outcome)

    async def _sample(self) -> None:
        while True:
            at_s, sample = self._now_s(), await asyncio.to_thread(self._watch.sample)
            self.soaked.add(at_s, sample)
            self._on_sample(at_s, sample)
            await asyncio.sleep(max(0.0, at_s + self._rhythm.sample_s - self._now_s()))

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(self._rhythm.progress_s)
            counted = Counter(fate(outcome) for outcome in self.soaked.outcomes)
            now_s = self._now_s()
            left_min = max(0.0, self._seconds - now_s) / 60
            fates = ", ".join(f"{counted[name]} {name}" for name in FATES)
            self._say(
                f"{now_s / 60:.1f} min, {left_min:.1f} min left: {self._sent} sent, {fates}; "
                f"{len(self.soaked.kills)} engines killed"
            )

    async def _kill(self) -> None:
        """One engine at a time, and the next one once all are back."""
        if self._rhythm.kill_s is None:
            await asyncio.Event().wait()
            return
        while True:
            await asyncio.sleep(self._draw.uniform(0.5, 1.5) * self._rhythm.kill_s)
            if self._seconds - self._now_s() < self._rhythm.kill_s / 2:
                await asyncio.Event().wait()  # what is killed now would come back after the load
            engines = await asyncio.to_thread(self._watch.engines)
            if not engines or (await self._recovery_s(_RECOVERY_S_MAX)) is None:
                continue
            at_s = self._now_s()
            with suppress(ProcessLookupError):
                os.kill(self._draw.choice(engines), signal.SIGKILL)
            self.soaked.kills.append(Kill(at_s=at_s, recovered_s=None))
            recovered_s = await self._until_back(len(engines), at_s)
            self.soaked.kills[-1] = Kill(at_s=at_s, recovered_s=recovered_s)

    async def _until_back(self, engines: int, killed_s: float) -> float | None:
        """Seconds until as many engines run as before, and all report that they are ready; None where they do not."""
        await asyncio.sleep(_POLL_S)
        while self._now_s() - killed_s < _RECOVERY_S_MAX:
            running = await asyncio.to_thread(self._watch.engines)
            if len(running) >= engines and await self._all_ready():
                return self._now_s() - killed_s
            await asyncio.sleep(_POLL_S)
        return None

    async def _recovery_s(self, wait_s_max: float) -> float | None:
        """How long it took until all engines report that they are ready; None where they did not."""
        began_s = self._now_s()
        while not await self._all_ready():
            if self._now_s() - began_s > wait_s_max:
                return None
            await asyncio.sleep(_POLL_S)
        return self._now_s() - began_s

    async def _all_ready(self) -> bool:
        states = await asyncio.to_thread(self._watch.ready)
        return bool(states) and set(states.values()) == {"ready"}


async def _end(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

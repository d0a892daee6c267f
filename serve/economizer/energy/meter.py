"""Meters: what an engine used between two moments. Hardware is read by a Counter; begin, lap and end live here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Generic, Protocol, TypeVar

from economizer.energy.types import UJ_PER_J, Measurement
from economizer.errors import require

ReadingT = TypeVar("ReadingT")


class Meter(Protocol):
    """Measures spans, each under a key; several may be open at once.

    Whatever the hardware does, no method raises for it: a span that could not be measured has ``energy_uj`` None and a
    note, and the next one is tried anew.
    """

    def begin(self, key: str) -> None:
        """Begin a span. Raises ValueError where the key is open."""

    def lap(self, key: str) -> Measurement:
        """End a span and begin the next at the same reading, so that nothing is lost between. ValueError as ``end``."""

    def end(self, key: str) -> Measurement:
        """End a span. Raises ValueError where the key is not open."""

    def describe(self) -> str:
        """What is read, and where its figures are from, in a line for logs."""

    def close(self) -> None:
        """Let go of the hardware and forget all open spans."""


class CounterFailed(Exception):
    """A counter could not be read, or two readings of it do not make a difference. The message is a note's text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Used:
    """What was used between two readings, as in Measurement; ``uncertainty`` is that of a long span."""

    energy_uj: int
    idle_uj: int = 0
    uncertainty: float


class Counter(Protocol[ReadingT]):
    """Something that only counts up.

    ``method`` names it in measurements. It moves in steps of ``tick_s``: up to one step of a span's energy is counted
    in its neighbour, which adds ``tick_s / seconds`` to the uncertainty of a span, and nothing to that of a sum.
    """

    @property
    def method(self) -> str: ...
    @property
    def tick_s(self) -> float: ...
    def read(self) -> ReadingT:
        """Where the counter stands, never None. Raises CounterFailed."""

    def used(self, before: ReadingT, after: ReadingT, seconds: float) -> Used:
        """What was used between two readings. Raises CounterFailed where they do not say."""

    def describe(self) -> str: ...
    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Moment(Generic[ReadingT]):
    """A reading and when it was taken. ``reading`` is None where it failed, and ``failure`` says why."""

    at_s: float
    reading: ReadingT | None
    failure: str = ""


class CountingMeter(Generic[ReadingT]):
    """A Meter over a Counter. Seconds are on ``clock``, by default one that never goes back."""

    def __init__(self, counter: Counter[ReadingT], clock: Callable[[], float] = monotonic) -> None:
        self._counter = counter
        self._clock = clock
        self._open: dict[str, _Moment[ReadingT]] = {}

    def begin(self, key: str) -> None:
        require(key not in self._open, "key", key, "is open already")
        self._open[key] = self._now()

    def lap(self, key: str) -> Measurement:
        require(key in self._open, "key", key, "is not open")
        after = self._now()
        measurement = self._between(self._open[key], after)
        self._open[key] = after  # only now: where the difference raises, the next span is as long as both
        return measurement

    def end(self, key: str) -> Measurement:
        require(key in self._open, "key", key, "is not open")
        measurement = self._between(self._open[key], self._now())
        del self._open[key]
        return measurement

    def describe(self) -> str:
        return self._counter.describe()

    def close(self) -> None:
        self._open.clear()
        self._counter.close()

    def _now(self) -> _Moment[ReadingT]:
        try:
            reading = self._counter.read()
        except CounterFailed as failed:
            return _Moment(at_s=self._clock(), reading=None, failure=str(failed))
        return _Moment(at_s=self._clock(), reading=reading)

    def _between(self, before: _Moment[ReadingT], after: _Moment[ReadingT]) -> Measurement:
        counter, seconds = self._counter, after.at_s - before.at_s
        try:
            if before.reading is None or after.reading is None:
                raise CounterFailed(before.failure or after.failure)
            used = counter.used(before.reading, after.reading, seconds)
        except CounterFailed as failed:
            return Measurement(seconds=seconds, energy_uj=None, method=counter.method, note=str(failed))
        return Measurement(
            seconds=seconds,
            energy_uj=used.energy_uj,
            idle_uj=min(used.idle_uj, used.energy_uj),
            method=counter.method,
            uncertainty=used.uncertainty + counter.tick_s / seconds if seconds else None,
        )


class EmptyMeter(CountingMeter[float]):
    """Measures seconds, and no energy, for the reason in ``note``."""

    def __init__(self, note: str) -> None:
        super().__init__(_Nothing(note))


class _Nothing:
    method = "none"
    tick_s = 0.0

    def __init__(self, note: str) -> None:
        self._note = note

    def read(self) -> float:
        raise CounterFailed(self._note)

    def used(self, before: float, after: float, seconds: float) -> Used:
        raise CounterFailed(self._note)

    def describe(self) -> str:
        return f"no meter: {self._note}"

    def close(self) -> None:
        pass


class ReplayMeter(CountingMeter[int]):
    """Replays a recording: each begin, lap and end takes the next of ``readings``, whatever the key.

    A reading is (seconds, microjoules) since the recording began; microjoules of None are a reading that failed. After
    the last one all measurements are unknown and take no time. ``idle_w`` watts count as idle. Raises ValueError where
    the recording goes back.
    """

    def __init__(self, readings: Sequence[tuple[float, int | None]], *, idle_w: float = 0.0) -> None:
        recording = _Recording(readings, idle_w)
        super().__init__(recording, lambda: recording.now_s)


class _Recording:
    method = "replay"
    tick_s = 0.0

    def __init__(self, readings: Sequence[tuple[float, int | None]], idle_w: float) -> None:
        for name, values in (
            ("seconds", [seconds for seconds, _ in readings]),
            ("energy_uj", [energy_uj for _, energy_uj in readings if energy_uj is not None]),
        ):
            require(sorted(values) == values, name, values, "must not go back")
        self._count = len(readings)
        self._next = iter(readings)
        self._idle_w = idle_w
        self.now_s = readings[0][0] if readings else 0.0

    def read(self) -> int:
        try:
            self.now_s, energy_uj = next(self._next)
        except StopIteration:
            raise CounterFailed("the recording has ended") from None
        if energy_uj is None:
            raise CounterFailed("the recording has no energy here")
        return energy_uj

    def used(self, before: int, after: int, seconds: float) -> Used:
        return Used(energy_uj=after - before, idle_uj=round(self._idle_w * seconds * UJ_PER_J), uncertainty=0.0)

    def describe(self) -> str:
        return f"a recording of {self._count} readings"

    def close(self) -> None:
        pass

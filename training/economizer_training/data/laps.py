"""What a run uses, span by span."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread

from economizer.energy.meter import Meter

from economizer_training.data.card import Span

_EVERY_S = 1.0


class Laps:
    """Spans that join: each begins where the one before ended."""

    def __init__(self, meter: Meter, lock: Lock) -> None:
        self._meter = meter
        self._lock = lock
        self.spans: list[Span] = []
        meter.begin("span")

    def lap(self, name: str) -> None:
        """Ends a span and begins the next."""
        with self._lock:
            self.spans.append(Span.of(name, self._meter.lap("span")))


@contextmanager
def lapped(meter: Meter) -> Iterator[Laps]:
    """Laps of a meter that is watched."""
    with watched(meter) as lock:
        yield Laps(meter, lock)


@contextmanager
def watched(meter: Meter) -> Iterator[Lock]:
    """Reads a meter every second: nobody waits for Ray's workers, so that the CPU time of one that ends is known no
    longer than its last reading. Whoever else reads the meter holds the lock. Closes the meter.
    """
    lock, ended = Lock(), Event()
    meter.begin("watch")

    def watch() -> None:
        while not ended.wait(_EVERY_S):
            with lock:
                meter.lap("watch")

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        ended.set()
        thread.join()
        meter.close()

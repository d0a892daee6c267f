"""What a fleet takes of the machine, read from outside, by the same instrument for every fleet: its CPU time.

Every second a thread reads how much CPU time all processes below the fleet's roots have used, how much of it was the
engines', and how many engines there are. The caller itself, and so the client, is in none of it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic

from economizer.energy.cpu_time import CpuTime
from economizer.engine.guard import descendants
from processes import ProcessTree, command_line

from load.spending import Reading

_GUARD = "guard.py"
_ENGINES, _REST = "engines", "rest"
_EVERY_S = 1.0


class FleetMeter:
    """Reads from its making until ``end()``. ``engine`` is what an engine's command line has in it."""

    def __init__(self, roots: Sequence[int], *, engine: str, every_s: float = _EVERY_S) -> None:
        self._totals = [CpuTime(root) for root in roots]
        self._trees = [ProcessTree(root, self._group) for root in roots]
        self._roots = tuple(roots)
        self._engine = engine
        self._every_s = every_s
        self._readings: list[Reading] = []
        self._latest_s = self._gone_s = 0.0  # CPU time of engines, and of those of them that have ended
        self._failure: Exception | None = None
        self._ended = threading.Event()
        self._started_s = monotonic()
        self._read()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> tuple[Reading, ...]:
        """All readings, from one at the start to one now. Raises CounterFailed where the fleet is gone."""
        self._ended.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        self._read()
        return tuple(self._readings)

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self._read()
            except Exception as failure:  # noqa: BLE001 - it is raised by end(), where somebody can act on it
                self._failure = failure
                return

    def _read(self) -> None:
        there_s = sum(tree.cpu_s().get(_ENGINES, 0.0) for tree in self._trees)
        self._gone_s += max(0.0, self._latest_s - there_s)
        self._latest_s = there_s
        self._readings.append(
            Reading(
                cpu_s=sum(total.seconds() for total in self._totals),
                engines_cpu_s=self._gone_s + there_s,
                engines=sum(self._is_engine(pid) for root in self._roots for pid in descendants(root)),
                at_s=monotonic() - self._started_s,
            )
        )

    def _group(self, words: str) -> str:
        return _ENGINES if self._engine in words and _GUARD not in words else _REST

    def _is_engine(self, pid: int) -> bool:
        try:
            return self._group(command_line(pid)) == _ENGINES
        except OSError:  # it ended since it was listed
            return False

"""Joules and CPU seconds of one server's processes and of the engines behind it, by the gateway's own meter for all.

The meter is the one that an engine here would get (``economizer.energy``): RAPL where it can be read, else CPU time
times stated watts. Only what work adds is counted: no cores are kept for anybody, so nothing is idle.
"""

from __future__ import annotations

from collections.abc import Sequence

from economizer.energy.choose import MeterSettings, meter_for
from economizer.energy.cpu_time import CpuTime
from economizer.energy.types import Measurement

from load.passes import Took

_SPAN = "pass"


class _Metered:
    """All that runs below one process."""

    def __init__(self, root: int) -> None:
        self._cpu_time = CpuTime(root)
        self._meter = meter_for(MeterSettings(), gpus=(), cores=0.0, idle_w=None, cpu_time=self._cpu_time)
        self._began_s = 0.0

    def begin(self) -> None:
        self._began_s = self._cpu_time.seconds()
        self._meter.begin(_SPAN)

    def end(self) -> tuple[Measurement, float]:
        """What the meter read, and CPU seconds."""
        return self._meter.end(_SPAN), self._cpu_time.seconds() - self._began_s

    def describe(self) -> str:
        return self._meter.describe()


class Instrument:
    """Measures spans of a server and of all engines.

    ``root`` is the process that the server hangs below, None for no server at all. ``guards`` have an engine each below
    them; ``inside`` says that they hang below ``root``, too, so that what they take is not the server's own.
    """

    def __init__(self, root: int | None, guards: Sequence[int], *, inside: bool) -> None:
        self._server = None if root is None else _Metered(root)
        self._engines = [_Metered(guard) for guard in guards]
        self._inside = inside

    def begin(self) -> None:
        """Begin a span."""
        for metered in self._all():
            metered.begin()

    def end(self, idle_mw: float | None = None) -> Took:
        """What the span took; ``idle_mw`` is what the server takes without a request, above a waiting core."""
        engines = [metered.end() for metered in self._engines]
        engines_uj = _sum([measured.active_uj for measured, _ in engines])
        engines_cpu_s = sum(cpu_s for _, cpu_s in engines)
        seconds, method = max(measured.seconds for measured, _ in engines), engines[0][0].method
        if self._server is None:
            return Took(seconds=seconds, own_uj=0, idle_uj=0, own_cpu_s=0.0, engines_uj=engines_uj, method=method)
        measured, cpu_s = self._server.end()
        own_uj = measured.active_uj
        if self._inside:
            own_uj = None if own_uj is None or engines_uj is None else max(0, own_uj - engines_uj)
            cpu_s = max(0.0, cpu_s - engines_cpu_s)
        return Took(
            seconds=seconds,
            own_uj=own_uj,
            idle_uj=None if idle_mw is None else idle_mw * 1e3 * seconds,
            own_cpu_s=cpu_s,
            engines_uj=engines_uj,
            method=method,
        )

    def describe(self) -> str:
        """The meter, in a line."""
        return self._engines[0].describe()

    def _all(self) -> list[_Metered]:
        return [*self._engines, *([] if self._server is None else [self._server])]


def _sum(amounts: Sequence[int | None]) -> int | None:
    """None where one is not known."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None

"""Joules and dollars out of what a meter of CPU time read, on two bases. Pure.

``usage`` is what the work took: CPU seconds, times what a working core draws above a waiting one, or times what a core
costs. ``allocation`` is what was kept for the fleet: the same joules and, for every core kept, what it draws anyway;
dollars for every core kept. Kept are an engine's cores from its start to its end, and for all that is no engine (a
gateway, its proxy, Ray) what it is booked with or what it used, whichever is more.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from economizer.energy.cpu_power import CpuPower
from economizer.variants.price import Price
from msgspec import Struct

from load.statistics import Floats

_J_PER_KWH = 3.6e6


class Reading(Struct, frozen=True, kw_only=True):
    """CPU seconds of the whole fleet, and of its engines, counted until ``at_s`` seconds after the measurement's start.

    ``engines`` is how many engines are there, those that start or end among them.
    """

    at_s: float
    cpu_s: float
    engines_cpu_s: float
    engines: int


class Machine(Struct, frozen=True, kw_only=True):
    """What seconds are worth, and how many cores are kept for an engine and for all that is no engine.

    ``usd_per_core_hour`` is the machine's rate; ``usd_per_j`` is paid for electricity on top, 0 where it is included.
    """

    active_w: float
    idle_w: float
    usd_per_core_hour: float
    usd_per_j: float = 0.0
    cores_per_engine: float
    source: str

    @classmethod
    def of(cls, power: CpuPower, price: Price, cores: float) -> Machine:
        """``price`` is of a replica that takes so many ``cores``."""
        return cls(
            active_w=power.active_w,
            idle_w=power.idle_w,
            usd_per_core_hour=price.rate_usd_per_hour / cores,
            usd_per_j=(price.tariff_usd_per_kwh or 0.0) * price.pue / _J_PER_KWH,
            cores_per_engine=cores,
            source=power.source,
        )


class Spending(Struct, frozen=True, kw_only=True):
    """What a span took. ``idle_j`` is the part of ``allocation_j`` that kept cores draw anyway.

    ``gateway_j`` is the part of ``usage_j`` of all that is no engine.
    """

    seconds: float
    cpu_s: float
    engines_cpu_s: float
    kept_core_s: float
    usage_j: float
    gateway_j: float
    idle_j: float
    usage_usd: float
    allocation_usd: float

    @property
    def allocation_j(self) -> float:
        """With idle."""
        return self.usage_j + self.idle_j


def spending(readings: Sequence[Reading], machine: Machine, gateway_cores: float) -> Spending:
    """What the whole span of the readings took; ``gateway_cores`` are booked for what is no engine."""
    first, last = readings[0], readings[-1]
    seconds, cpu_s = last.at_s - first.at_s, last.cpu_s - first.cpu_s
    # The two are read a moment after each other, so that engines alone can seem to have used more than the whole.
    engines_cpu_s = min(cpu_s, last.engines_cpu_s - first.engines_cpu_s)
    kept_s = engine_seconds(readings) * machine.cores_per_engine + max(gateway_cores * seconds, cpu_s - engines_cpu_s)
    usage_j = (machine.active_w - machine.idle_w) * cpu_s
    idle_j = machine.idle_w * kept_s
    usd_per_core_s = machine.usd_per_core_hour / 3600
    return Spending(
        seconds=seconds,
        cpu_s=cpu_s,
        engines_cpu_s=engines_cpu_s,
        kept_core_s=kept_s,
        usage_j=usage_j,
        gateway_j=usage_j * (1 - engines_cpu_s / cpu_s) if cpu_s else 0.0,
        idle_j=idle_j,
        usage_usd=usd_per_core_s * cpu_s + machine.usd_per_j * usage_j,
        allocation_usd=usd_per_core_s * kept_s + machine.usd_per_j * (usage_j + idle_j),
    )


def engine_seconds(readings: Sequence[Reading]) -> float:
    """Seconds of engines that were there: one engine for ten seconds, or ten for one."""
    pairs = pairwise(readings)
    return sum((after.at_s - before.at_s) * (before.engines + after.engines) / 2 for before, after in pairs)


def cut(readings: Sequence[Reading], edges_s: Sequence[float]) -> list[tuple[Reading, ...]]:
    """The readings between every two of the ``edges_s``, with one at each edge that lies on the line between two."""
    at_s: Floats = np.array([each.at_s for each in readings])
    spans = []
    for begin, end in pairwise(edges_s):
        inside = [each for each in readings if begin < each.at_s < end]
        spans.append((_at(readings, at_s, begin), *inside, _at(readings, at_s, end)))
    return spans


def _at(readings: Sequence[Reading], at_s: Floats, moment_s: float) -> Reading:
    nearest = readings[min(int(np.searchsorted(at_s, moment_s)), len(readings) - 1)]
    return Reading(
        at_s=moment_s,
        cpu_s=float(np.interp(moment_s, at_s, [each.cpu_s for each in readings])),
        engines_cpu_s=float(np.interp(moment_s, at_s, [each.engines_cpu_s for each in readings])),
        engines=nearest.engines,
    )

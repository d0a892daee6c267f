"""Energy of an engine on a CPU that counts its own (RAPL): a share of what the machine's packages and memory used."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from economizer.energy.cpu_time import PROC, TICK_S, CpuTime
from economizer.energy.meter import CounterFailed, CountingMeter, Used
from economizer.energy.types import UJ_PER_J
from economizer.errors import require

POWERCAP = Path("/sys/class/powercap")

_ZONE_W_MAX = 1000.0  # no package draws more; at that it would take minutes to wrap
_LOWEST_OVER_S = 0.5  # the lowest power seen is taken of spans from here on; over shorter ones it is noise
_COUNTER_UNCERTAINTY = 0.05
_SHARING_UNCERTAINTY = 0.3  # a CPU second of one program draws this much more or less than one of another


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reading:
    zones_uj: tuple[int, ...]
    machine_s: float
    engine_s: float


class RaplMeter(CountingMeter[_Reading]):
    """The packages' and memories' energy by the kernel's powercap counters, of which the engine has

    - of the machine's idle energy the share of its ``cores`` among all logical CPUs,
    - of the rest the share of its CPU time in the machine's.

    The machine's idle power is ``idle_w`` or the lowest seen, whichever is less; None is not known. Raises
    CounterFailed where no package's counter can be read.
    """

    def __init__(
        self,
        *,
        cores: float,
        idle_w: float | None,
        powercap: Path = POWERCAP,
        proc: Path = PROC,
        cpu_time: CpuTime | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        require(cores >= 0, "cores", cores, "must be 0 or more")
        super().__init__(_Rapl(cores, idle_w, powercap, proc, cpu_time or CpuTime(proc=proc)), clock)


class _Rapl:
    method = "rapl"
    tick_s = TICK_S

    def __init__(self, cores: float, idle_w: float | None, powercap: Path, proc: Path, cpu_time: CpuTime) -> None:
        self._zones = _zones(powercap)
        self._ranges_uj = tuple(_number(zone / "max_energy_range_uj") for zone in self._zones)
        self._stat = proc / "stat"
        self._cores_share = min(1.0, cores / logical_cpus(proc))
        self._idle_w = idle_w
        self._cpu_time = cpu_time
        self.read()

    def read(self) -> _Reading:
        return _Reading(
            zones_uj=tuple(_number(zone / "energy_uj") for zone in self._zones),
            machine_s=self._machine_s(),
            engine_s=self._cpu_time.seconds(),
        )

    def used(self, before: _Reading, after: _Reading, seconds: float) -> Used:
        if seconds * _ZONE_W_MAX * UJ_PER_J > min(self._ranges_uj):
            raise CounterFailed(f"{seconds:.0f} s are too long: the RAPL counters may have wrapped more than once")
        grown_uj = (
            end - start if end >= start else end - start + wraps_at
            for start, end, wraps_at in zip(before.zones_uj, after.zones_uj, self._ranges_uj, strict=True)
        )
        machine_uj = sum(grown_uj)
        idle_uj = min(machine_uj, round(self._machine_idle_w(machine_uj, seconds) * seconds * UJ_PER_J))
        active_uj = machine_uj - idle_uj
        machine_s, engine_s = after.machine_s - before.machine_s, after.engine_s - before.engine_s
        share = min(1.0, engine_s / machine_s) if machine_s > 0 else 0.0
        engine_idle_uj = round(idle_uj * self._cores_share)
        engine_uj = engine_idle_uj + round(active_uj * share)
        shared = (1 - share) * active_uj / machine_uj if machine_uj else 0.0
        return Used(
            energy_uj=engine_uj,
            idle_uj=engine_idle_uj,
            uncertainty=_COUNTER_UNCERTAINTY + _SHARING_UNCERTAINTY * shared,
        )

    def describe(self) -> str:
        idle = "the lowest power seen" if self._idle_w is None else f"at most {self._idle_w:.3g} W"
        zones = ", ".join(zone.name for zone in self._zones)
        return f"RAPL of {zones}; {self._cores_share:.3g} of its idle power ({idle}), the rest by CPU time"

    def close(self) -> None:
        pass

    def _machine_idle_w(self, machine_uj: int, seconds: float) -> float:
        if seconds >= _LOWEST_OVER_S:
            power_w = machine_uj / UJ_PER_J / seconds
            self._idle_w = power_w if self._idle_w is None else min(self._idle_w, power_w)
        return self._idle_w or 0.0

    def _machine_s(self) -> float:
        """All CPUs' time at work. Of the first line's columns idle and iowait are none, guests are in user and nice."""
        user, nice, system, _idle, _iowait, irq, softirq = map(int, _read(self._stat).split(None, 8)[1:8])
        return (user + nice + system + irq + softirq) * TICK_S


def logical_cpus(proc: Path) -> int:
    """How many CPUs the machine has switched on. Raises CounterFailed where /proc/stat cannot be read."""
    return len(re.findall(r"^cpu\d+ ", _read(proc / "stat"), re.MULTILINE))


def _zones(powercap: Path) -> tuple[Path, ...]:
    """The packages and their memories; cores and graphics are parts of a package, psys is more than the CPU."""
    found = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        if _read(zone / "name").startswith("package"):
            found.append(zone)
            found += [inner for inner in sorted(zone.glob("intel-rapl:*")) if _read(inner / "name").strip() == "dram"]
    if not found:
        raise CounterFailed(f"no RAPL counter of a package in {powercap}")
    return tuple(found)


def _number(path: Path) -> int:
    return int(_read(path))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise CounterFailed(f"{path}: {error.strerror}") from error

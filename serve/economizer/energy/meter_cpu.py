"""Energy of an engine on a CPU whose own counters cannot be read: its CPU time times a stated power."""

from __future__ import annotations

from economizer.energy.cpu_power import CpuPower
from economizer.energy.cpu_time import TICK_S, CpuTime
from economizer.energy.meter import CountingMeter, Used
from economizer.energy.types import UJ_PER_J
from economizer.errors import require


class CpuMeter(CountingMeter[float]):
    """A model, not a measurement: ``cores`` idle all the time, and what working adds per second of CPU time.

    ``E = idle_w * cores * seconds + (active_w - idle_w) * CPU seconds``, linear in the load, so that the energies of
    all engines on a machine add up to the machine's whatever the others do. It is the package's: no memory, no board.
    ``cores`` are the logical CPUs that are kept for the engine.
    """

    def __init__(self, power: CpuPower, *, cores: float, cpu_time: CpuTime | None = None) -> None:
        require(cores >= 0, "cores", cores, "must be 0 or more")
        super().__init__(_CpuModel(power, cores, cpu_time or CpuTime()))


class _CpuModel:
    method = "cpu-time-model"
    tick_s = TICK_S

    def __init__(self, power: CpuPower, cores: float, cpu_time: CpuTime) -> None:
        self._power = power
        self._cores = cores
        self._cpu_time = cpu_time

    def read(self) -> float:
        return self._cpu_time.seconds()

    def used(self, before: float, after: float, seconds: float) -> Used:
        power = self._power
        idle_uj = round(power.idle_w * self._cores * seconds * UJ_PER_J)
        active_uj = round((power.active_w - power.idle_w) * (after - before) * UJ_PER_J)
        return Used(energy_uj=idle_uj + active_uj, idle_uj=idle_uj, uncertainty=power.uncertainty)

    def describe(self) -> str:
        power = self._power
        return (
            f"CPU time at {power.active_w:.3g} W a core, {power.idle_w:.3g} W idle on {self._cores:g} cores"
            f" ({power.source})"
        )

    def close(self) -> None:
        pass

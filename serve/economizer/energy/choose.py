"""Which meter an engine gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

from economizer.energy.cpu_power import IDLE_SHARE, TYPICAL, CpuPower, cpu_power
from economizer.energy.cpu_time import PROC, CpuTime
from economizer.energy.meter import CounterFailed, EmptyMeter, Meter
from economizer.energy.meter_cpu import CpuMeter
from economizer.energy.meter_nvml import NvmlMeter
from economizer.energy.meter_rapl import POWERCAP, RaplMeter, logical_cpus
from economizer.errors import require

_FORBID = {"extra": "forbid"}  # read by pydantic in config.py: unknown keys are refused


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterSettings:
    """Which meter is used, and what a logical CPU draws.

    ``auto`` takes NVML for an engine with GPUs, else RAPL where it is readable, else the CPU model. ``watts_per_core``
    is a working CPU's watts where the shipped table is wrong or does not know it (a typical core's are taken then),
    ``watts_per_core_idle`` a waiting one's, by default a fifth of it.
    """

    __pydantic_config__ = _FORBID

    kind: Literal["auto", "nvml", "rapl", "cpu", "none"] = "auto"
    watts_per_core: float | None = None
    watts_per_core_idle: float | None = None

    def __post_init__(self) -> None:
        if self.watts_per_core is not None:
            rule = "must be above 0 and finite"
            require(0 < self.watts_per_core < inf, "watts_per_core", self.watts_per_core, rule)
        if self.watts_per_core_idle is not None:
            require(
                self.watts_per_core is not None and 0 <= self.watts_per_core_idle <= self.watts_per_core,
                "watts_per_core_idle",
                self.watts_per_core_idle,
                f"must be between 0 and watts_per_core ({self.watts_per_core})",
            )


def meter_for(
    settings: MeterSettings,
    *,
    gpus: Sequence[str],
    cores: float,
    idle_w: float | None,
    gpu_share: float = 1.0,
    root: int | None = None,
    cpu_time: CpuTime | None = None,
    proc: Path = PROC,
    powercap: Path = POWERCAP,
) -> Meter:
    """The meter for an engine; one that cannot be had is an EmptyMeter that says why.

    ``gpus`` are the engine's, ``gpu_share`` its part of each; ``cores`` are the logical CPUs kept for it, ``idle_w``
    what its GPUs draw without work in watts, None not known. The engine is all that runs below the process ``root``,
    None for this one: its CPU time is the CPU model's, and the engine's part of what RAPL counts. ``cpu_time``, where
    given, counts something else in its place. NVML counts whole GPUs, whichever process uses them.
    """
    if settings.kind == "none":
        return EmptyMeter("the configuration wants none")
    if settings.kind == "nvml" or (settings.kind == "auto" and gpus):
        return NvmlMeter(gpus, idle_w=idle_w, share=gpu_share) if gpus else EmptyMeter("the engine has no GPU")
    power = _power(settings) or cpu_power(proc / "cpuinfo")
    cpu_time = cpu_time or CpuTime(root, proc)
    if settings.kind != "cpu":
        try:
            machine_idle_w = power.idle_w * logical_cpus(proc) if power else None
            return RaplMeter(cores=cores, idle_w=machine_idle_w, powercap=powercap, proc=proc, cpu_time=cpu_time)
        except CounterFailed as failed:
            if settings.kind == "rapl":
                return EmptyMeter(str(failed))
    return CpuMeter(power or TYPICAL, cores=cores, cpu_time=cpu_time)


def _power(settings: MeterSettings) -> CpuPower | None:
    active_w, idle_w = settings.watts_per_core, settings.watts_per_core_idle
    if active_w is None:
        return None
    return CpuPower(
        active_w=active_w,
        idle_w=IDLE_SHARE * active_w if idle_w is None else idle_w,
        source="the configuration's watts_per_core",
    )

"""What one worker uses: seconds, CPU seconds, and joules by the meter that is here."""

from __future__ import annotations

import os
import time
from typing import Any

from economizer.energy.choose import MeterSettings, meter_for
from economizer.energy.cpu_time import CpuTime
from economizer.energy.meter import Meter
from economizer.energy.meter_nvml import visible_devices

from economizer_training.record import Cost

_KEY = "training"
_UJ_PER_J = 1_000_000


class OwnCpuTime(CpuTime):
    """The CPU time of this very process, where CpuTime counts what is below it: a worker works itself."""

    def seconds(self) -> float:
        return time.process_time()


def worker_meter(settings: MeterSettings, device: str, here: int) -> Meter:
    """The meter of this worker's own cores, of ``here`` workers on this machine, or of its GPU on ``device`` cuda."""
    gpus = visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return meter_for(
        settings,
        gpus=gpus[:1] if device == "cuda" else (),
        cores=len(os.sched_getaffinity(0)) / here,
        idle_w=None,
        cpu_time=OwnCpuTime(),
    )


class Metered:
    """One worker's own cost, lap by lap; ``cpu_time`` is a clock of CPU seconds."""

    def __init__(self, meter: Meter, cpu_time: Any) -> None:
        self._meter = meter
        self._cpu_time = cpu_time
        self._cpu_s = cpu_time()
        self.method = ""
        meter.begin(_KEY)

    def lap(self) -> Cost:
        """Since the last lap."""
        used = self._meter.lap(_KEY)
        before, self._cpu_s = self._cpu_s, self._cpu_time()
        self.method = used.method
        return Cost(
            seconds=used.seconds,
            cpu_s=self._cpu_s - before,
            energy_j=_joules(used.energy_uj),
            active_j=_joules(used.active_uj),
        )


def _joules(microjoules: int | None) -> float | None:
    return None if microjoules is None else microjoules / _UJ_PER_J

"""Which of the shared meters an engine gets while it is measured, and what its joules are called."""

from __future__ import annotations

import os

from economizer.energy.choose import meter_for
from economizer.energy.meter import Meter
from economizer.energy.meter_nvml import visible_devices

from economizer_compression.serving import EngineSettings, engine_env


def meter_of(settings: EngineSettings) -> Meter:
    """The meter for engines of these settings below this process, chosen as a gateway chooses it.

    An engine with GPUs has the first of CUDA_VISIBLE_DEVICES, or of all where that is not set. Where two engines take
    turns, the one that waits is metered too: without work vLLM keeps 0.02 cores busy.
    """
    every = ",".join(map(str, range(settings.gpus)))
    named = engine_env(settings.env, os.environ).get("CUDA_VISIBLE_DEVICES", every)
    return meter_for(
        settings.meter,
        gpus=visible_devices(named)[: settings.gpus],
        cores=len(os.sched_getaffinity(0)),
        idle_w=settings.gpu_idle_w,
    )


def energy_method(meter: Meter) -> str | None:
    """What a manifest says of active energy by this meter; None where it measures none.

    To be asked of a new meter: what a meter tells of itself may change with what it has seen.
    """
    described = meter.describe()
    meter.begin("try")
    return None if meter.end("try").active_uj is None else f"above idle, by {described}"

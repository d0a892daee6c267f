"""Which of the shared meters an engine gets while it is measured, and what its joules are called."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from economizer.energy.choose import meter_for
from economizer.energy.meter import Meter
from economizer.energy.meter_nvml import visible_devices

from economizer_compression.serving import EngineSettings, engine_env

_REST_S = 1.0
_SPAN = "rest"


def meter_of(settings: EngineSettings, root: int | None = None) -> Meter:
    """The meter for an engine of these settings below the process ``root``, chosen as a gateway chooses it.

    An engine with GPUs has the first of CUDA_VISIBLE_DEVICES, or of all where that is not set. Where two engines take
    turns on GPUs, the one that waits is metered too.
    """
    every = ",".join(map(str, range(settings.gpus)))
    named = engine_env(settings.env, os.environ).get("CUDA_VISIBLE_DEVICES", every)
    return meter_for(
        settings.meter,
        gpus=visible_devices(named)[: settings.gpus],
        cores=len(os.sched_getaffinity(0)),
        idle_w=settings.gpu_idle_w,
        root=root,
    )


def energy_method(meter: Meter) -> str | None:
    """What a manifest says of active energy by this meter; None where it measures none.

    To be asked of a new meter: what a meter tells of itself may change with what it has seen.
    """
    described = meter.describe()
    meter.begin(_SPAN)
    return None if meter.end(_SPAN).active_uj is None else f"active energy, by {described}"


def see_rest(meters: Iterable[Meter]) -> None:
    """Lets meters see their engines without work for a second.

    RAPL's idle power is the lowest that was seen, or the stated one if less: the gateway's meters have seen rest, too.
    """
    meters = list(meters)
    for meter in meters:
        meter.begin(_SPAN)
    time.sleep(_REST_S)
    for meter in meters:
        meter.end(_SPAN)

"""The Ray Serve replica: one engine, its health, its load, and where it listens."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from logging.handlers import MemoryHandler, WatchedFileHandler
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from economizer.energy.choose import MeterSettings, meter_for
from economizer.energy.meter_nvml import visible_devices
from economizer.energy.types import Window
from economizer.engine.metering import Metering
from economizer.engine.process import EngineProcess
from economizer.engine.types import EngineSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterSpec:
    """How an engine is metered: which meter, each how many seconds, over which share of the machine.

    ``cores`` and ``gpus`` are how many are kept for the replica, ``idle_w`` what its GPUs draw without work, None
    unknown.
    """

    settings: MeterSettings
    window_s: float
    cores: float
    gpus: float
    idle_w: float | None


class EngineReplica:
    """One supervised engine per replica. Serve's constructor, health check, stats and destructor; it takes no calls.

    A deployment of it needs ``graceful_shutdown_timeout_s`` some 15 s above ``spec.drain_timeout_s``: Serve kills a
    replica that is still in its destructor after that.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, variant_id: str, spec: EngineSpec, meter: MeterSpec, ledger: DeploymentHandle[Any] | None
    ) -> None:
        """Returns when the engine is ready; raises EngineFailed with its last lines, which ``serve status`` shows.

        Where there is a ledger, the engine is metered from its start.
        """
        log_with_serve()
        host = ray.util.get_node_ip_address() if spec.host == "node" else spec.host
        self._engine = EngineProcess(spec, name=variant_id, host=host)
        self._metering = _metering(variant_id, self._engine, meter, ledger) if ledger is not None else None
        await self._engine.start()

    async def check_health(self) -> None:
        """Raise once the engine has failed for good; while it restarts, the replica stays and reports so."""
        self._engine.check()

    async def record_routing_stats(self) -> dict[str, Any]:
        """What a gateway needs to choose this replica and reach it; no endpoint while it must not be used."""
        load = await self._engine.load()
        stats: dict[str, Any] = {
            "state": self._engine.state,
            "running": load.running,
            "waiting": load.waiting,
            "kv_used": load.kv_used,
        }
        if endpoint := self._engine.endpoint:
            stats |= {"endpoint": endpoint.url, "secret": endpoint.secret}
        return stats

    async def record_replica_metadata(self) -> dict[str, Any]:
        """The first of those stats: Serve tells gateways of it together with the replica, of later ones later."""
        return await self.record_routing_stats()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Running and waiting requests. Serve takes numbers only, so what is unknown is left out."""
        load = await self._engine.load()
        known = {"running": load.running, "waiting": load.waiting}
        return {name: float(value) for name, value in known.items() if value is not None}

    async def __del__(self) -> None:
        """Serve awaits this after it has taken the replica out of routing, and when a constructor did not finish."""
        engine: EngineProcess | None = getattr(self, "_engine", None)
        if engine is not None:
            await engine.drain()
            await engine.stop()
        metering: Metering | None = getattr(self, "_metering", None)
        if metering is not None:
            await metering.close()


def _metering(variant_id: str, engine: EngineProcess, spec: MeterSpec, ledger: DeploymentHandle[Any]) -> Metering:
    async def send(replica: str, windows: Sequence[Window]) -> int:
        kept: int = await ledger.windows.remote(replica, windows)
        return kept

    gpus = visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES", "")) if spec.gpus > 0 else ()
    share = min(1.0, spec.gpus / len(gpus)) if gpus else 1.0
    meter = meter_for(spec.settings, gpus=gpus, cores=spec.cores, idle_w=spec.idle_w, gpu_share=share)
    replica = serve.get_replica_context().replica_id.unique_id
    metering = Metering(meter, engine, replica=replica, variant=variant_id, send=send)
    metering.start(spec.window_s)
    return metering


def log_with_serve() -> None:
    """Write this package's log lines into the file where Serve writes its own; Serve drops those of other loggers.

    Past Serve's own handlers, which hold back a thousand lines before they write them (a quiet gateway would seem to
    log nothing for hours) and look up for each line what the request is, which ours says itself.
    """
    ours = logging.getLogger("economizer")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    theirs = [h.target if isinstance(h, MemoryHandler) else h for h in logging.getLogger("ray.serve").handlers]
    files = [handler.baseFilename for handler in theirs if isinstance(handler, logging.FileHandler)]
    ours.handlers = _writing_to(files, "%(levelname)s %(asctime)s %(name)s -- %(message)s")
    requests = logging.getLogger("economizer.requests")  # lines of JSON, and nothing else in front of them
    requests.propagate = False
    requests.handlers = _writing_to(files, "%(message)s")


def _writing_to(files: list[str], form: str) -> list[logging.Handler]:
    handlers: list[logging.Handler] = [WatchedFileHandler(file) for file in files]  # watched, since Serve rotates them
    for handler in handlers:
        handler.setFormatter(logging.Formatter(form))
    return handlers

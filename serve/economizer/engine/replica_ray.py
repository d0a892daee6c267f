"""The Ray Serve replica: one engine, its health, its load, and where it listens."""

from __future__ import annotations

import logging
from logging.handlers import MemoryHandler, WatchedFileHandler
from typing import Any

import ray

from economizer.engine.process import EngineProcess
from economizer.engine.types import EngineSpec


class EngineReplica:
    """One supervised engine per replica. Serve's constructor, health check, stats and destructor; it takes no calls.

    A deployment of it needs ``graceful_shutdown_timeout_s`` some 15 s above ``spec.drain_timeout_s``: Serve kills a
    replica that is still in its destructor after that.
    """

    async def __init__(self, variant_id: str, spec: EngineSpec) -> None:  # type: ignore[misc]  # Serve awaits it
        """Returns when the engine is ready; raises EngineFailed with its last lines, which ``serve status`` shows."""
        log_with_serve()
        host = ray.util.get_node_ip_address() if spec.host == "node" else spec.host
        self._engine = EngineProcess(spec, name=variant_id, host=host)
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

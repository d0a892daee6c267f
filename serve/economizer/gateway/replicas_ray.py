"""The adapter to Ray Serve's request routing: who the replicas of a variant are, and which one a request goes to.

The only file that leans on parts of Serve that are not promised: a handle's ``choose_replica(_reserve=False)`` picks
without sending, as Serve's own LLM ingress does, since the request itself goes to the engine over HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

from economizer.gateway.fleet import Choice, ReplicaReport

_SURVEY_PERIOD_S = 0.25
_SURVEY_TIMEOUT_S = 0.5  # a choice waits while a variant has no replica: not answered by then, it has none

logger = logging.getLogger("economizer.gateway")

Changed = Callable[[str, list[ReplicaReport]], None]


class VariantRequestRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray has no types for them
    """Serve's request router for a variant's replicas. The order comes with the request, from the gateway's ``Choice``:
    predicted wait, prefix affinity, session."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One rank per replica that may be used, the best first; Serve asks again, later and later, when none may."""
        if pending_request is None or not pending_request.args:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        choice: Choice = pending_request.args[0]
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[by_id[key]] for key in choice({key: replica.routing_stats for key, replica in by_id.items()})]


class ServeReplicas:
    """The replicas of every variant as Serve tells them: surveyed in the background, chosen by call."""

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._handles = handles
        self._surveys: set[asyncio.Task[None]] = set()

    def start(self, changed: Changed) -> None:
        """Survey every variant from now on; ``changed`` is told what its replicas report, also when that is nothing."""
        for variant_id, handle in self._handles.items():
            handle._init()
            self._surveys.add(asyncio.create_task(self._survey(variant_id, changed)))

    async def stop(self) -> None:
        """End the surveys."""
        for survey in self._surveys:
            survey.cancel()
        await asyncio.gather(*self._surveys, return_exceptions=True)

    async def choose(self, variant_id: str, choice: Choice) -> str:
        """The id of the replica that ``choice`` puts first; waits while it finds none."""
        async with self._handles[variant_id].choose_replica(choice, _reserve=False) as selection:
            return str(selection.replica_id)

    async def _survey(self, variant_id: str, changed: Changed) -> None:
        while True:
            asked = asyncio.create_task(self._reports(variant_id))
            try:
                if not (await asyncio.wait({asked}, timeout=_SURVEY_TIMEOUT_S))[0]:
                    changed(variant_id, [])
                changed(variant_id, await asked)
            except Exception:  # the outermost boundary of this task: a gateway must not go blind for good
                logger.exception("survey of %s", variant_id)
                changed(variant_id, [])
            finally:
                asked.cancel()
            await asyncio.sleep(_SURVEY_PERIOD_S)

    async def _reports(self, variant_id: str) -> list[ReplicaReport]:
        found: list[ReplicaReport] = []

        def note(stats: Mapping[str, Mapping[str, Any]]) -> list[str]:
            found[:] = [ReplicaReport.read(key, of) for key, of in stats.items()]
            return list(stats)

        await self.choose(variant_id, note)
        return found

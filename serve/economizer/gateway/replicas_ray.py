"""The adapter to Ray Serve's request routing: who the replicas of a variant are, and which one a request goes to.

The only file that leans on parts of Serve that are not promised: a handle's ``choose_replica(_reserve=False)`` picks
without sending, as Serve's own LLM ingress does, since the request itself goes to the engine over HTTP; and the
replicas that its router knows are read where it keeps them.
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
        return [[by_id[key]] for key in choice({key: _reported(replica) for key, replica in by_id.items()})]


class ServeReplicas:
    """The replicas of every variant as Serve tells them: surveyed in the background, chosen by call."""

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._handles = handles
        self._survey: asyncio.Task[None] | None = None

    def start(self, changed: Changed) -> None:
        """Survey every variant from now on; ``changed`` is told what its replicas report, also when that is nothing."""
        for handle in self._handles.values():
            handle._init()
        self._survey = asyncio.create_task(self._keep_surveying(changed))

    async def stop(self) -> None:
        """End the survey."""
        if self._survey is not None:
            self._survey.cancel()
            await asyncio.wait({self._survey})

    async def choose(self, variant_id: str, choice: Choice) -> str:
        """The id of the replica that ``choice`` puts first; waits while it finds none."""
        async with self._handles[variant_id].choose_replica(choice, _reserve=False) as selection:
            return str(selection.replica_id)

    async def _keep_surveying(self, changed: Changed) -> None:
        while True:
            for variant_id, handle in self._handles.items():
                try:
                    changed(variant_id, _reports(handle))
                except Exception:
                    logger.exception("survey of %s", variant_id)
            await asyncio.sleep(_SURVEY_PERIOD_S)


def _reports(handle: DeploymentHandle[Any]) -> list[ReplicaReport]:
    router = handle._router._asyncio_router.request_router
    if router is None:  # Serve has not told the handle of its deployment yet
        return []
    replicas = list(router.curr_replicas.values())
    return [ReplicaReport.read(replica.replica_id.unique_id, _reported(replica)) for replica in replicas]


def _reported(replica: RunningReplica) -> Mapping[str, Any]:
    """What a replica last reported; until Serve has first asked it, what it reported as it became ready.

    Serve ends the replica that a new one replaces before it has asked the new one.
    """
    stats: Mapping[str, Any] = replica.routing_stats or replica.replica_metadata
    return stats

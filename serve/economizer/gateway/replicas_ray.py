"""The adapter to Ray Serve's request routing: who the replicas of a variant are, and which one a request goes to.

The only file that leans on parts of Serve that are not promised: a handle's ``choose_replica(_reserve=False)`` picks
without sending, as Serve's own LLM ingress does, since the request itself goes to the engine over HTTP; and its request
router is asked directly where nothing has to be waited for, which saves a tenth of the gateway's CPU time.
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
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[by_id[key]] for key in pending_request.args[0](by_id)]

    def first(self, choice: Choice) -> str | None:
        """The id of the replica that comes first as things stand, without waiting; None where none may be used."""
        ranked = choice([replica_id.unique_id for replica_id in self.curr_replicas])
        return ranked[0] if ranked else None


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

    def choose_now(self, variant_id: str, choice: Choice) -> str | None:
        """The id of the replica that ``choice`` puts first, or None where it finds none."""
        router = _request_router(self._handles[variant_id])
        return router.first(choice) if router is not None else None

    async def choose(self, variant_id: str, choice: Choice) -> str:
        """The same, but waits while it finds none."""
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


def _request_router(handle: DeploymentHandle[Any]) -> VariantRequestRouter | None:
    """The handle's own; None while Serve has not told the handle of its deployment yet."""
    router: VariantRequestRouter | None = handle._router._asyncio_router.request_router
    return router


def _reports(handle: DeploymentHandle[Any]) -> list[ReplicaReport]:
    router = _request_router(handle)
    if router is None:
        return []
    replicas = list(router.curr_replicas.values())
    return [ReplicaReport.read(replica.replica_id.unique_id, _reported(replica)) for replica in replicas]


def _reported(replica: RunningReplica) -> Mapping[str, Any]:
    """What a replica last reported; until Serve has first asked it, what it reported as it became ready.

    Serve ends the replica that a new one replaces before it has asked the new one.
    """
    stats: Mapping[str, Any] = replica.routing_stats or replica.replica_metadata
    return stats

"""The adapter between Ray Serve's application-level autoscaling and the planner. Named in a Serve config::

autoscaling_policy: {policy_function: "economizer.autoscaling.policy_ray:scale"}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingContext

from economizer.autoscaling.planner import GATEWAY, LEDGER, Snapshot, VariantLoad, plan

HELD = "held:"  # likewise, requests that it has at a variant's engines: what an engine does not tell of itself
DEMAND = "demand:"  # prefix of the gateway's autoscaling stats: demand:<variant id> -> requests


def scale(contexts: Mapping[DeploymentID, AutoscalingContext]) -> tuple[dict[DeploymentID, int], dict[str, Any]]:
    """Serve calls this with every deployment's state; the answer is each one's number of replicas."""
    demand, held = _from_gateways(contexts, DEMAND), _from_gateways(contexts, HELD)
    variants = {key: context for key, context in contexts.items() if context.deployment_name not in (GATEWAY, LEDGER)}
    loads = tuple(
        _load(context, demand[context.deployment_name], held[context.deployment_name]) for context in variants.values()
    )
    now_s = next((context.current_time or 0.0 for context in contexts.values()), 0.0)
    made = plan(Snapshot(variants=loads), now_s)
    wanted = {key: step.replicas for key, step in zip(variants, made.steps, strict=True)}
    for key, context in contexts.items():
        if key not in wanted:
            wanted[key] = context.target_num_replicas
    return wanted, {}


def _from_gateways(contexts: Mapping[DeploymentID, AutoscalingContext], prefix: str) -> defaultdict[str, float]:
    """By variant: what the gateways report under this prefix, added up."""
    found: defaultdict[str, float] = defaultdict(float)
    for context in contexts.values():
        if context.deployment_name == GATEWAY:
            for name, by_replica in (context.aggregated_metrics or {}).items():
                if name.startswith(prefix):
                    found[name.removeprefix(prefix)] += sum(by_replica.values())
    return found


def _load(context: AutoscalingContext, demand: float, held: float) -> VariantLoad:
    metrics = context.aggregated_metrics or {}
    requests = sum(sum(metrics.get(name, {}).values()) for name in ("running", "waiting"))
    return VariantLoad(
        variant=context.deployment_name,
        replicas_min=context.capacity_adjusted_min_replicas,
        replicas_max=context.capacity_adjusted_max_replicas,
        requests_per_replica=context.config.target_ongoing_requests if context.config else 1.0,
        requests=max(requests, held),
        demand=demand,
    )

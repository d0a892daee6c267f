"""How many replicas each variant should have: a pure function of what the engines and the gateways report."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from economizer.variants.types import require

GATEWAY = "gateway"  # the deployments that are no variants
LEDGER = "ledger"


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantLoad:
    """One variant's load.

    ``requests`` are running or waiting in its engines; ``demand`` are requests that wait at gateways for a first
    replica, or would have been served by it had there been one. ``requests_per_replica`` is how many one replica
    should hold.
    """

    variant: str
    replicas_min: int
    replicas_max: int
    requests_per_replica: float
    requests: float = 0.0
    demand: float = 0.0

    def __post_init__(self) -> None:
        require(self.requests_per_replica > 0, "requests_per_replica", self.requests_per_replica, "must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The load of every variant at one moment."""

    variants: tuple[VariantLoad, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one variant should have, and why."""

    variant: str
    replicas: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Replicas for every variant, with a reason for each. ``made_s`` is the moment it was made for."""

    made_s: float
    steps: tuple[Step, ...]


def plan(snapshot: Snapshot, now_s: float) -> Plan:
    """Enough replicas to hold every variant's requests, between its bounds; one where none is and some is wanted.

    How long load must last before a step is taken is Ray Serve's to decide (its up- and downscale delays).
    """
    return Plan(made_s=now_s, steps=tuple(_step(load) for load in snapshot.variants))


def _step(load: VariantLoad) -> Step:
    # A hair less than a full replica more must not start one: loads are averages of samples.
    wanted = ceil((load.requests + load.demand) / load.requests_per_replica - 1e-6)
    replicas = min(load.replicas_max, max(load.replicas_min, wanted))
    held = f"{load.requests:g} requests and {load.demand:g} waiting for it at {load.requests_per_replica:g} a replica"
    if replicas > wanted:
        held += f", at least {load.replicas_min}"
    elif replicas < wanted:
        held += f", at most {load.replicas_max}"
    return Step(variant=load.variant, replicas=replicas, reason=held)

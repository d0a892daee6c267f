"""Policies: named weights over scorers. Filters are the same for all; a policy only orders what the terms allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

from economizer.router.scorers import SCORERS
from economizer.variants.types import require


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """How much each scorer counts. Weights need not add up to 1: the score is their weighted mean."""

    name: str
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(SCORERS))
        require(not unknown, "weights", unknown, f"must be among {sorted(SCORERS)}")
        rule = "must be 0 or more and finite, and at least one above 0"
        holds = all(0 <= weight < inf for weight in self.weights.values()) and any(self.weights.values())
        require(holds, "weights", dict(self.weights), rule)


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "cheap": Policy(name="cheap", weights={"cost": 1.0}),
        "green": Policy(name="green", weights={"carbon": 0.5, "energy": 0.5}),
        "fast": Policy(name="fast", weights={"speed": 1.0}),
        "balanced": Policy(
            name="balanced", weights={"cost": 0.35, "energy": 0.15, "speed": 0.25, "quality": 0.2, "room": 0.05}
        ),
    }
)

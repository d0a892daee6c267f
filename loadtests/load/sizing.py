"""How Economizer is set up for a mix: every gated variant, and no more engines awake than the control has. Pure.

One variant stays awake: the one of least joules whose promised quality meets the mix's highest floor. The others, the
full model too, sleep until they are wanted. Each may have as many replicas as the control has engines; that all
together have no more is held by memory: an engine is booked with so much that one more would not fit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from economizer.config import AUTOSCALING_POLICY, IMPORT_PATH, Configuration, parse
from economizer.errors import require
from economizer.variants.estimate import request_costs
from economizer.variants.types import Variant

RAY_GIB = 1.5  # what `economizer up` keeps back of the free memory for Ray itself
_BATCH = 8  # at which the variants' joules are compared


@dataclass(frozen=True, kw_only=True, slots=True)
class Requests:
    """What a workload asks for: its mean lengths in tokens, and the highest quality floor of its terms (0: none)."""

    prompt_tokens: float
    output_tokens: float
    floor: float


def gated(configuration: Configuration, family: str) -> dict[str, Variant]:
    """The variants that the router may choose by itself, the full one among them, by name."""
    names = sorted(configuration.families[family].variants)
    variants = {name: configuration.variant(family, name) for name in names}
    return {name: variant for name, variant in variants.items() if variant.routed}


def awake(variants: Mapping[str, Variant], requests: Requests) -> str:
    """The variant that stays awake. Raises ValueError where none is known to meet the highest floor."""
    costs = {}
    for name, variant in variants.items():
        energy_j = request_costs(
            variant, prompt_tokens=requests.prompt_tokens, output_tokens=requests.output_tokens, batch=_BATCH
        ).energy_j
        if energy_j is not None and variant.quality is not None and variant.quality.promised >= requests.floor:
            costs[name] = energy_j
    rule = f"must be met by a variant whose quality and energy are known; there are {sorted(variants)}"
    require(bool(costs), "quality_min", requests.floor, rule)
    return min(sorted(costs), key=lambda name: costs[name])


def memory_gib(free_gib: float, engines: int) -> float:
    """What to book an engine with, so that ``engines`` of them fit into the free memory and one more does not."""
    return round((free_gib - RAY_GIB) / (engines + 0.5), 2)


def serve_file(
    args: Mapping[str, Any],
    *,
    family: str,
    requests: Requests,
    engines: int,
    free_gib: float,
    port: int,
    ledger: Mapping[str, Any],
) -> dict[str, Any]:
    """A Serve config for ``economizer up``.

    ``args`` are those of an Economizer application, its catalogue laid over them. Of ``family`` all gated variants are
    taken, with at most ``engines`` of them awake.
    """
    variants = gated(parse(args), family)
    stays = awake(variants, requests)
    changed = copy.deepcopy(dict(args))
    changed["families"] = {family: changed["families"][family]}
    changed["ledger"] = {**(changed.get("ledger") or {}), **ledger}
    declared = changed["families"][family]["variants"]
    changed["families"][family]["variants"] = {
        name: {
            **declared[name],
            "replicas": {"min": int(name == stays), "max": engines},
            "ray": {**declared[name].get("ray", {}), "memory_gib": memory_gib(free_gib, engines)},
        }
        for name in variants
    }
    application = {
        "name": "economizer",
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "autoscaling_policy": {"policy_function": AUTOSCALING_POLICY},
        "args": changed,
    }
    return {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}

"""How one window is split: whose its energy is, and whose the engine's time was. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from economizer.energy.attribution import Attribution, attribute, split
from economizer.energy.step_model import StepModel
from economizer.energy.types import NO_WORK, Window, Work
from economizer.ledger.types import Amounts

_BUSY_LEAST = 1e-3  # of a window, where work came to light only after the windows that it was done in
_PRETENDED_UJ = 1_000_000  # of a window that was not measured: its time still costs money, and goes by such a joule

AttemptKey = tuple[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one attempt did in a window, for which tenant, and when it was at the engine, in seconds since the epoch."""

    key: AttemptKey
    tenant: str
    work: Work
    began_s: float
    ended_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowSplit:
    """A window by participant: attempts in the order of ``keys``, then unclaimed work, then idleness.

    ``energies_uj`` is None where nothing was measured. ``time_weights`` say whose the engine's time was, ``weights``
    whose of the attempts and of unclaimed work the time in use.
    """

    keys: tuple[AttemptKey, ...]
    tenants: tuple[str, ...]
    weights: tuple[float, ...]
    variances: tuple[float, ...]
    energies_uj: tuple[int, ...] | None
    time_weights: tuple[float, ...]


def split_window(window: Window, parts: Iterable[Part], unclaimed: Work, model: StepModel) -> WindowSplit:
    """Split a window among what was done in it, by what the model says that such work takes."""
    parts = tuple(parts)
    works = works_of(parts)
    tenants = {part.key: part.tenant for part in parts}
    energy, measured = window.measurement, window.measurement.energy_uj is not None
    found = attribute(
        active_uj=(energy.active_uj or 0) if measured else _PRETENDED_UJ,
        idle_uj=energy.idle_uj,
        seconds=energy.seconds,
        steps=window.steps,
        works=works,
        unclaimed=unclaimed,
        model=model,
    )
    keys = tuple(works)
    busy = _busy_share(window, parts)
    weights = _weights(keys, found)
    return WindowSplit(
        keys=keys,
        tenants=tuple(tenants[key] for key in keys),
        weights=weights,
        variances=tuple(found.variances[key] if measured else 0.0 for key in keys),
        energies_uj=(*(found.shares[key] for key in keys), found.unclaimed_uj, found.idle_uj) if measured else None,
        time_weights=(*(weight * busy for weight in weights), 1.0 - busy),
    )


def works_of(parts: Iterable[Part]) -> Mapping[AttemptKey, Work]:
    """What each attempt did in all."""
    works: dict[AttemptKey, Work] = {}
    for part in parts:
        works[part.key] = works.get(part.key, NO_WORK) + part.work
    return works


def _weights(keys: tuple[AttemptKey, ...], found: Attribution[AttemptKey]) -> tuple[float, ...]:
    """The time in use is split as the energy is; attempts that took none share it alike."""
    energies = [*(found.shares[key] for key in keys), found.unclaimed_uj]
    whole = sum(energies)
    if whole == 0:
        return (*([1.0 / len(keys)] * len(keys)), 0.0) if keys else (0.0,)
    return tuple(energy / whole for energy in energies)


def _busy_share(window: Window, parts: Iterable[Part]) -> float:
    """The share of the window in which some attempt was at the engine."""
    whole_s = window.ended_s - window.began_s
    if whole_s <= 0:
        return 0.0
    covered_s, until_s, worked = 0.0, window.began_s, False
    for began_s, ended_s in sorted((part.began_s, min(part.ended_s, window.ended_s)) for part in parts):
        worked = True
        covered_s += max(0.0, ended_s - max(began_s, until_s))
        until_s = max(until_s, ended_s)
    return min(1.0, max(covered_s / whole_s, _BUSY_LEAST if worked else 0.0))


def split_amounts(amounts: Amounts, weights: tuple[float, ...]) -> list[Amounts]:
    """Amounts split by weights, each unit exactly once; the unknown stays unknown."""
    if not weights:
        return []

    def parts(total: int | None) -> list[int] | list[None]:
        return [None] * len(weights) if total is None else split(total, weights)

    columns = (parts(amounts.energy_uj), parts(amounts.cost_uusd), parts(amounts.carbon_ug))
    return [
        Amounts(energy_uj=energy, cost_uusd=cost, carbon_ug=carbon)
        for energy, cost, carbon in zip(*columns, strict=True)
    ]

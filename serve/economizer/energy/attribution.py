"""The joules of a window, attributed to the requests that worked in it. Pure.

``attribute`` weighs the requests of a window by what the engine's step model predicts of each and scales that to what
was measured, so that the meter has the last word and the model only says how to share.
docs/decisions/0014-attribution.md has the reasons and figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import frexp, inf, ldexp
from typing import Any, Generic, Protocol, TypeVar

from economizer.energy.step_model import EXCESS_MAX, PLAIN, StepModel, estimated_steps, weights_of
from economizer.energy.types import NO_WORK, Work
from economizer.errors import require


class Ordered(Protocol):
    """A key that can be sorted: ties break by it."""

    def __lt__(self, other: Any, /) -> bool: ...
    def __hash__(self) -> int: ...


K = TypeVar("K", bound=Ordered)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribution(Generic[K]):
    """Whose a window's energy was: shares, idle and unclaimed add up to the measured energy exactly.

    ``idle_uj`` includes the meter's idle energy, the engine's background and what no work explains. ``variances`` are
    those of the shares in uJ^2, from ``relative_error``, the model's of one request in one window; the meter's own
    uncertainty is not in them.
    """

    shares: Mapping[K, int]
    variances: Mapping[K, float]
    idle_uj: int
    unclaimed_uj: int
    relative_error: float


def attribute(
    *,
    active_uj: int,
    idle_uj: int,
    seconds: float,
    steps: float | None,
    works: Mapping[K, Work],
    unclaimed: Work = NO_WORK,
    model: StepModel,
) -> Attribution[K]:
    """Split a window's active energy among its requests, the work that nobody claims, and the engine itself.

    Each participant weighs as the model predicts its energy; the engine's own is its background. Steps are shared by
    the sequences in them: a request is in one step for each token that it decodes and for each chunk of its prompt.
    Where ``steps`` is None or 0 they are estimated. The whole is scaled to ``active_uj`` and rounded by largest
    remainder. Scaling ends at three times the predicted energy: what is beyond is no request's but idle, as it would
    be in a window with no work. Until the model is trusted neither that limit nor the background counts.

    With a share ``s_i = A p_i``, ``p_i = e_i / sum(e)``, and independent relative errors r of the predictions e,
    ``ds_i / dlog(e_j) = A (p_i [i = j] - p_i p_j)`` gives to first order::

        var(s_i) = (A r)^2 (p_i^2 (1 - p_i)^2 + sum over j != i of p_i^2 p_j^2) = (A r p_i)^2 (1 - 2 p_i + sum p^2)

    which is 0 for a request alone: the total is measured. Raises ValueError for negative amounts.
    """
    require(active_uj >= 0, "active_uj", active_uj, "must be 0 or more")
    require(idle_uj >= 0, "idle_uj", idle_uj, "must be 0 or more")
    keys = sorted(works)
    parties = [*(works[key] for key in keys), unclaimed]
    taken = steps or estimated_steps(parties)
    weights = weights_of(parties, taken, model.shape)
    background = 0.0
    if model.relative_error is not None:
        background = max(model.shape.second_uj * seconds, active_uj / EXCESS_MAX - sum(weights))
    if not any(weights):  # the model knows of no cost of such work
        weights = weights_of(parties, taken, PLAIN)
        background = 0.0 if any(weights) else 1.0
    weights.append(background)
    *shares, unclaimed_uj, engine_uj = split(active_uj, weights)
    whole = sum(weights)
    parts = [weight / whole for weight in weights]
    concentration = sum(part * part for part in parts)
    spread_uj = active_uj * model.share_error
    return Attribution(
        shares=dict(zip(keys, shares, strict=True)),
        variances={
            key: (spread_uj * part) ** 2 * max(0.0, 1.0 - 2.0 * part + concentration)
            for key, part in zip(keys, parts, strict=False)
        },
        idle_uj=idle_uj + engine_uj,
        unclaimed_uj=unclaimed_uj,
        relative_error=model.share_error,
    )


def per_token_shares(active_uj: int, works: Mapping[K, Work]) -> dict[K, int]:
    """The same energy with each token weighing the same, prefilled or decoded: what to compare with."""
    keys = sorted(works)
    tokens = [works[key].prefill_tokens + works[key].decode_tokens for key in keys]
    return dict(zip(keys, split(active_uj, tokens), strict=True))


def split(total: int, weights: Sequence[float]) -> list[int]:
    """A whole number in parts proportional to the weights, which add up to it exactly.

    Largest remainder; equal remainders go by position. A weight of 0 gets 0; where all are 0 they count as equal.
    Raises ValueError for a negative total or weight, and for a total above 0 with nobody to get it.
    """
    require(total >= 0, "total", total, "must be 0 or more")
    require(all(0 <= weight < inf for weight in weights), "weights", weights, "must be 0 or more and finite")
    require(bool(weights) or total == 0, "weights", weights, "must not be empty")
    # Whole numbers, because floats would lose units of a large total; a power of two keeps their ratios as they are.
    exponent = 100 - frexp(max(weights, default=0.0))[1]
    wholes = [int(ldexp(weight, exponent)) for weight in weights] if any(weights) else [1] * len(weights)
    divisor = sum(wholes)
    parts = [total * whole // divisor for whole in wholes]
    left = total - sum(parts)
    for index in sorted(range(len(parts)), key=lambda i: (-(total * wholes[i] % divisor), i))[:left]:
        parts[index] += 1
    return parts

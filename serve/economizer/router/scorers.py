"""How good is a variant for a request? Each scorer answers in [0, 1]; the unknown scores 0.

Costs and times are scored by their ratio to the best among the variants that are able to serve, so that a difference of
one percent stays one percent also when only two variants are left (min-max scaling would make it everything).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from economizer.router.types import Prediction

Value = Callable[[Prediction], float | None]


def _cost(prediction: Prediction) -> float | None:
    return prediction.costs.cost_usd


def _energy(prediction: Prediction) -> float | None:
    return prediction.costs.energy_j


def _carbon(prediction: Prediction) -> float | None:
    return prediction.costs.carbon_g


def _speed(prediction: Prediction) -> float | None:
    return prediction.e2e_s.p50 if prediction.e2e_s is not None else None


# Less is better, by ratio to the least.
_RATIOS: Mapping[str, Value] = {"cost": _cost, "energy": _energy, "carbon": _carbon, "speed": _speed}
# Already in [0, 1].
_SHARES: Mapping[str, Value] = {"quality": lambda found: found.quality, "room": lambda found: found.room}

SCORERS: Mapping[str, Value] = MappingProxyType({**_RATIOS, **_SHARES})


def scores(predictions: Sequence[Prediction], weights: Mapping[str, float]) -> list[float]:
    """The weighted mean score of each prediction, in [0, 1], against the best among them."""
    totals = [0.0] * len(predictions)
    for name, weight in weights.items():
        value = SCORERS[name]
        values = [value(prediction) for prediction in predictions]
        if name in _RATIOS:
            least = min((found for found in values if found is not None), default=0.0)
            for index, found in enumerate(values):
                if found is not None:
                    totals[index] += weight * (least / found if found > 0 else 1.0)
        else:
            for index, found in enumerate(values):
                totals[index] += weight * (found or 0.0)
    whole = sum(weights.values())
    return [total / whole for total in totals]

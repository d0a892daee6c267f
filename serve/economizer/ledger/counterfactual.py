"""What a request would have taken on its family's full model. Pure."""

from __future__ import annotations

from statistics import NormalDist

from economizer.energy.step_model import Coefficients, estimated_steps
from economizer.energy.types import Work
from economizer.ledger.types import Amounts, Counterfactual
from economizer.variants.estimate import J_PER_KWH, request_costs
from economizer.variants.types import Variant

_CARD_ERROR = 0.3  # half width of a card's interval, relative: cards were measured elsewhere, on other requests
_Z = NormalDist().inv_cdf(0.975)
_MICRO = 1_000_000


def counterfactual(
    *,
    full: Variant,
    prompt_tokens: int,
    cached_tokens: int,
    output_tokens: int,
    batch: float,
    coefficients: Coefficients | None,
    relative_error: float | None,
) -> Counterfactual:
    """What a request would have taken on the full variant: the same tokens, found in the cache alike, in such a batch.

    ``coefficients`` are those of the step model learnt of the full variant's engine here, and ``relative_error`` is
    the root mean square of its predictions' errors; where that is None a card's is stated. Without coefficients energy
    is by the cards. Money is always by the cards, because a step model knows no times. What no card knows is None.
    """
    costs = request_costs(
        full, prompt_tokens=max(0, prompt_tokens - cached_tokens), output_tokens=output_tokens, batch=batch
    )
    energy_uj = _micro(costs.energy_j)
    if coefficients is not None:
        work = _work(prompt_tokens, cached_tokens, output_tokens)
        energy_uj = round(coefficients.work_uj(work, estimated_steps([work]) / max(1.0, batch)))
    error = _CARD_ERROR if coefficients is None or relative_error is None else _Z * relative_error
    carbon_ug = None
    if energy_uj is not None and full.price is not None and full.price.carbon_g_per_kwh is not None:
        carbon_ug = round(energy_uj / J_PER_KWH * full.price.pue * full.price.carbon_g_per_kwh)
    cost_uusd = _micro(costs.cost_usd)
    low_uj, high_uj = _around(energy_uj, error)
    low_uusd, high_uusd = _around(cost_uusd, _CARD_ERROR)
    return Counterfactual(
        variant=full.name,
        amounts=Amounts(energy_uj=energy_uj, cost_uusd=cost_uusd, carbon_ug=carbon_ug),
        low_uj=low_uj,
        high_uj=high_uj,
        low_uusd=low_uusd,
        high_uusd=high_uusd,
    )


def _work(prompt_tokens: int, cached_tokens: int, output_tokens: int) -> Work:
    """What the request makes an engine do, counted as gateways count it, since that is what coefficients are per."""
    uncached = max(0, prompt_tokens - cached_tokens)
    return Work(
        prefill_tokens=uncached,
        prefill_context=uncached * (prompt_tokens + cached_tokens) / 2,
        decode_tokens=output_tokens,
        decode_context=output_tokens * (prompt_tokens + output_tokens / 2),
    )


def _micro(amount: float | None) -> int | None:
    return None if amount is None else round(amount * _MICRO)


def _around(amount: int | None, error: float) -> tuple[int | None, int | None]:
    """The ends of an interval of ``error`` relative to the amount; energy and money are never below 0."""
    if amount is None:
        return None, None
    return round(amount * max(0.0, 1 - error)), round(amount * (1 + error))

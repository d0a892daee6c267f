"""May this variant serve this request? Each filter answers None, or the reason why not.

``ABILITIES`` are what a variant can or cannot do for the request; no caller can waive them. ``TERMS`` are what the
caller asked for; ``on_unmet: degrade`` waives them. Latency terms hold at the 95th percentile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from economizer.router.types import Prediction, Quantiles, Refusal, RequestProfile, Terms, VariantState

Filter = Callable[[RequestProfile, Terms, VariantState, Prediction], Refusal | None]


def pinned(profile: RequestProfile, terms: Terms, state: VariantState, found: Prediction) -> Refusal | None:
    """The caller named another variant."""
    name = state.variant.name
    if profile.pinned is None or profile.pinned == name:
        return None
    return Refusal(term="pinned", limit=profile.pinned, offered=name, reason=f"the request pins {profile.pinned}")


def routed(profile: RequestProfile, terms: Terms, state: VariantState, found: Prediction) -> Refusal | None:
    """It was measured and not promoted, so that only those who name it get it."""
    if state.variant.routed or profile.pinned is not None:
        return None
    reason = "it is served only when a request pins it: the gate did not promote it"
    return Refusal(term="routed", limit=None, offered=None, reason=reason)


def lora(profile: RequestProfile, terms: Terms, state: VariantState, found: Prediction) -> Refusal | None:
    """The variant does not serve the LoRA adapter."""
    if profile.lora is None or profile.lora in state.variant.loras:
        return None
    reason = f"it does not serve the LoRA adapter {profile.lora}"
    return Refusal(term="lora", limit=profile.lora, offered=None, reason=reason)


def features(profile: RequestProfile, terms: Terms, state: VariantState, found: Prediction) -> Refusal | None:
    """The variant lacks the endpoint or an ability that the request needs."""
    has = state.variant.features
    if profile.endpoint in has and profile.needs <= has:
        return None
    missing = ", ".join(sorted({profile.endpoint, *profile.needs} - has))
    return Refusal(term="features", limit=missing, offered=None, reason=f"it has no {missing}")


def context(profile: RequestProfile, terms: Terms, state: VariantState, found: Prediction) -> Refusal | None:
    """The prompt and the answer that the caller allows do not fit its context.

    The prompt's length is an estimate, so only what is clearly too long is refused here; the engine counts exactly.
    """
    most = state.variant.context_tokens_max
    wanted = profile.prompt_tokens_least + (profile.output_tokens_max or 1)
    if wanted <= most:
        return None
    reason = f"about {wanted} tokens of prompt and answer do not fit its context of {most}"
    return Refusal(term="context", limit=float(wanted), offered=float(most), reason=reason)


def health(profile: RequestProfile, terms: Terms, state: VariantState, found: Prediction) -> Refusal | None:
    """No replica is ready, and none is started on demand."""
    if not found.asleep or state.variant.replicas_min == 0:
        return None
    return Refusal(term="health", limit=None, offered=None, reason="no replica of it is ready")


def capacity(profile: RequestProfile, terms: Terms, state: VariantState, found: Prediction) -> Refusal | None:
    """Every ready replica has its batch full and as many requests waiting as it may have."""
    waiting = found.load - state.variant.concurrency_max
    if found.asleep or waiting < state.queue_max:
        return None
    reason = f"{waiting} requests wait at its least busy replica, and {state.queue_max} may"
    return Refusal(term="capacity", limit=float(state.queue_max), offered=float(waiting), reason=reason)


def quality(profile: RequestProfile, terms: Terms, state: VariantState, found: Prediction) -> Refusal | None:
    """Its quality is under the floor, or unknown."""
    floor = terms.quality_min
    if floor is None or (found.quality is not None and found.quality >= floor):
        return None
    has = "unknown" if found.quality is None else f"{found.quality:g}"
    return Refusal(
        term="quality_min",
        limit=floor,
        offered=found.quality,
        reason=f"its quality is {has}, under the {floor:g} asked",
    )


def _ceiling(term: str, limit: float | None, value: float | None, what: str, unit: str) -> Refusal | None:
    if limit is None or (value is not None and value <= limit):
        return None
    has = "unknown" if value is None else f"{value:.3g} {unit}"
    return Refusal(
        term=term, limit=limit, offered=value, reason=f"its {what} is {has}, over the {limit:.3g} {unit} asked"
    )


def _p95(quantiles: Quantiles | None) -> float | None:
    return None if quantiles is None else quantiles.p95


def ttft(profile: RequestProfile, terms: Terms, state: VariantState, found: Prediction) -> Refusal | None:
    """Its first token would come too late."""
    return _ceiling("ttft_s_max", terms.ttft_s_max, _p95(found.ttft_s), "time to first token (p95)", "s")


def tpot(profile: RequestProfile, terms: Terms, state: VariantState, found: Prediction) -> Refusal | None:
    """Its later tokens would come too slowly."""
    return _ceiling("tpot_s_max", terms.tpot_s_max, _p95(found.tpot_s), "time per output token (p95)", "s")


def e2e(profile: RequestProfile, terms: Terms, state: VariantState, found: Prediction) -> Refusal | None:
    """The whole answer would take too long."""
    return _ceiling("e2e_s_max", terms.e2e_s_max, _p95(found.e2e_s), "time for the whole answer (p95)", "s")


def cost(profile: RequestProfile, terms: Terms, state: VariantState, found: Prediction) -> Refusal | None:
    """It would cost too many dollars."""
    return _ceiling("cost_usd_max", terms.cost_usd_max, found.costs.cost_usd, "cost", "USD")


def energy(profile: RequestProfile, terms: Terms, state: VariantState, found: Prediction) -> Refusal | None:
    """It would take too many joules."""
    return _ceiling("energy_j_max", terms.energy_j_max, found.costs.energy_j, "energy", "J")


def carbon(profile: RequestProfile, terms: Terms, state: VariantState, found: Prediction) -> Refusal | None:
    """It would emit too many grams."""
    return _ceiling("carbon_g_max", terms.carbon_g_max, found.costs.carbon_g, "carbon", "gCO2e")


ABILITIES: tuple[Filter, ...] = (pinned, routed, lora, features, context, health, capacity)
TERMS: Mapping[str, Filter] = MappingProxyType(
    {
        "quality_min": quality,
        "ttft_s_max": ttft,
        "tpot_s_max": tpot,
        "e2e_s_max": e2e,
        "cost_usd_max": cost,
        "energy_j_max": energy,
        "carbon_g_max": carbon,
    }
)


def filters_for(terms: Terms) -> tuple[Filter, ...]:
    """Every ability, and the terms that the caller set."""
    return (*ABILITIES, *[one for name, one in TERMS.items() if getattr(terms, name) is not None])

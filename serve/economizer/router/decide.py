"""One decision: which variant answers a request, what was expected of every one, and why the others were refused."""

from __future__ import annotations

from collections.abc import Sequence

from economizer.errors import (
    ContextTooLong,
    EconomizerError,
    FeatureUnsupported,
    ModelNotFound,
    NotReady,
    Overloaded,
    TermsUnmet,
)
from economizer.router.filters import TERMS, Filter, filters_for
from economizer.router.policies import Policy
from economizer.router.scorers import scores
from economizer.router.types import (
    Candidate,
    Decision,
    Prediction,
    Quantiles,
    Refusal,
    ReplicaState,
    RequestProfile,
    Terms,
    VariantState,
)
from economizer.variants.estimate import request_costs

_WAKING_TERMS = frozenset({"ttft_s_max", "e2e_s_max"})
_LATENCY_TERMS = _WAKING_TERMS | {"tpot_s_max"}
_NOBODY = ReplicaState(id="", ready=False)


def decide(profile: RequestProfile, terms: Terms, fleet: Sequence[VariantState], policy: Policy) -> Decision:
    """Choose among a family's variants.

    Those that pass every filter are ranked by the policy's score, awake ones first: one that has to be started serves
    only when no awake one meets the terms. When none passes and the caller allows it, the nearest one that is able to
    serve is chosen, and what it misses is named. Ties break by name.
    """
    predictions = [predict(profile, state) for state in fleet]
    filters = filters_for(terms)
    refused = [
        _refusals(filters, profile, terms, state, found) for state, found in zip(fleet, predictions, strict=True)
    ]
    # Scored among all that are able to serve, so that what the caller asks for does not move the yardstick.
    able = [index for index, refusals in enumerate(refused) if _able(refusals)]
    score_of = dict(zip(able, scores([predictions[index] for index in able], policy.weights), strict=True))
    candidates = tuple(
        [
            Candidate(
                variant=state.variant.name,
                prediction=predictions[index],
                score=None if refused[index] else score_of[index],
                refusals=refused[index],
            )
            for index, state in enumerate(fleet)
        ]
    )
    ranked = sorted(
        [candidate for candidate in candidates if not candidate.refusals],
        key=lambda c: (c.prediction.asleep, -(c.score or 0.0), c.variant),
    )
    missed: tuple[Refusal, ...] = ()
    if not ranked and terms.on_unmet == "degrade":
        ranked = _nearest(candidates)
        missed = ranked[0].refusals if ranked else ()
    return Decision(
        family=profile.family,
        policy=policy.name,
        variant=ranked[0].variant if ranked else None,
        ranking=tuple([candidate.variant for candidate in ranked]),
        candidates=candidates,
        missed=missed,
    )


def predict(profile: RequestProfile, state: VariantState) -> Prediction:
    """What to expect of a variant: of its least loaded ready replica, or of one that is started for the request."""
    variant = state.variant
    replica = _least_loaded(state.replicas)
    wake_s = variant.speed.cold_start_s if variant.speed is not None and not replica.ready else None
    latency = state.latency.predict(
        prompt_tokens=profile.prompt_tokens, cached_share=state.cached_share, replica=replica
    )
    tokens = profile.output_tokens_expected
    ttft_s: Quantiles | None = None
    tpot_s: Quantiles | None = None
    e2e_s: Quantiles | None = None
    if latency is not None:
        ttft_s, tpot_s = latency.ttft_s, latency.tpot_s
        if wake_s is not None:
            ttft_s = Quantiles(p50=ttft_s.p50 + wake_s, p95=ttft_s.p95 + wake_s)
        elif not replica.ready:
            ttft_s = None
        if ttft_s is not None:
            later = max(0.0, tokens - 1)
            e2e_s = Quantiles(p50=ttft_s.p50 + later * tpot_s.p50, p95=ttft_s.p95 + later * tpot_s.p95)
    batch = min(replica.running + 1, variant.concurrency_max)
    return Prediction(
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        e2e_s=e2e_s,
        output_tokens=tokens,
        costs=request_costs(
            variant, prompt_tokens=profile.prompt_tokens * (1.0 - state.cached_share), output_tokens=tokens, batch=batch
        ),
        quality=variant.quality.promised if variant.quality is not None else None,
        load=replica.load,
        room=1.0 - replica.running / variant.concurrency_max if replica.ready else 0.0,
        asleep=not replica.ready,
        wake_s=wake_s,
    )


def _least_loaded(replicas: Sequence[ReplicaState]) -> ReplicaState:
    best, best_load = _NOBODY, -1
    for replica in replicas:
        if replica.ready:
            load = replica.running + replica.waiting
            if best_load < 0 or load < best_load or (load == best_load and replica.id < best.id):
                best, best_load = replica, load
    return best


def _refusals(
    filters: Sequence[Filter], profile: RequestProfile, terms: Terms, state: VariantState, found: Prediction
) -> tuple[Refusal, ...]:
    return tuple([refusal for one in filters if (refusal := one(profile, terms, state, found)) is not None])


def _able(refusals: Sequence[Refusal]) -> bool:
    return not refusals or all(refusal.term in TERMS for refusal in refusals)


def _nearest(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that are able to serve, the one that misses the fewest terms by the least first."""
    able = [candidate for candidate in candidates if _able(candidate.refusals)]
    return sorted(able, key=lambda c: (c.prediction.asleep, len(c.refusals), sum(map(_excess, c.refusals)), c.variant))


def _excess(refusal: Refusal) -> float:
    """By how much a term is missed, relative to what was asked; the unknown is as bad as twice."""
    limit, offered = refusal.limit, refusal.offered
    if not isinstance(limit, float | int) or not isinstance(offered, float | int) or not limit:
        return 1.0
    return abs(offered - limit) / limit


def worth_waking(decision: Decision) -> list[str]:
    """Variants without a replica that would have served better than the one that was chosen.

    Where nothing met the terms, those that only the time of their start ruled out are worth it too.
    """
    chosen = decision.candidate(decision.variant) if decision.variant is not None else None
    well = chosen is not None and not decision.missed
    wanted = []
    for candidate in decision.candidates:
        if not candidate.prediction.asleep or candidate is chosen:
            continue
        if candidate.score is not None:
            better = chosen is None or chosen.score is None or candidate.score > chosen.score
        else:
            better = not well and all(refusal.term in _WAKING_TERMS for refusal in candidate.refusals)
        if better:
            wanted.append(candidate.variant)
    return wanted


def refusal_error(decision: Decision, *, retry_after_s: float, degrade: bool = False) -> EconomizerError:
    """The error for a decision without a variant: each variant and what it fails, in words.

    What will pass (a full queue, an engine that is coming up, and the latency that comes of it) outweighs what will
    not; a variant that only a pin gets is named, and decides nothing. ``degrade`` says that the caller waived its
    terms.
    """
    weighed = [c for c in decision.candidates if all(refusal.term != "pinned" for refusal in c.refusals)]
    reasons = "; ".join(f"{c.variant}: " + ", ".join(r.reason for r in c.refusals) for c in weighed)
    message = f"No variant of {decision.family} can serve this request: {reasons}."
    weighed = [c for c in weighed if all(refusal.term != "routed" for refusal in c.refusals)] or weighed
    failed = [{refusal.term for refusal in c.refusals} for c in weighed]
    waived = TERMS.keys() if degrade else _LATENCY_TERMS
    failed = [terms - waived if terms & {"health", "capacity"} else terms for terms in failed]
    if any(terms <= {"capacity"} for terms in failed):
        return Overloaded(message, retry_after_s=retry_after_s)
    if any(terms <= {"health", "capacity"} for terms in failed):
        return NotReady(message, retry_after_s=retry_after_s)
    if all("features" in terms for terms in failed):
        return FeatureUnsupported(message)
    if all("lora" in terms for terms in failed):
        return ModelNotFound(message, param="model")
    if all("context" in terms for terms in failed):
        return ContextTooLong(message)
    param = next((r.term for c in weighed for r in c.refusals if r.term in TERMS), None)
    return TermsUnmet(message, param=param)

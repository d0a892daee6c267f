from dataclasses import replace
from random import Random

import pytest
from economizer.errors import (
    ContextTooLong,
    EconomizerError,
    FeatureUnsupported,
    ModelNotFound,
    NotReady,
    Overloaded,
    TermsUnmet,
)
from economizer.router.decide import decide, predict, refusal_error, worth_waking
from economizer.router.filters import TERMS
from economizer.router.latency import LatencyModel
from economizer.router.policies import POLICIES, Policy
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
from economizer.variants.estimate import Costs
from economizer.variants.types import SpeedCard
from examples import IDLE, SPEED, Steady, Unknown, chat, state, variant
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

CHEAP = POLICIES["cheap"]
NO_TERMS = Terms()

# Awake, idle, and by examples.Steady: first token after 0.5 s (p95 1 s), then 0.125 s (p95 0.25 s) a token.
EXPECTED = Prediction(
    ttft_s=Quantiles(p50=0.5, p95=1.0),
    tpot_s=Quantiles(p50=0.125, p95=0.25),
    e2e_s=Quantiles(p50=1.5, p95=3.0),
    output_tokens=9.0,
    costs=Costs(energy_j=25.0, cost_usd=0.25, carbon_g=None),
    quality=1.0,
    room=1.0,
    wake_s=None,
)


def full() -> VariantState:
    return state(variant("full", quality=1.0, usd_per_hour=3600.0), IDLE)


def int8() -> VariantState:
    """Half the price, a little worse."""
    return state(variant("int8", quality=0.9, usd_per_hour=1800.0), IDLE)


def asleep(of: VariantState, cold_start_s: float | None = 8.0) -> VariantState:
    speed = replace(SPEED, cold_start_s=cold_start_s)
    return replace(of, variant=replace(of.variant, replicas_min=0, speed=speed), replicas=())


def test_the_cheapest_that_meets_the_terms_is_chosen_and_the_whole_choice_is_explained() -> None:
    cheaper = structs.replace(EXPECTED, costs=Costs(energy_j=25.0, cost_usd=0.125, carbon_g=None), quality=0.9)
    assert decide(chat(), NO_TERMS, [full(), int8()], CHEAP) == Decision(
        family="m",
        policy="cheap",
        variant="int8",
        ranking=("int8", "full"),
        candidates=(
            Candidate(variant="full", prediction=EXPECTED, score=0.5),
            Candidate(variant="int8", prediction=cheaper, score=1.0),
        ),
    )


def test_a_quality_floor_refuses_the_int8_variant_and_says_why() -> None:
    cheaper = structs.replace(EXPECTED, costs=Costs(energy_j=25.0, cost_usd=0.125, carbon_g=None), quality=0.9)
    refusal = Refusal(term="quality_min", limit=0.95, offered=0.9, reason="its quality is 0.9, under the 0.95 asked")
    assert decide(chat(), Terms(quality_min=0.95), [full(), int8()], CHEAP) == Decision(
        family="m",
        policy="cheap",
        variant="full",
        ranking=("full",),
        candidates=(
            Candidate(variant="full", prediction=EXPECTED, score=0.5),
            Candidate(variant="int8", prediction=cheaper, score=None, refusals=(refusal,)),
        ),
    )


def test_a_pinned_variant_is_the_only_one_that_may_serve() -> None:
    decision = decide(chat(pinned="full"), NO_TERMS, [full(), int8()], CHEAP)
    assert (decision.variant, decision.ranking) == ("full", ("full",))


def test_ties_go_by_name() -> None:
    fleet = [state(variant(name), IDLE) for name in ("c", "a", "b")]
    assert decide(chat(), NO_TERMS, fleet, CHEAP).ranking == ("a", "b", "c")


def test_a_sleeping_variant_serves_only_when_no_awake_one_meets_the_terms() -> None:
    fleet = [full(), asleep(int8())]
    assert decide(chat(), NO_TERMS, fleet, CHEAP).ranking == ("full", "int8")
    assert decide(chat(), Terms(cost_usd_max=0.2), fleet, CHEAP).ranking == ("int8",)


def test_the_start_of_a_sleeping_variant_is_in_what_it_is_expected_to_take() -> None:
    assert predict(chat(), asleep(full(), 8.0)) == structs.replace(
        EXPECTED,
        ttft_s=Quantiles(p50=8.5, p95=9.0),
        e2e_s=Quantiles(p50=9.5, p95=11.0),
        room=0.0,
        asleep=True,
        wake_s=8.0,
    )


def test_a_start_that_takes_no_time_adds_none() -> None:
    found = predict(chat(), asleep(full(), 0.0))
    assert (found.wake_s, found.ttft_s, found.e2e_s) == (0.0, EXPECTED.ttft_s, EXPECTED.e2e_s)


def test_when_a_sleeping_variant_would_answer_is_unknown_where_the_time_of_its_start_is() -> None:
    sleeping = asleep(full(), None)
    assert predict(chat(), sleeping) == structs.replace(EXPECTED, ttft_s=None, e2e_s=None, room=0.0, asleep=True)
    decision = decide(chat(), Terms(ttft_s_max=1000.0), [sleeping], CHEAP)
    assert [candidate.prediction.asleep for candidate in decision.candidates] == [True]
    assert [refusal.reason for candidate in decision.candidates for refusal in candidate.refusals] == [
        "its time to first token (p95) is unknown, over the 1e+03 s asked"
    ]
    assert decide(chat(), NO_TERMS, [sleeping], POLICIES["fast"]).variant == "full"


def test_the_prediction_is_that_of_the_least_loaded_ready_replica() -> None:
    speed = SpeedCard(prefill_tokens_per_s=1024.0, decode_tokens_per_s={1: 64.0, 4: 256.0}, source="made up")
    of = state(
        variant(speed=speed),
        ReplicaState(id="r1", running=4, waiting=2),
        ReplicaState(id="r2", running=3),
        ReplicaState(id="r3", ready=False),
        latency=LatencyModel(speed, 4),
    )
    found = predict(chat(), of)
    assert found.tpot_s is not None
    assert found.tpot_s.p50 == 4 / 256  # as the fourth in the batch
    assert found.costs.cost_usd == 0.125 + 8 / 256
    assert found.room == 0.25


def test_of_two_replicas_with_the_same_load_the_prediction_is_that_of_the_first_by_name() -> None:
    of = state(
        variant(),
        ReplicaState(id="r2"),
        ReplicaState(id="r1", queued_tokens=1024),
        latency=LatencyModel(SPEED, 4),
    )
    found = predict(chat(), of)
    assert found.ttft_s is not None
    assert found.ttft_s.p50 == 1.125


def test_cached_prompt_tokens_cost_nothing() -> None:
    assert predict(chat(), state(variant(), IDLE, cached_share=0.5)).costs.cost_usd == 0.0625 + 0.125


def test_what_is_unknown_of_a_variant_is_not_predicted() -> None:
    of = state(variant(quality=None, speed=None, power=None), IDLE, latency=Unknown())
    assert predict(chat(), of) == Prediction(
        ttft_s=None,
        tpot_s=None,
        e2e_s=None,
        output_tokens=9.0,
        costs=Costs(energy_j=None, cost_usd=None, carbon_g=None),
        quality=None,
        room=1.0,
        wake_s=None,
    )


def test_degrade_serves_the_one_that_misses_the_fewest_terms_and_names_what_it_misses() -> None:
    terms = Terms(quality_min=0.95, cost_usd_max=0.1, on_unmet="degrade")
    decision = decide(chat(), terms, [full(), int8()], CHEAP)
    assert decision.variant == "full"  # int8 misses both
    assert decision.missed == (
        Refusal(term="cost_usd_max", limit=0.1, offered=0.25, reason="its cost is 0.25 USD, over the 0.1 USD asked"),
    )
    assert decision.ranking == ("full", "int8")
    assert [candidate.score for candidate in decision.candidates] == [None, None]


def test_among_those_that_miss_as_many_terms_degrade_serves_the_nearest() -> None:
    decision = decide(chat(), Terms(cost_usd_max=0.1, on_unmet="degrade"), [full(), int8()], CHEAP)
    assert decision.variant == "int8"
    assert [refusal.term for refusal in decision.missed] == ["cost_usd_max"]


def test_among_the_nearest_degrade_serves_the_first_by_name() -> None:
    fleet = [state(variant(name), IDLE) for name in ("b", "a")]
    assert decide(chat(), Terms(cost_usd_max=0.1, on_unmet="degrade"), fleet, CHEAP).ranking == ("a", "b")


def test_degrade_changes_nothing_where_the_terms_are_met() -> None:
    asked = Terms(quality_min=0.95)
    assert decide(chat(), structs.replace(asked, on_unmet="degrade"), [full(), int8()], CHEAP) == decide(
        chat(), asked, [full(), int8()], CHEAP
    )


def test_degrade_does_not_serve_from_one_that_cannot() -> None:
    asked = Terms(cost_usd_max=0.0, on_unmet="degrade")
    decision = decide(chat(needs=frozenset({"tools"})), asked, [full(), int8()], CHEAP)
    assert (decision.variant, decision.ranking, decision.missed) == (None, (), ())


def test_a_candidate_is_found_by_name_or_not_at_all() -> None:
    decision = decide(chat(), NO_TERMS, [full()], CHEAP)
    assert decision.candidate("full") is decision.candidates[0]
    with pytest.raises(KeyError):
        decision.candidate("int8")


@pytest.mark.parametrize(
    ("terms", "fleet", "wanted"),
    [
        (Terms(), [full(), asleep(int8())], ["int8"]),  # it would be cheaper
        (Terms(), [asleep(full()), int8()], []),  # it would be dearer
        (Terms(), [asleep(full()), asleep(int8())], []),  # the best is chosen, so it is started anyway
        (Terms(ttft_s_max=2.0), [full(), asleep(int8())], []),  # it came too late, and full serves well
        (Terms(ttft_s_max=2.0, cost_usd_max=0.2), [full(), asleep(int8())], ["int8"]),  # later requests need it
        (Terms(ttft_s_max=2.0, quality_min=0.95), [asleep(int8())], []),  # nor would it do once awake
        (
            Terms(ttft_s_max=2.0, cost_usd_max=0.2, on_unmet="degrade"),
            [full(), asleep(int8())],
            ["int8"],  # full serves for now and misses the cost
        ),
    ],
)
def test_sleeping_variants_that_would_have_served_better_are_worth_waking(
    terms: Terms, fleet: list[VariantState], wanted: list[str]
) -> None:
    assert worth_waking(decide(chat(), terms, fleet, CHEAP)) == wanted


def only_pinned(of: VariantState) -> VariantState:
    """The same, not promoted."""
    return replace(of, variant=replace(of.variant, routed=False))


def test_a_variant_that_was_not_promoted_serves_only_those_who_pin_it() -> None:
    fleet = [full(), only_pinned(int8())]
    chosen = decide(chat(), NO_TERMS, fleet, CHEAP)
    assert chosen.ranking == ("full",)
    assert chosen.candidate("int8").refusals == (
        Refusal(
            term="routed",
            limit=None,
            offered=None,
            reason="it is served only when a request pins it: the gate did not promote it",
        ),
    )
    assert decide(chat(pinned="int8"), NO_TERMS, fleet, CHEAP).ranking == ("int8",)
    assert decide(chat(pinned="full"), NO_TERMS, fleet, CHEAP).candidate("int8").refusals[0].term == "pinned"


def test_degrade_does_not_turn_to_a_variant_that_was_not_promoted() -> None:
    terms = Terms(cost_usd_max=0.2, on_unmet="degrade")
    assert decide(chat(), terms, [full(), only_pinned(int8())], CHEAP).ranking == ("full",)


def test_a_variant_that_was_not_promoted_is_woken_only_for_those_who_pin_it() -> None:
    fleet = [full(), asleep(only_pinned(int8()))]
    assert worth_waking(decide(chat(), NO_TERMS, fleet, CHEAP)) == []
    assert worth_waking(decide(chat(pinned="int8"), Terms(ttft_s_max=2.0), fleet, CHEAP)) == ["int8"]


def test_a_variant_that_was_not_promoted_is_named_in_a_refusal_and_does_not_decide_its_kind() -> None:
    fleet = [only_pinned(int8()), full()]
    terms = Terms(quality_min=0.95, cost_usd_max=0.2)
    found = refusal_error(decide(chat(), terms, fleet, CHEAP), retry_after_s=1.0)
    assert (type(found), found.param) == (TermsUnmet, "cost_usd_max")
    assert "int8: it is served only when a request pins it" in found.message
    found = refusal_error(decide(chat(needs=TOOLS), NO_TERMS, fleet, CHEAP), retry_after_s=1.0)
    assert isinstance(found, FeatureUnsupported)
    able = replace(fleet[0], variant=replace(fleet[0].variant, features=TOOLS | {"chat"}))
    found = refusal_error(decide(chat(needs=TOOLS), NO_TERMS, [able, full()], CHEAP), retry_after_s=1.0)
    assert isinstance(found, FeatureUnsupported)


BUSY = ReplicaState(id="r1", running=4, waiting=64)
TOOLS = frozenset({"tools"})


@pytest.mark.parametrize(
    ("profile", "terms", "fleet", "error", "param"),
    [
        (chat(), NO_TERMS, [replace(full(), replicas=(BUSY,)), replace(int8(), replicas=())], Overloaded, None),
        (chat(), NO_TERMS, [replace(full(), replicas=())], NotReady, None),
        (chat(needs=TOOLS), NO_TERMS, [full(), replace(int8(), replicas=())], FeatureUnsupported, None),
        (chat(lora="french"), NO_TERMS, [full(), int8()], ModelNotFound, "model"),
        (chat(prompt_tokens_least=5000), NO_TERMS, [full(), int8()], ContextTooLong, None),
        (chat(), Terms(cost_usd_max=0.1), [full(), int8()], TermsUnmet, "cost_usd_max"),
        (chat(), Terms(quality_min=0.95, cost_usd_max=0.1), [int8(), full()], TermsUnmet, "quality_min"),
        (chat(), Terms(cost_usd_max=0.2), [full(), replace(int8(), replicas=())], NotReady, None),
        (chat(pinned="int8"), Terms(quality_min=0.95), [full(), int8()], TermsUnmet, "quality_min"),
    ],
    ids=["full", "coming up", "features", "lora", "context", "terms", "two terms", "soon", "pinned"],
)
def test_a_refusal_is_the_error_that_helps_most(
    profile: RequestProfile,
    terms: Terms,
    fleet: list[VariantState],
    error: type[EconomizerError],
    param: str | None,
) -> None:
    decision = decide(profile, terms, fleet, CHEAP)
    assert decision.variant is None
    found = refusal_error(decision, retry_after_s=3.0)
    waits = error in (Overloaded, NotReady)
    assert (type(found), found.param, found.retry_after_s) == (error, param, 3.0 if waits else None)


def test_a_refusal_names_each_variant_and_the_term_that_it_fails() -> None:
    decision = decide(chat(), Terms(quality_min=0.95, cost_usd_max=0.2), [full(), int8()], CHEAP)
    assert refusal_error(decision, retry_after_s=1.0).message == (
        "No variant of m can serve this request: full: its cost is 0.25 USD, over the 0.2 USD asked; "
        "int8: its quality is 0.9, under the 0.95 asked."
    )


def test_a_refusal_does_not_speak_of_variants_that_the_caller_did_not_ask_for() -> None:
    decision = decide(chat(pinned="int8"), Terms(quality_min=0.95), [full(), int8()], CHEAP)
    assert refusal_error(decision, retry_after_s=1.0).message == (
        "No variant of m can serve this request: int8: its quality is 0.9, under the 0.95 asked."
    )


# Laws, over fleets of up to four variants. Prices are whole dollars, so that no two costs differ by a rounding only.
replicas = st.lists(
    st.builds(
        ReplicaState,
        id=st.sampled_from(["r1", "r2", "r3"]),
        ready=st.sampled_from([True, True, False]),
        running=st.integers(0, 4),
        waiting=st.sampled_from([0, 0, 1, 64]),
        queued_tokens=st.sampled_from([0, 700]),
    ),
    max_size=3,
    unique_by=lambda replica: replica.id,
)
halves = st.integers(1, 8).map(lambda eighths: eighths / 8)


@st.composite
def states(draw: st.DrawFn, name: str) -> VariantState:
    speed = draw(st.sampled_from([None, SPEED, replace(SPEED, cold_start_s=2.0)]))
    of = variant(
        name,
        quality=draw(st.none() | halves),
        speed=speed,
        power=draw(st.sampled_from([None, variant().power])),
        usd_per_hour=float(draw(st.integers(0, 12))),
        carbon_g_per_kwh=draw(st.sampled_from([None, 30.0, 400.0])),
        features=draw(st.sampled_from([frozenset({"chat"}), frozenset({"chat", "tools"})])),
        replicas_min=draw(st.integers(0, 1)),
    )
    steady = st.builds(Steady, ttft=st.builds(lambda p50: Quantiles(p50=p50, p95=2 * p50), halves))
    latency = draw(st.one_of(st.just(Unknown()), steady, st.just(LatencyModel(speed, 4))))
    return state(of, *draw(replicas), latency=latency)


fleets = st.sets(st.sampled_from("abcd"), min_size=1).flatmap(
    lambda names: st.tuples(*(states(name) for name in sorted(names)))
)
profiles = st.builds(
    chat, needs=st.sampled_from([frozenset(), frozenset(), TOOLS]), pinned=st.sampled_from([None, "a"])
)
ceilings = st.none() | st.floats(0, 2)
terms = st.builds(
    Terms,
    quality_min=st.none() | halves,
    ttft_s_max=ceilings,
    tpot_s_max=ceilings,
    e2e_s_max=ceilings,
    cost_usd_max=st.none() | st.floats(0, 1e-3),
    energy_j_max=st.none() | st.floats(0, 50),
    carbon_g_max=ceilings,
    on_unmet=st.sampled_from(["refuse", "degrade"]),
)
policies = st.sampled_from(list(POLICIES.values()))
single = st.sampled_from([Policy(name=name, weights={name: 1.0}) for name in ("cost", "energy", "speed", "quality")])


def by_name(decision: Decision) -> Decision:
    return structs.replace(decision, candidates=tuple(sorted(decision.candidates, key=lambda one: one.variant)))


@given(profiles, terms, fleets, policies, st.integers(0, 1000))
def test_a_decision_does_not_depend_on_the_order_of_the_fleet(
    profile: RequestProfile, terms: Terms, fleet: tuple[VariantState, ...], policy: Policy, seed: int
) -> None:
    first = decide(profile, terms, fleet, policy)
    assert decide(profile, terms, fleet, policy) == first
    random = Random(seed)
    shuffled = [replace(one, replicas=tuple(random.sample(one.replicas, len(one.replicas)))) for one in fleet]
    random.shuffle(shuffled)
    assert by_name(decide(profile, terms, shuffled, policy)) == by_name(first)


@given(profiles, terms, fleets, policies)
def test_whoever_is_chosen_meets_the_terms_or_what_it_misses_is_named(
    profile: RequestProfile, terms: Terms, fleet: tuple[VariantState, ...], policy: Policy
) -> None:
    decision = decide(profile, terms, fleet, policy)
    if decision.variant is None:
        assert all(candidate.refusals for candidate in decision.candidates)
    else:
        assert decision.ranking[0] == decision.variant
        assert decision.missed == decision.candidate(decision.variant).refusals
        assert terms.on_unmet == "degrade" or not decision.missed
        assert {refusal.term for refusal in decision.missed} <= TERMS.keys()


@given(profiles, terms, fleets, policies)
def test_degrade_always_chooses_something_if_some_variant_is_able(
    profile: RequestProfile, terms: Terms, fleet: tuple[VariantState, ...], policy: Policy
) -> None:
    able = decide(profile, NO_TERMS, fleet, policy).variant is not None
    assert (decide(profile, structs.replace(terms, on_unmet="degrade"), fleet, policy).variant is not None) == able


@given(profiles, terms, fleets)
def test_under_cheap_no_awake_variant_that_meets_the_terms_costs_less_than_the_chosen(
    profile: RequestProfile, terms: Terms, fleet: tuple[VariantState, ...]
) -> None:
    decision = decide(profile, structs.replace(terms, on_unmet="refuse"), fleet, CHEAP)
    awake = [one for one in decision.candidates if not one.refusals and not one.prediction.asleep]
    known = [one.prediction.costs.cost_usd for one in awake if one.prediction.costs.cost_usd is not None]
    if known:
        assert decision.variant is not None
        assert decision.candidate(decision.variant).prediction.costs.cost_usd == min(known)


@given(profiles, terms, fleets, halves, single)
def test_raising_the_floor_never_lowers_the_quality_chosen(
    profile: RequestProfile, terms: Terms, fleet: tuple[VariantState, ...], floor: float, policy: Policy
) -> None:
    lower = structs.replace(terms, on_unmet="refuse", quality_min=min(floor, terms.quality_min or 0.0) or None)
    before = decide(profile, lower, fleet, policy)
    after = decide(profile, structs.replace(lower, quality_min=floor), fleet, policy)
    if after.variant is not None:
        assert before.variant is not None
        chosen, then = before.candidate(before.variant), after.candidate(after.variant)
        assert then.prediction.quality is not None
        assert then.prediction.quality >= max(floor, chosen.prediction.quality or 0.0)


@given(profiles, terms, fleets, policies, st.sampled_from(sorted(TERMS.keys() - {"quality_min"})), st.floats(0, 1))
def test_tightening_a_ceiling_never_accepts_a_variant_that_was_refused(
    profile: RequestProfile, terms: Terms, fleet: tuple[VariantState, ...], policy: Policy, name: str, share: float
) -> None:
    loose = getattr(terms, name)
    tighter = structs.replace(terms, **{name: share if loose is None else share * loose})  # type: ignore[arg-type]
    before = decide(profile, terms, fleet, policy).candidates
    after = decide(profile, tighter, fleet, policy).candidates
    for was, now in zip(before, after, strict=True):
        assert {refusal.term for refusal in was.refusals} <= {refusal.term for refusal in now.refusals}


def test_raising_the_floor_never_lowers_the_quality_chosen_where_several_scorers_are_weighed() -> None:
    def of(name: str, quality: float, usd_per_hour: float, ttft_s: float, tpot_s: float) -> VariantState:
        latency = Steady(ttft=Quantiles(p50=ttft_s, p95=1.0), tpot=Quantiles(p50=tpot_s, p95=1.0))
        return state(variant(name, quality=quality, usd_per_hour=usd_per_hour), IDLE, latency=latency)

    fleet = [of("a", 0.9, 720.0, 0.5, 0.02), of("b", 0.8, 720.0, 0.2, 0.05), of("c", 0.7, 1800.0, 0.2, 0.02)]
    chosen = [decide(chat(), Terms(quality_min=floor), fleet, POLICIES["balanced"]).variant for floor in (None, 0.75)]
    assert chosen == ["a", "a"]


def test_a_full_or_missing_engine_is_said_to_come_back_whatever_latency_was_asked() -> None:
    hurried = Terms(ttft_s_max=0.01)
    for replicas, error in (((BUSY,), Overloaded), ((), NotReady)):
        decision = decide(chat(), hurried, [replace(full(), replicas=replicas)], CHEAP)
        assert isinstance(refusal_error(decision, retry_after_s=1.0), error)
    dear = decide(chat(), Terms(quality_min=1.0), [replace(int8(), replicas=())], CHEAP)
    assert isinstance(refusal_error(dear, retry_after_s=1.0), TermsUnmet)
    assert isinstance(refusal_error(dear, retry_after_s=1.0, degrade=True), NotReady)

from typing import Any

import pytest
from economizer.router.decide import predict
from economizer.router.filters import TERMS, filters_for
from economizer.router.types import Refusal, ReplicaState, RequestProfile, Terms, VariantState
from examples import IDLE, Steady, Unknown, chat, state, variant
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace


def refusals(
    of: VariantState, terms: Terms | None = None, profile: RequestProfile | None = None
) -> tuple[Refusal, ...]:
    """What all filters say, in their order."""
    asked, profile = terms or Terms(), profile or chat()
    found = predict(profile, of)
    return tuple(refusal for one in filters_for(asked) if (refusal := one(profile, asked, of, found)) is not None)


def test_a_variant_that_meets_everything_is_not_refused() -> None:
    terms = Terms(
        quality_min=1.0,
        ttft_s_max=1.0,
        tpot_s_max=0.25,
        e2e_s_max=3.0,
        cost_usd_max=0.25,
        energy_j_max=25.0,
        carbon_g_max=3.0,
    )
    assert refusals(state(variant(carbon_g_per_kwh=400_000.0), IDLE), terms) == ()


@pytest.mark.parametrize(
    ("terms", "limit", "offered", "reason"),
    [
        ({"quality_min": 0.95}, 0.95, 0.9, "its quality is 0.9, under the 0.95 asked"),
        ({"ttft_s_max": 0.9}, 0.9, 1.0, "its time to first token (p95) is 1 s, over the 0.9 s asked"),
        ({"tpot_s_max": 0.2}, 0.2, 0.25, "its time per output token (p95) is 0.25 s, over the 0.2 s asked"),
        ({"e2e_s_max": 2.9}, 2.9, 3.0, "its time for the whole answer (p95) is 3 s, over the 2.9 s asked"),
        ({"cost_usd_max": 0.2}, 0.2, 0.25, "its cost is 0.25 USD, over the 0.2 USD asked"),
        ({"energy_j_max": 24.0}, 24.0, 25.0, "its energy is 25 J, over the 24 J asked"),
        ({"carbon_g_max": 24.0}, 24.0, 25.0, "its carbon is 25 gCO2e, over the 24 gCO2e asked"),
    ],
)
def test_a_term_refuses_a_variant_and_says_what_it_offers(
    terms: dict[str, Any], limit: float, offered: float, reason: str
) -> None:
    of = state(variant(quality=0.9, carbon_g_per_kwh=3.6e6), IDLE)
    (term,) = terms
    assert refusals(of, Terms(**terms)) == (Refusal(term=term, limit=limit, offered=offered, reason=reason),)


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"quality_min": 0.0}, "its quality is unknown, under the 0 asked"),
        ({"ttft_s_max": 100.0}, "its time to first token (p95) is unknown, over the 100 s asked"),
        ({"tpot_s_max": 100.0}, "its time per output token (p95) is unknown, over the 100 s asked"),
        ({"e2e_s_max": 100.0}, "its time for the whole answer (p95) is unknown, over the 100 s asked"),
        ({"cost_usd_max": 100.0}, "its cost is unknown, over the 100 USD asked"),
        ({"energy_j_max": 100.0}, "its energy is unknown, over the 100 J asked"),
        ({"carbon_g_max": 100.0}, "its carbon is unknown, over the 100 gCO2e asked"),
    ],
)
def test_what_is_unknown_meets_no_term(terms: dict[str, Any], reason: str) -> None:
    of = state(variant(quality=None, speed=None, power=None), IDLE, latency=Unknown())
    (term,) = terms
    limit = terms[term]
    assert refusals(of, Terms(**terms)) == (Refusal(term=term, limit=limit, offered=None, reason=reason),)


def test_the_names_of_the_terms_are_those_that_their_filters_refuse_by() -> None:
    none = Terms(
        quality_min=1.0,
        ttft_s_max=0.0,
        tpot_s_max=0.0,
        e2e_s_max=0.0,
        cost_usd_max=0.0,
        energy_j_max=0.0,
        carbon_g_max=0.0,
    )
    of = state(variant(quality=0.5, carbon_g_per_kwh=1.0), IDLE)
    assert {refusal.term for refusal in refusals(of, none)} == TERMS.keys()


@pytest.mark.parametrize(
    ("profile", "refusal"),
    [
        (
            chat(pinned="int8"),
            Refusal(term="pinned", limit="int8", offered="full", reason="the request pins int8"),
        ),
        (
            chat(lora="french"),
            Refusal(term="lora", limit="french", offered=None, reason="it does not serve the LoRA adapter french"),
        ),
        (
            chat(needs=frozenset({"vision", "tools"})),
            Refusal(term="features", limit="tools, vision", offered=None, reason="it has no tools, vision"),
        ),
        (
            replace(chat(), endpoint="embeddings"),
            Refusal(term="features", limit="embeddings", offered=None, reason="it has no embeddings"),
        ),
        (
            chat(prompt_tokens_least=4000, output_tokens_max=97),
            Refusal(
                term="context",
                limit=4097.0,
                offered=4096.0,
                reason="about 4097 tokens of prompt and answer do not fit its context of 4096",
            ),
        ),
        (
            chat(prompt_tokens_least=4096),
            Refusal(
                term="context",
                limit=4097.0,
                offered=4096.0,
                reason="about 4097 tokens of prompt and answer do not fit its context of 4096",
            ),
        ),
    ],
    ids=["pinned", "lora", "features", "endpoint", "answer too long", "prompt too long"],
)
def test_what_a_variant_cannot_do_refuses_it(profile: RequestProfile, refusal: Refusal) -> None:
    assert refusals(state(variant(), IDLE), profile=profile) == (refusal,)


def test_what_a_variant_can_do_does_not_refuse_it() -> None:
    able = variant("full", features=frozenset({"chat", "tools"}), loras=("french",))
    profile = chat(
        pinned="full", lora="french", needs=frozenset({"tools"}), prompt_tokens_least=4000, output_tokens_max=96
    )
    assert refusals(state(able, IDLE), profile=profile) == ()


def test_a_prompt_that_only_seems_too_long_is_left_for_the_engine_to_count() -> None:
    assert refusals(state(variant(), IDLE), profile=chat(prompt_tokens=9000, prompt_tokens_least=4000)) == ()


def test_a_variant_without_a_ready_replica_is_refused_unless_it_may_be_woken() -> None:
    coming = ReplicaState(id="r1", ready=False)
    refusal = Refusal(term="health", limit=None, offered=None, reason="no replica of it is ready")
    assert refusals(state(variant(replicas_min=1), coming)) == (refusal,)
    assert refusals(state(variant(replicas_min=1))) == (refusal,)
    assert refusals(state(variant(replicas_min=0), coming)) == ()
    assert refusals(state(variant(replicas_min=1), coming, ReplicaState(id="r2"))) == ()


def full(name: str, *, waiting: int, ready: bool = True) -> ReplicaState:
    """A replica whose batch of four is full."""
    return ReplicaState(id=name, running=4, waiting=waiting, ready=ready)


def test_a_variant_is_refused_when_every_ready_replica_holds_all_that_may_wait() -> None:
    of = state(variant(), full("r1", waiting=9), full("r2", waiting=8), full("r3", waiting=0, ready=False), queue_max=8)
    assert refusals(of) == (
        Refusal(
            term="capacity",
            limit=8.0,
            offered=8.0,
            reason="8 requests wait at its least busy replica, and 8 may",
        ),
    )


def test_one_replica_with_room_in_its_queue_is_enough() -> None:
    assert refusals(state(variant(), full("r1", waiting=9), full("r2", waiting=7), queue_max=8)) == ()


def test_where_none_may_wait_a_batch_with_room_still_takes_a_request() -> None:
    assert refusals(state(variant(), ReplicaState(id="r1", running=3), queue_max=0)) == ()
    refused = refusals(state(variant(), full("r1", waiting=0), queue_max=0))
    assert [refusal.term for refusal in refused] == ["capacity"]


limits = st.floats(0, 10)
CEILINGS = ("ttft_s_max", "tpot_s_max", "e2e_s_max", "cost_usd_max", "energy_j_max", "carbon_g_max")


@given(st.sampled_from(CEILINGS), limits, limits, st.integers(0, 4000), st.integers(0, 200), st.booleans())
def test_tightening_a_ceiling_never_accepts_what_a_looser_one_refused(
    ceiling: str, one: float, other: float, prompt: int, answer: int, known: bool
) -> None:
    tight, loose = sorted((one, other))
    of = state(
        variant(carbon_g_per_kwh=400.0, power=variant().power if known else None),
        IDLE,
        latency=Steady() if known else Unknown(),
    )
    profile = chat(prompt_tokens=prompt, output_tokens_expected=float(answer))
    refused = len(refusals(of, replace(Terms(), **{ceiling: loose}), profile))  # type: ignore[arg-type]
    assert refused <= len(refusals(of, replace(Terms(), **{ceiling: tight}), profile))  # type: ignore[arg-type]

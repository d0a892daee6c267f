from dataclasses import replace
from math import nan

import pytest
from economizer.router.decide import decide
from economizer.router.holdout import HoldOut, arm, eligible, held_out
from economizer.router.policies import POLICIES
from economizer.router.types import Decision, ReplicaState, RequestProfile, Terms, VariantState
from examples import IDLE, chat, state, variant
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

FULL = state(variant("full", quality=1.0, usd_per_hour=3600.0), IDLE)
INT8 = state(variant("int8", quality=0.9, usd_per_hour=1800.0), IDLE)
INT4 = state(variant("int4", quality=0.8, usd_per_hour=900.0), IDLE)

shares = st.floats(0, 0.5)


def decided(fleet: tuple[VariantState, ...], terms: Terms, profile: RequestProfile) -> Decision:
    return decide(profile, terms, fleet, POLICIES["cheap"])


def sleeping(of: VariantState) -> VariantState:
    return replace(of, variant=replace(of.variant, replicas_min=0), replicas=())


def running(of: VariantState, requests: int) -> VariantState:
    return replace(of, replicas=(ReplicaState(id="r1", running=requests),))


@pytest.mark.parametrize("share", [-0.01, 0.51, 1.0, nan])
def test_a_share_is_between_none_and_half(share: float) -> None:
    with pytest.raises(ValueError, match=r"share is .*: must be between 0 and 0.5"):
        HoldOut(share=share)


@given(st.text(), st.text())
def test_no_share_holds_nobody_out(request_id: str, seed: str) -> None:
    assert arm(request_id, HoldOut(share=0.0, seed=seed)) == "routed"


@given(st.text(), st.text(), shares, shares)
def test_a_larger_share_only_adds_to_the_hold_out(request_id: str, seed: str, one: float, other: float) -> None:
    fewer, more = (arm(request_id, HoldOut(share=share, seed=seed)) for share in sorted((one, other)))
    assert (fewer, more) != ("full", "routed")


def held(ids: list[str], holdout: HoldOut) -> list[str]:
    return [one for one in ids if arm(one, holdout) == "full"]


def test_an_id_keeps_its_arm_for_good() -> None:
    ids = [f"ecr-{number}" for number in range(16)]
    assert held(ids, HoldOut(share=0.25)) == ["ecr-0", "ecr-5", "ecr-10", "ecr-12", "ecr-15"]
    assert held(ids, HoldOut(share=0.25, seed="a")) == ["ecr-5", "ecr-14", "ecr-15"]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("seed", ["", "another"])
def test_arms_are_uniform_over_ids(share: float, seed: str) -> None:
    """Within 4 standard deviations of the share, in all ids and in every tenth one."""
    ids = [f"ecr-{number:032x}" for number in range(20_000)]
    for drawn in (ids, ids[::10]):
        found = len(held(drawn, HoldOut(share=share, seed=seed))) / len(drawn)
        assert abs(found - share) < 4 * (share * (1 - share) / len(drawn)) ** 0.5


def test_two_seeds_draw_independently() -> None:
    ids = [f"ecr-{number}" for number in range(10_000)]
    both = held(held(ids, HoldOut(share=0.5, seed="a")), HoldOut(share=0.5, seed="b"))
    assert abs(len(both) - 2_500) < 4 * (10_000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize(
    ("fleet", "terms", "profile", "expected"),
    [
        pytest.param((FULL, INT8), Terms(), chat(), True, id="routed, and the full one would do"),
        pytest.param((running(FULL, 3), INT8), Terms(), chat(), True, id="the last place of the full one's batch"),
        pytest.param((running(FULL, 4), INT8), Terms(), chat(), False, id="the full one's batch is full"),
        pytest.param((sleeping(FULL), INT8), Terms(), chat(), False, id="the full one sleeps"),
        pytest.param((INT4, INT8), Terms(), chat(), False, id="the full one was not weighed"),
        pytest.param((FULL, INT8), Terms(), chat(pinned="int8"), False, id="the caller pinned another"),
        pytest.param((FULL, INT8), Terms(quality_min=0.95), chat(), False, id="the full one was chosen anyhow"),
        pytest.param((FULL, INT8), Terms(cost_usd_max=0.2), chat(), False, id="the full one is over a limit"),
        pytest.param((FULL, INT8), Terms(cost_usd_max=0.01), chat(), False, id="nobody was chosen"),
        pytest.param(
            (FULL, INT8), Terms(cost_usd_max=0.01, on_unmet="degrade"), chat(), False, id="a term is missed as it is"
        ),
    ],
)
def test_who_may_be_held_out(
    fleet: tuple[VariantState, ...], terms: Terms, profile: RequestProfile, expected: bool
) -> None:
    assert eligible(decided(fleet, terms, profile), profile, "full") is expected


def test_a_held_out_decision_has_the_full_variant_first_and_is_the_same_otherwise() -> None:
    decision = decided((INT4, FULL, INT8), Terms(), chat())
    assert decision.ranking == ("int4", "int8", "full")
    assert held_out(decision, "full") == structs.replace(decision, variant="full", ranking=("full", "int4", "int8"))

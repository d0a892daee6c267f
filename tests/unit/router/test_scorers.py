import pytest
from economizer.router.policies import POLICIES, Policy
from economizer.router.scorers import SCORERS, scores
from economizer.router.types import Prediction, Quantiles
from economizer.variants.estimate import Costs
from hypothesis import given
from hypothesis import strategies as st


def prediction(
    *,
    cost: float | None = None,
    energy: float | None = None,
    carbon: float | None = None,
    seconds: float | None = None,
    quality: float | None = None,
    room: float = 0.0,
) -> Prediction:
    return Prediction(
        ttft_s=None,
        tpot_s=None,
        e2e_s=None if seconds is None else Quantiles(p50=seconds, p95=99.0),
        output_tokens=1.0,
        costs=Costs(cost_usd=cost, energy_j=energy, carbon_g=carbon),
        quality=quality,
        room=room,
    )


@pytest.mark.parametrize(
    ("scorer", "field"), [("cost", "cost"), ("energy", "energy"), ("carbon", "carbon"), ("speed", "seconds")]
)
def test_a_cost_is_scored_by_its_ratio_to_the_least(scorer: str, field: str) -> None:
    found = [prediction(**{field: value}) for value in (4.0, 2.0, 8.0)] + [prediction()]
    assert scores(found, {scorer: 1.0}) == [0.5, 1.0, 0.25, 0.0]


def test_what_costs_nothing_is_best_and_all_else_scores_nothing_beside_it() -> None:
    assert scores([prediction(cost=0.0), prediction(cost=2.0)], {"cost": 1.0}) == [1.0, 0.0]


def test_quality_and_room_are_scored_as_they_are() -> None:
    assert scores([prediction(quality=0.9), prediction()], {"quality": 1.0}) == [0.9, 0.0]
    assert scores([prediction(room=0.25), prediction(room=1.0)], {"room": 1.0}) == [0.25, 1.0]


def test_scores_are_weighed_and_need_not_add_up_to_one() -> None:
    found = [prediction(cost=1.0, quality=0.5), prediction(cost=2.0, quality=1.0)]
    assert scores(found, {"cost": 3.0, "quality": 1.0}) == [(3 * 1.0 + 0.5) / 4, (3 * 0.5 + 1.0) / 4]


def test_no_candidates_have_no_scores() -> None:
    assert scores([], {"cost": 1.0}) == []


costs = st.none() | st.floats(0, 1e6, allow_subnormal=False)
shares = st.floats(0, 1)
predictions = st.builds(
    prediction,
    cost=costs,
    energy=costs,
    carbon=costs,
    seconds=costs,
    quality=st.none() | shares,
    room=shares,
)


@given(st.lists(predictions, max_size=5), st.sampled_from(sorted(POLICIES)))
def test_a_score_is_between_nothing_and_one(found: list[Prediction], policy: str) -> None:
    assert all(0 <= score <= 1 + 1e-9 for score in scores(found, POLICIES[policy].weights))


@given(st.lists(predictions, min_size=1, max_size=5))
def test_a_single_scorers_best_scores_highest(found: list[Prediction]) -> None:
    by_cost = scores(found, {"cost": 1.0})
    known = [(one.costs.cost_usd, score) for one, score in zip(found, by_cost, strict=True) if one.costs.cost_usd]
    if known:
        assert min(known)[1] == max(score for _, score in known)


@pytest.mark.parametrize(
    ("weights", "rule"),
    [
        ({"luck": 1.0}, r"^weights is \['luck'\]: must be among \['carbon', 'cost', 'energy', 'quality', 'room', 'spe"),
        ({"cost": -1.0, "speed": 2.0}, r"^weights is .*: must be 0 or more"),
        ({"cost": 0.0}, r"^weights is .*: must be 0 or more and finite, and at least one above 0"),
        ({"cost": float("inf")}, r"^weights is .*: must be 0 or more and finite"),
        ({"cost": float("nan")}, r"^weights is .*: must be 0 or more and finite"),
        ({}, r"^weights is \{\}: must be 0 or more and finite, and at least one above 0"),
    ],
)
def test_a_policy_weighs_known_scorers_and_something_at_all(weights: dict[str, float], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Policy(name="mine", weights=weights)


def test_the_built_in_policies_are_named_for_what_they_favour() -> None:
    assert {name: policy.name for name, policy in POLICIES.items()} == {name: name for name in POLICIES}
    assert {name: max(policy.weights, key=policy.weights.__getitem__) for name, policy in POLICIES.items()} == {
        "cheap": "cost",
        "green": "carbon",
        "fast": "speed",
        "balanced": "cost",
    }
    assert {scorer for policy in POLICIES.values() for scorer in policy.weights} == set(SCORERS)

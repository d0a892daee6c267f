import pytest
from economizer.autoscaling.planner import Plan, Snapshot, Step, VariantLoad, plan
from hypothesis import given
from hypothesis import strategies as st


def load(
    variant: str = "m@full",
    *,
    replicas_min: int = 0,
    replicas_max: int = 4,
    requests: float = 0.0,
    demand: float = 0.0,
) -> VariantLoad:
    return VariantLoad(
        variant=variant,
        replicas_min=replicas_min,
        replicas_max=replicas_max,
        requests_per_replica=8.0,
        requests=requests,
        demand=demand,
    )


def test_a_plan_holds_every_variants_requests_between_its_bounds_and_says_why() -> None:
    loads = (
        load("m@full", replicas_min=2, requests=1.0),
        load("m@int8", requests=20.0),
        load("m@small", requests=100.0),
    )
    assert plan(Snapshot(variants=loads), now_s=7.0) == Plan(
        made_s=7.0,
        steps=(
            Step(
                variant="m@full",
                replicas=2,
                reason="1 requests and 0 waiting for it at 8 a replica, at least 2",
            ),
            Step(variant="m@int8", replicas=3, reason="20 requests and 0 waiting for it at 8 a replica"),
            Step(
                variant="m@small",
                replicas=4,
                reason="100 requests and 0 waiting for it at 8 a replica, at most 4",
            ),
        ),
    )


@pytest.mark.parametrize(
    ("requests", "demand", "replicas"),
    [
        (0.0, 0.0, 0),
        (0.0, 1.0, 1),  # one request that waits for a first replica starts one
        (0.1, 0.0, 1),
        (8.0, 0.0, 1),
        (8.0000001, 0.0, 1),  # loads are averages of samples: a hair more is not another replica
        (8.1, 0.0, 2),
        (4.0, 5.0, 2),
    ],
)
def test_replicas_for_a_load(requests: float, demand: float, replicas: int) -> None:
    assert plan(Snapshot(variants=(load(requests=requests, demand=demand),)), 0.0).steps[0].replicas == replicas


def test_replicas_that_nobody_needs_are_given_up() -> None:
    assert plan(Snapshot(variants=(load(),)), 0.0).steps[0].replicas == 0


@given(st.integers(0, 5), st.integers(1, 10), st.floats(0, 500), st.floats(0, 500), st.floats(0, 100))
def test_a_plan_keeps_the_bounds_and_more_load_never_means_fewer_replicas(
    replicas_min: int, more: int, requests: float, extra: float, demand: float
) -> None:
    def planned(requests: float) -> int:
        one = load(
            replicas_min=replicas_min,
            replicas_max=replicas_min + more,
            requests=requests,
            demand=demand,
        )
        return plan(Snapshot(variants=(one,)), 0.0).steps[0].replicas

    assert replicas_min <= planned(requests) <= planned(requests + extra) <= replicas_min + more


def test_a_replica_that_holds_no_request_cannot_be_planned_with() -> None:
    with pytest.raises(ValueError, match=r"^requests_per_replica is 0: must be above 0"):
        VariantLoad(variant="m", replicas_min=0, replicas_max=1, requests_per_replica=0)

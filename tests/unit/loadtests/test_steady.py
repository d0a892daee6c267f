from __future__ import annotations

from collections import Counter

import pytest
from load.prompts import Prompts, read_texts
from load.steady import KINDS, LIMITED_TENANT, Steady, leaving, steady_plan
from load.tokens import Rule
from load.types import Message

MINUTES = Steady(seconds=600, rate_per_s=2, cancel_share=0.1, leave_s_max=3, seed=1)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(read_texts(None), Rule())


def test_a_soak_has_requests_of_every_kind_and_tenant_at_the_wanted_rate(prompts: Prompts) -> None:
    plan = steady_plan(MINUTES, models=["boiler"], pins=["boiler@int8"], prompts=prompts)
    kinds = Counter(planned.kind for planned in plan)
    assert 1100 < len(plan) < 1300
    assert set(kinds) == {kind.name for kind in KINDS}
    assert {planned.model for planned in plan} == {"boiler", "boiler@int8"}
    assert 0.05 < sum(planned.tenant == LIMITED_TENANT for planned in plan) / len(plan) < 0.15
    assert [planned.due_s for planned in plan] == sorted(planned.due_s for planned in plan)


def test_a_session_goes_on_from_what_was_said_before_and_ends_after_four_turns(prompts: Prompts) -> None:
    plan = steady_plan(MINUTES, models=["boiler"], pins=["boiler@int8"], prompts=prompts)
    turns: dict[str, list[int]] = {}
    latest: dict[str, tuple[Message, ...]] = {}
    for planned in plan:
        if planned.session is not None:
            before = latest.get(planned.session, ())
            assert planned.messages[: max(0, len(before))] == before
            latest[planned.session] = planned.messages
            turns.setdefault(planned.session, []).append(len(planned.messages))
    assert max(len(lengths) for lengths in turns.values()) == 4
    assert [1, 3, 5, 7] in turns.values()


def test_the_same_seed_gives_the_same_load_and_the_same_callers_that_leave(prompts: Prompts) -> None:
    plans = [steady_plan(MINUTES, models=["boiler"], pins=["boiler@int8"], prompts=prompts) for _ in range(2)]
    assert plans[0] == plans[1]
    left = leaving(plans[0], MINUTES)
    assert left == leaving(plans[1], MINUTES)
    assert 0.05 < len(left) / len(plans[0]) < 0.15
    assert 0 <= min(left.values()) <= max(left.values()) <= 3


def test_a_rate_of_nothing_is_refused_with_its_name_and_value() -> None:
    with pytest.raises(ValueError, match=r"rate_per_s is 0: must be above 0"):
        Steady(seconds=1, rate_per_s=0, cancel_share=0, leave_s_max=1, seed=1)

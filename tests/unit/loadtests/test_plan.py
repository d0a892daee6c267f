from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from load.arrivals import Row
from load.mixes import SHIPPED, read_mix
from load.plan import Plan, Shape, make_plan
from load.prompts import Prompts, Texts
from load.tokens import Rule
from load.traces import Trace
from load.types import Terms
from msgspec.structs import replace

TEXTS = Texts(
    source="a test's",
    questions=tuple(f"What is the number {n} for?" for n in range(50)),
    documents=("Numbers are for counting and for telling one thing from another, says everybody. " * 300,),
)


def trace(*rows: Row) -> Trace:
    return Trace(format="our own", rows=rows)


def chats(count: int, prompt_tokens: int = 80) -> Trace:
    return trace(*(Row(at_s=at, prompt_tokens=prompt_tokens, output_tokens=20) for at in range(count)))


def planned(of: Trace, *, mix: str = "mixed", seed: int = 0, shape: Shape | None = None) -> Plan:
    return make_plan(of, Prompts(TEXTS, Rule(), seed), read_mix(mix), model="m", shape=shape, seed=seed)


def test_the_same_seed_gives_the_same_plan_and_another_one_another() -> None:
    assert planned(chats(30), seed=5) == planned(chats(30), seed=5)
    assert planned(chats(30), seed=5) != planned(chats(30), seed=6)


def test_speed_changes_when_requests_are_due_and_nothing_else() -> None:
    slow, fast = (planned(chats(20), shape=Shape(speed=speed)).requests for speed in (1.0, 8.0))
    assert [one.due_s for one in fast] == [one.due_s / 8 for one in slow]
    assert [replace(one, due_s=0.0) for one in fast] == [replace(one, due_s=0.0) for one in slow]


def test_requests_are_numbered_in_the_order_in_which_they_are_due() -> None:
    rows = [Row(at_s=at, prompt_tokens=50, output_tokens=5) for at in (3.0, 1.0, 2.0)]
    assert [(one.number, one.due_s) for one in planned(trace(*rows)).requests] == [(0, 1.0), (1, 2.0), (2, 3.0)]


def test_what_does_not_fit_the_context_is_cut_and_counted() -> None:
    rows = [
        Row(at_s=0, prompt_tokens=100, output_tokens=50),
        Row(at_s=1, prompt_tokens=9000, output_tokens=200),
        Row(at_s=2, prompt_tokens=100, output_tokens=5000),
    ]
    plan = planned(trace(*rows), shape=Shape(context_tokens=1000))
    assert (plan.prompts_cut, plan.answers_cut) == (1, 1)
    assert [one.output_tokens for one in plan.requests] == [50, 200, 500]
    for one in plan.requests:
        text = one.messages[-1].content
        assert Rule().count(text) * (1 + Rule.margin) + one.output_tokens <= 1000
    assert Rule().count(plan.requests[1].messages[-1].content) > 580


def test_a_length_scale_shortens_prompts_and_answers_before_they_are_cut() -> None:
    plan = planned(trace(Row(at_s=0, prompt_tokens=3000, output_tokens=400)), shape=Shape(length_scale=0.1))
    (one,) = plan.requests
    assert (plan.prompts_cut, plan.prompt_tokens, one.output_tokens) == (0, 300, 40)


def test_kinds_tell_sessions_shared_prefixes_and_long_prompts_apart() -> None:
    rows = [
        Row(at_s=0, prompt_tokens=50, output_tokens=5),
        Row(at_s=1, prompt_tokens=1500, output_tokens=5),
        Row(at_s=2, prompt_tokens=80, output_tokens=5, session="s"),
        Row(at_s=3, prompt_tokens=250, output_tokens=5, session="s"),
        Row(at_s=4, prompt_tokens=700, output_tokens=5, blocks=(1, 2)),
    ]
    requests = planned(trace(*rows)).requests
    kinds = ["chat", "long prompt", "multi-turn", "multi-turn", "shared prefix"]
    assert [one.kind for one in requests] == kinds
    assert requests[3].messages[0] == requests[2].messages[0]
    assert [message.role for message in requests[3].messages] == ["user", "assistant", "user"]


def test_tenants_are_drawn_unlike_and_a_session_stays_with_its_own() -> None:
    rows = [Row(at_s=at, prompt_tokens=60, output_tokens=5, session=f"s{at % 40}") for at in range(400)]
    requests = planned(trace(*rows), shape=Shape(tenants=3)).requests
    counts = Counter(one.tenant for one in requests)
    assert set(counts) == {"tenant-1", "tenant-2", "tenant-3"}
    assert counts["tenant-1"] > counts["tenant-3"]
    assert len({(one.session, one.tenant) for one in requests}) == 40


def test_tenants_of_a_trace_keep_their_rank_and_their_names_where_no_number_is_asked_for() -> None:
    rows = [
        Row(at_s=at, prompt_tokens=60, output_tokens=5, tenant=name)
        for at, name in enumerate(["b", "a", "b", "c", "b", "a"])
    ]
    assert [one.tenant for one in planned(trace(*rows)).requests] == ["b", "a", "b", "c", "b", "a"]
    two = planned(trace(*rows), shape=Shape(tenants=2)).requests
    assert [one.tenant[-1] for one in two] == ["1", "2", "1", "1", "1", "2"]


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("strict", {0.9: 1.0}),
        ("mixed", {0.9: 1 / 3, 0.7: 1 / 3, None: 1 / 3}),
        ("relaxed", {0.9: 0.1, 0.5: 0.4, None: 0.5}),
    ],
)
def test_the_shipped_mixes_have_the_floors_that_they_are_named_for(
    name: str, shares: dict[float | None, float]
) -> None:
    requests = planned(chats(1500), mix=name).requests
    floors = Counter(one.terms.quality_min for one in requests)
    assert {floor: count / 1500 for floor, count in floors.items()} == pytest.approx(shares, abs=0.05)
    assert all(one.terms.ttft_s_max and one.terms.tpot_s_max for one in requests)


def test_a_policy_goes_to_every_sort_that_names_none() -> None:
    mix = read_mix("mixed").with_policy("green")
    assert {sort.terms.policy for sort in mix.sorts.values()} == {"green"}


def test_a_mix_of_ones_own_is_read_and_a_wrong_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("batch: {share: 0.25, service_tier: flex}\nchat: {share: 0.75, terms: {e2e_s_max: 5}}\n")
    mix = read_mix(str(file))
    assert mix.sorts["batch"].service_tier == "flex"
    assert mix.sorts["chat"].terms == Terms(e2e_s_max=5.0)
    file.write_text("chat: {share: 0.5}\n")
    with pytest.raises(ValueError, match=r"share adds up to 0\.5: must be 0 or more each, and 1 in all"):
        read_mix(str(file))
    file.write_text("chat: {share: 1, terms: {quality: 0.5}}\n")
    with pytest.raises(ValueError, match="quality"):
        read_mix(str(file))
    shipped = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
    with pytest.raises(ValueError, match=f"must be {', '.join(shipped)} or the path"):
        read_mix("nothing")

"""Terms and policies: by header, by body, met, unmet, and misspelt."""

from typing import Any

import pytest
from fleet import Fleet
from replies import Caller, soon

# Each of these leaves one variant of `terms` only, for an answer of 8 tokens; the policy would have chosen another.
FORCED = [
    ("x-quality-min", "0.95", {"quality_min": 0.95}, "cheap", "full"),
    ("x-slo-ttft-ms", "300", {"ttft_s_max": 0.3}, "cheap", "fast"),
    ("x-llm-d-slo-ttft-ms", "300", {"ttft_s_max": 0.3}, "cheap", "fast"),
    ("x-slo-tpot-ms", "20", {"tpot_s_max": 0.02}, "cheap", "fast"),
    ("x-llm-d-slo-tpot-ms", "20", {"tpot_s_max": 0.02}, "cheap", "fast"),
    ("x-slo-e2e-ms", "500", {"e2e_s_max": 0.5}, "cheap", "fast"),
    ("x-max-cost-usd", "0.000004", {"cost_usd_max": 0.000004}, "fast", "green"),
    ("x-max-energy-j", "10", {"energy_j_max": 10}, "fast", "green"),
    ("x-max-carbon-g", "0.001", {"carbon_g_max": 0.001}, "fast", "green"),
]


@pytest.mark.parametrize(("header", "value", "term", "policy", "variant"), FORCED)
async def test_a_term_in_a_header_decides_the_variant(
    caller: Caller, header: str, value: str, term: dict[str, float], policy: str, variant: str
) -> None:
    reply = await caller.chat("terms", headers={header: value, "x-economizer-policy": policy})
    assert (reply.status, reply.variant) == (200, variant)
    receipt = await caller.receipt(reply.receipt_id)
    assert {name: receipt["terms"][name] for name in term} == pytest.approx(term)


@pytest.mark.parametrize(("header", "value", "term", "policy", "variant"), FORCED)
async def test_a_term_in_the_body_decides_the_variant(
    caller: Caller, header: str, value: str, term: dict[str, float], policy: str, variant: str
) -> None:
    asked = {**term, "policy": policy}
    reply = await caller.chat("terms", economizer=asked)
    assert (reply.status, reply.variant) == (200, variant)


async def test_the_bodys_terms_win_over_the_headers(caller: Caller) -> None:
    reply = await caller.chat("terms", headers={"x-quality-min": "0.95"}, economizer={"quality_min": 0.1})
    assert reply.variant == "green"


@pytest.mark.parametrize("variant", ["fast", "full", "green"])
async def test_a_pinned_variant_is_the_one_that_answers(caller: Caller, variant: str) -> None:
    reply = await caller.chat(f"terms@{variant}")
    assert (reply.status, reply.variant, reply.json["model"]) == (200, variant, f"terms@{variant}")


@pytest.mark.parametrize(
    ("policy", "variant"),
    [("cheap", "green"), ("green", "green"), ("fast", "fast"), ("balanced", "green"), ("best", "full")],
)
async def test_a_policy_orders_what_the_terms_allow(caller: Caller, policy: str, variant: str) -> None:
    for reply in (
        await caller.chat("terms", headers={"x-economizer-policy": policy}),
        await caller.chat("terms", economizer={"policy": policy}),
    ):
        assert reply.variant == variant


async def test_terms_that_no_variant_meets_are_refused_naming_each_variant_and_what_it_fails(
    caller: Caller, fleet: Fleet
) -> None:
    engines = fleet.engines("terms@full") + fleet.engines("terms@fast") + fleet.engines("terms@green")
    before = [engine.requests for engine in engines]
    reply = await caller.chat("terms", headers={"x-quality-min": "0.95", "x-slo-ttft-ms": "200"})
    assert (reply.status, reply.error["code"], reply.error["type"]) == (422, "terms_unmet", "invalid_request_error")
    message = reply.error["message"]
    assert "fast: its quality is 0.8, under the 0.95 asked" in message
    assert "full: its time to first token (p95) is " in message
    assert "green: its quality is 0.85, under the 0.95 asked, its time to first token (p95) is " in message
    assert [engine.requests for engine in engines] == before
    receipt = await caller.receipt(reply.receipt_id)
    assert (receipt["outcome"], receipt["status"], receipt["attempts"]) == ("refused", 422, [])


async def test_a_pinned_variant_that_misses_the_terms_is_refused_and_no_other_is_named(caller: Caller) -> None:
    reply = await caller.chat("terms@fast", headers={"x-quality-min": "0.95"})
    assert (reply.status, reply.error["param"]) == (422, "quality_min")
    assert "fast: " in reply.error["message"]
    assert "green: " not in reply.error["message"]


@pytest.mark.parametrize("by", ["headers", "body"])
async def test_degrade_answers_from_the_nearest_variant_and_says_what_was_missed(caller: Caller, by: str) -> None:
    headers = {"x-quality-min": "0.95", "x-slo-ttft-ms": "200", "x-economizer-on-unmet": "degrade"}
    asked = {"quality_min": 0.95, "ttft_s_max": 0.2, "on_unmet": "degrade"}
    if by == "headers":
        reply = await caller.chat("terms", headers=headers)
    else:
        reply = await caller.chat("terms", economizer=asked)
    assert (reply.status, reply.variant) == (200, "fast")
    assert reply.json["usage"]["economizer"]["missed"] == ["its quality is 0.8, under the 0.95 asked"]
    receipt = await caller.receipt(reply.receipt_id)
    assert [(miss["term"], miss["offered"]) for miss in receipt["decision"]["missed"]] == [("quality_min", 0.8)]


async def test_an_unknown_policy_is_refused_naming_those_there_are(caller: Caller) -> None:
    reply = await caller.chat("terms", headers={"x-economizer-policy": "lavish"})
    assert (reply.status, reply.error["param"]) == (400, "policy")
    assert "balanced, best, cheap, fast, green" in reply.error["message"]


@pytest.mark.parametrize("header", [header for header, *_ in FORCED])
@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf", "", "1,5", "0x10"])
async def test_a_header_that_is_no_number_is_refused_by_name(caller: Caller, header: str, value: str) -> None:
    reply = await caller.chat("terms", headers={header: value})
    assert (reply.status, reply.error["param"]) == (400, header)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"ttft_s_max": "soon"}, "economizer.ttft_s_max"),
        ({"ttft_s_max": -1}, "economizer.ttft_s_max"),
        ({"ttft_s_max": True}, "economizer.ttft_s_max"),
        ({"quality_min": 2}, "quality_min"),
        ({"policy": 1}, "economizer.policy"),
        ({"on_unmet": "shrug"}, "economizer.on_unmet"),
        ({"ttft": 1}, "economizer.ttft"),
        ([], "economizer"),
        ("cheap", "economizer"),
    ],
)
async def test_an_economizer_object_that_cannot_be_used_is_refused_by_key(
    caller: Caller, asked: Any, param: str
) -> None:
    reply = await caller.chat("terms", economizer=asked)
    assert (reply.status, reply.error["param"]) == (400, param)


async def test_an_answer_that_does_not_begin_before_the_callers_deadline_is_ended_by_it(
    caller: Caller, fleet: Fleet
) -> None:
    (engine,) = fleet.engines("terms@fast")
    aborted = engine.aborted
    reply = await caller.chat("terms@fast", headers={"x-slo-e2e-ms": "1500"}, fake={"hang": True})
    assert (reply.status, reply.error["code"]) == (504, "engine_timeout")
    await soon(lambda: engine.aborted == aborted + 1, 5)

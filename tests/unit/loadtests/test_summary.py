from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from load.comparison import Comparison, compare
from load.predictions import Prediction
from load.run import Meter, Run, Spent
from load.sending import INTERRUPTED
from load.summary import Failed, Summary, summarise
from load.types import Outcome, Terms
from msgspec.structs import replace

STRICT = Terms(ttft_s_max=1.0, quality_min=0.9)


def outcome(number: int, **fields: Any) -> Outcome:
    """An answer whose first token comes half a second after it was due, and four more in another 0.4 s."""
    due_s = fields.pop("due_s", float(number))
    return Outcome(
        **{
            "number": number,
            "kind": "chat",
            "model": "boiler",
            "tenant": "acme",
            "terms": STRICT,
            "due_s": due_s,
            "sent_s": due_s + 0.01,
            "first_s": due_s + 0.5,
            "ended_s": due_s + 0.9,
            "status": 200,
            "prompt_tokens": 40,
            "output_tokens": 5,
            "variant": "int8",
            "quality": 0.93,
            "energy_j": 2.0,
            "cost_usd": 1e-5,
            "method": "rapl",
        }
        | fields
    )


def failed(number: int, status: int | None, error: str, **fields: Any) -> Outcome:
    nothing = dict.fromkeys(
        ("first_s", "output_tokens", "prompt_tokens", "variant", "quality", "energy_j", "cost_usd", "method")
    )
    return outcome(number, status=status, error=error, **nothing, **fields)


FOUR = (
    outcome(0),
    outcome(1, first_s=3.0, ended_s=4.0, tenant="beta", variant="bf16", quality=1.0, energy_j=4.0, cost_usd=3e-5),
    outcome(2, quality=0.8, kind="long", energy_j=None, cost_usd=None, method=None),
    failed(3, 503, "not_ready", terms=Terms()),
)


def summary(*outcomes: Outcome, **about: Any) -> Summary:
    return summarise(Run("a run", outcomes, **about))


def value(found: Summary, key: str) -> float | None:
    return found.figures[key].value


def test_attainment_counts_what_failed_and_what_missed_a_term_as_missed() -> None:
    found = summary(*FOUR)
    assert (value(found, "slo"), value(found, "answered"), found.figures["slo"].samples) == (0.25, 0.75, 4)
    assert found.missed == {"TTFT over its limit": 1, "no whole answer": 1, "quality below its floor": 1}
    assert found.by_kind["chat"].slo.value == pytest.approx(1 / 3)
    assert found.by_kind["long"].slo.value == 0.0
    assert {tenant: group.requests for tenant, group in found.by_tenant.items()} == {"acme": 3, "beta": 1}
    assert {terms: group.slo.value for terms, group in found.by_terms.items()} == {
        "TTFT ≤ 1 s, quality ≥ 0.9": pytest.approx(1 / 3),
        "no terms": 0.0,
    }


def test_a_term_on_what_nobody_told_is_missed_and_said_to_be_unknown() -> None:
    found = summary(outcome(0, quality=None), outcome(1, first_s=None))
    assert value(found, "slo") == 0.0
    assert found.missed == {"TTFT not known": 1, "quality not known": 1}


def test_every_outcome_that_met_its_terms_has_no_reason_for_a_miss_and_every_other_one_has() -> None:
    terms = [Terms(), STRICT, Terms(tpot_s_max=0.05), Terms(e2e_s_max=0.9), Terms(tpot_s_max=0.2, policy="green")]
    for one, asked, tokens in product(FOUR, terms, (None, 1, 5)):
        found = summary(replace(one, terms=asked, output_tokens=tokens))
        assert (value(found, "slo") == 1.0) == (found.missed == {})


def test_latencies_are_of_whole_answers_from_their_due_times() -> None:
    found = summary(*FOUR)
    assert value(found, "ttft_s_p50") == 0.5
    assert value(found, "ttft_s_mean") == pytest.approx((0.5 + 2.0 + 0.5) / 3)
    assert value(found, "tpot_s_p50") == pytest.approx(0.1)
    assert value(found, "e2e_s_p99") == pytest.approx(0.9 + 0.98 * 2.1)
    assert found.figures["ttft_s_p50"].samples == 3
    assert value(found, "late_s_p50") == pytest.approx(0.01)


def test_goodput_per_kilojoule_and_dollar_has_what_missed_its_terms_in_what_was_spent() -> None:
    found = summary(*FOUR)
    assert value(found, "goodput_per_kj_own") == pytest.approx(1 / 0.006)
    assert value(found, "goodput_per_usd_own") == pytest.approx(1 / 4e-5)
    assert found.figures["goodput_per_kj_own"].samples == 2
    assert value(found, "energy_j_own") == 3.0
    assert found.by_tenant["beta"].energy_j.value == 4.0
    assert (found.by_tenant["acme"].energy_j.value, found.by_tenant["acme"].energy_j.samples) == (2.0, 1)


def test_a_meters_totals_are_laid_on_the_run_on_both_bases() -> None:
    meter = Meter(usage=Spent(energy_j=50.0), allocation=Spent(energy_j=200.0, cost_usd=0.01))
    found = summary(*FOUR, meter=meter)
    assert value(found, "goodput_per_kj_usage") == pytest.approx(20.0)
    assert value(found, "goodput_per_kj_allocation") == pytest.approx(5.0)
    assert value(found, "goodput_per_usd_allocation") == pytest.approx(100.0)
    assert value(found, "goodput_per_usd_usage") is None
    assert value(found, "energy_j_allocation") == pytest.approx(200.0 / 3)
    assert found.figures["energy_j_allocation"].samples == 3


@pytest.mark.parametrize("total", [0.0, -1.0, float("nan"), float("inf")])
def test_a_meters_total_is_a_number_above_nothing(total: float) -> None:
    with pytest.raises(ValueError, match=r"energy_j is .*: must be a number above 0"):
        Spent(energy_j=total)


def test_rates_are_over_the_time_from_the_first_due_request_to_the_last_end() -> None:
    found = summary(*FOUR)
    assert found.duration_s == 4.0
    assert value(found, "goodput_per_s") == 0.25
    assert value(found, "output_tokens_per_s") == pytest.approx(15 / 4)


def test_variants_are_counted_in_all_by_terms_and_over_time() -> None:
    found = summary(*FOUR)
    assert {name: one.value for name, one in found.variant_shares.items()} == {
        "int8": pytest.approx(2 / 3),
        "bf16": pytest.approx(1 / 3),
    }
    assert found.by_terms["TTFT ≤ 1 s, quality ≥ 0.9"].variants == {"int8": 2, "bf16": 1}
    assert found.over_time.window_s == 0.1
    assert len(found.over_time.starts_s) == 31
    assert sum(found.over_time.variants["int8"]) == 2
    assert found.over_time.variants["bf16"][10] == 1


def test_over_time_a_window_without_a_sample_has_no_figure() -> None:
    over_time = summary(*FOUR).over_time
    assert over_time.starts_s[10] == 1.0
    assert over_time.requests[:11] == (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    assert over_time.series["slo"].values[:2] == (1.0, None)
    assert over_time.series["ttft_s_p95"].values[10] == 2.0
    assert over_time.series["ttft_s_p95"].values[30] is None
    assert over_time.series["ttft_s_p95"].samples[30] == 0


def test_errors_are_counted_by_status_and_code() -> None:
    found = summary(failed(0, 503, "not_ready"), failed(1, None, "timeout"), failed(2, 503, "not_ready"), outcome(3))
    assert found.errors == (
        Failed(status=503, error="not_ready", requests=2),
        Failed(status=None, error="timeout", requests=1),
    )


def predicted(**fields: Any) -> dict[str, Prediction]:
    return summary(
        outcome(0, predicted_ttft_s=0.49, predicted_energy_j=1.0, predicted_cost_usd=1e-5, **fields),
        outcome(1, predicted_ttft_s=0.245, predicted_energy_j=2.5, predicted_cost_usd=0.0, **fields),
        outcome(2),
    ).predictions


def test_predictions_are_held_against_what_came_of_them_from_sending() -> None:
    found = predicted()
    ttft = found["ttft_s"]
    assert (ttft.samples, ttft.within_20_percent.value) == (2, 0.5)
    assert ttft.median_ratio.value == pytest.approx(1.5)
    assert found["energy_j"].median_ratio.value == pytest.approx((2.0 + 0.8) / 2)
    assert found["energy_j"].within_20_percent.value == 0.5  # 0.8 is just within
    assert found["cost_usd"].samples == 1
    assert found["cost_usd"].median_ratio.value == pytest.approx(1.0)
    assert (found["tpot_s"].samples, found["tpot_s"].median_ratio.value) == (0, None)
    assert sum(ttft.bins) == 2


def test_an_estimate_is_no_actual_energy_or_cost() -> None:
    found = predicted(method="estimate")
    assert found["energy_j"].samples == found["cost_usd"].samples == 0
    assert found["ttft_s"].samples == 2


def test_notes_say_what_limits_the_figures() -> None:
    stopped = failed(8, None, INTERRUPTED)
    notes = " ".join(summary(*FOUR[:3], outcome(7, sent_s=8.0, method="estimate"), stopped, planned=9).notes)
    assert "5 of 9 planned requests have an outcome" in notes
    assert "On their way when the run was stopped, and counted as missed: 1 of 5" in notes
    assert "The client was late" in notes
    assert "1 of 3 energies are estimates" in notes
    assert "2 of 5 requests do not tell their energy" in notes
    assert summary(outcome(0), planned=1).notes == ()


def test_more_than_50_tenants_are_the_largest_ones_and_one_row_for_the_rest() -> None:
    found = summary(*(outcome(number, tenant=f"tenant {min(number, 59)}") for number in range(70)))
    assert len(found.by_tenant) == 51
    assert next(iter(found.by_tenant)) == "tenant 59"
    assert found.by_tenant["(10 others)"].requests == 10
    assert sum(group.requests for group in found.by_tenant.values()) == 70


def test_a_run_without_requests_knows_no_figure() -> None:
    found = summary()
    assert {one.value for one in found.figures.values()} == {None}
    assert {one.samples for one in found.figures.values()} == {0}
    assert (found.duration_s, found.over_time.starts_s, found.by_kind) == (None, (), {})


def test_a_run_in_which_all_failed_has_no_latency_and_an_attainment_of_nothing() -> None:
    meter = Meter(allocation=Spent(energy_j=10.0))
    found = summary(*(failed(number, 503, "not_ready") for number in range(30)), meter=meter)
    assert value(found, "slo") == 0.0
    assert value(found, "goodput_per_kj_allocation") == 0.0  # they took joules, and none was worth them
    assert value(found, "energy_j_allocation") is None
    for key in ("ttft_s_p50", "e2e_s_mean", "goodput_per_kj_own", "energy_j_own", "output_tokens_per_s"):
        assert value(found, key) is None
    assert found.variant_shares == {}


def test_energy_that_nobody_told_is_not_known() -> None:
    found = summary(*(outcome(number, energy_j=None, cost_usd=None, method=None) for number in range(30)))
    assert value(found, "slo") == 1.0
    for key in ("energy_j_own", "cost_usd_own", "goodput_per_kj_own", "goodput_per_usd_own", "goodput_per_kj_usage"):
        assert value(found, key) is None
    assert found.by_tenant["acme"].energy_j.value is None
    assert found.methods == {}


def test_one_request_has_figures_and_no_interval() -> None:
    found = summary(outcome(0))
    assert (value(found, "slo"), value(found, "ttft_s_p99"), value(found, "energy_j_own")) == (1.0, 0.5, 2.0)
    assert {one.low for one in found.figures.values()} == {None}


def test_a_number_that_two_outcomes_have_is_refused() -> None:
    with pytest.raises(ValueError, match="number is 1 in two outcomes: must be of one request alone"):
        summary(outcome(1), outcome(1, due_s=5.0))


def pair(**second: Any) -> Comparison:
    """400 requests, and the same ones with twice the energy."""
    first = [
        outcome(number, ended_s=number + 0.6 + number % 7 / 10, energy_j=1.0 + number % 5) for number in range(400)
    ]
    other = [
        outcome(
            one.number,
            ended_s=one.ended_s + (number % 3 - 1) / 20,
            **{"energy_j": 2 * (one.energy_j or 0)} | second,
        )
        for number, one in enumerate(first)
    ]
    return compare(Run("first", first, plan_sha256="one"), Run("second", other, plan_sha256="one"))


def test_two_runs_of_one_plan_are_compared_request_by_request() -> None:
    found = pair()
    assert (found.same_plan, found.same_hash, found.differences, found.pairs) == (True, True, (), 400)
    energy = found.figures["energy_j_own"]
    assert (energy.ratio, energy.ratio_low, energy.better) == (2.0, None, "less")  # every draw says 2
    e2e = found.figures["e2e_s_mean"]
    assert e2e.ratio == pytest.approx(1.0, abs=0.01)
    assert e2e.ratio_low is not None
    assert e2e.ratio_high is not None
    assert e2e.ratio_low < 1 < e2e.ratio_high
    assert found.paired["energy_j"].median_ratio.value == 2.0
    assert found.paired["energy_j"].less_in_second.value == 0.0
    assert found.paired["e2e_s"].less_in_second.value == pytest.approx(1 / 3, abs=0.01)
    assert found.met == {"both": 400, "first alone": 0, "second alone": 0, "neither": 0}


def test_another_model_makes_no_other_plan_and_is_said() -> None:
    found = pair(model="boiler@bf16")
    assert found.same_plan
    assert [(one.what, one.requests) for one in found.differences] == [("another model", 400)]


def test_requests_that_differ_in_plan_are_named_and_left_out_of_pairs() -> None:
    first = Run("first", [outcome(number) for number in range(6)])
    second = Run(
        "second",
        [
            outcome(1, tenant="beta"),
            outcome(2, terms=Terms()),
            outcome(3, prompt_tokens=41),
            outcome(4, due_s=4.5, energy_j=1.0),
            outcome(5, prompt_tokens=None, variant="bf16"),
            outcome(6),
        ],
    )
    found = compare(first, second)
    assert (found.same_plan, found.same_hash, found.pairs) == (False, None, 2)
    assert {one.what: one.numbers for one in found.differences} == {
        "only in the first": (0,),
        "only in the second": (6,),
        "another tenant": (1,),
        "another terms": (2,),
        "another prompt tokens": (3,),
        "another due time": (4,),
    }
    assert found.paired["energy_j"].median_ratio.value == 0.75


def test_a_run_compared_with_none_has_no_ratio() -> None:
    found = compare(Run("first", []), Run("second", FOUR))
    assert (found.same_plan, found.pairs) == (False, 0)
    assert found.figures["slo"].second.value == 0.25
    assert {one.ratio for one in found.figures.values()} == {None}
    assert found.paired["e2e_s"].median_ratio.value is None


def test_two_unlike_runs_are_not_drawn_alike() -> None:
    outcomes = [outcome(number, ended_s=number + 1.0 + number % 11) for number in range(300)]
    moved = [outcome(one.number, due_s=one.due_s + 0.25, ended_s=one.ended_s + 0.25) for one in outcomes]
    found = compare(Run("first", outcomes), Run("second", moved)).figures["e2e_s_mean"]
    assert found.ratio == pytest.approx(1.0)
    assert found.ratio_low is not None  # drawn alike, every draw would say 1

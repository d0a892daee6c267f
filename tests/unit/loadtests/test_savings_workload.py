from __future__ import annotations

from pathlib import Path

import pytest
from load.arrivals import Row, TraceError
from load.mixes import read_mix
from load.plan import Shape
from load.prompts import Prompts, Texts
from load.study import Folder
from load.tokens import Rule
from load.traces import Trace
from load.workload import Load, Workload, capacity_rps, drawn_trace, floors

TEXTS = Texts(
    source="a test's",
    questions=tuple(f"What is the number {n} for?" for n in range(50)),
    documents=("Numbers are for counting and for telling one thing from another, says everybody. " * 300,),
)
LOAD = Load(requests_per_s=2.0, seconds=30.0, warm_s=5.0)


def workload(rows: int = 500) -> Workload:
    # Requests come ever faster, so that every round's piece of the trace has to be stretched by more.
    trace = Trace(
        format="our own",
        rows=tuple(Row(at_s=100 * at**0.5, prompt_tokens=40 + at, output_tokens=20) for at in range(rows)),
    )
    return Workload(trace, Prompts(TEXTS, Rule()), model="boiler", shape=Shape(), seed=0)


def test_every_round_offers_the_same_load() -> None:
    for number in range(3):
        plan = workload().round(read_mix("mixed"), LOAD, number)
        assert len(plan.requests) == 60
        assert plan.requests[0].due_s == 0.0
        assert 27.0 < plan.requests[-1].due_s < 30.0


def test_no_two_rounds_and_no_warm_up_share_a_row_of_the_trace() -> None:
    source = workload()
    plans = [plan(read_mix("strict"), LOAD, number) for number in range(3) for plan in (source.warm_up, source.round)]
    lengths = [one.output_tokens for plan in plans for one in plan.requests]
    planned = [plan.prompt_tokens for plan in plans]
    assert len(lengths) == 3 * 70
    assert sum(planned) == sum(40 + at for at in range(3 * 70))


def test_a_mix_changes_the_terms_and_nothing_else() -> None:
    strict, relaxed = (workload().round(read_mix(name), LOAD, 1).requests for name in ("strict", "relaxed"))
    assert [(one.due_s, one.messages, one.output_tokens) for one in strict] == [
        (one.due_s, one.messages, one.output_tokens) for one in relaxed
    ]
    assert {one.terms.quality_min for one in strict} == {0.9}
    assert None in {one.terms.quality_min for one in relaxed}


def test_the_speed_up_is_told() -> None:
    span_s = 100 * (70**0.5 - 10**0.5)
    assert workload().speed(LOAD, 0) == pytest.approx(span_s / 30)


def test_a_trace_that_is_too_short_is_refused() -> None:
    with pytest.raises(TraceError, match="has 100 requests and 141 are wanted"):
        workload(100).round(read_mix("strict"), LOAD, 1)


def test_a_burst_is_due_at_once_and_has_no_terms() -> None:
    burst = workload().burst(48)
    assert {one.due_s for one in burst.requests} == {0.0}
    assert len(burst.requests) == 48
    assert {one.terms.ttft_s_max for one in burst.requests} == {None}


def test_a_trace_is_drawn_as_skewed_as_the_one_that_it_stands_for() -> None:
    rows = drawn_trace(0).rows
    prompts = sorted(row.prompt_tokens for row in rows)
    answers = sorted(row.output_tokens for row in rows)
    assert prompts[len(rows) // 2] == pytest.approx(1020, rel=0.05)
    assert answers[len(rows) // 2] == pytest.approx(129, rel=0.1)
    assert sum(answers) / len(rows) == pytest.approx(211, rel=0.1)
    assert rows == drawn_trace(0).rows != drawn_trace(1).rows


def test_capacity_is_the_rate_at_which_answers_end_while_the_engines_are_full() -> None:
    ends_s = [10 + at / 4 for at in range(80)] + [100.0, 200.0]  # the last ones alone in their batch
    assert capacity_rps(ends_s) == pytest.approx(4.0, rel=0.05)


def test_a_rate_is_not_told_of_a_few_answers() -> None:
    with pytest.raises(ValueError, match="has 3 answers"):
        capacity_rps([1.0, 2.0, 3.0])


def test_requests_that_ask_for_no_quality_count_as_a_floor_of_nothing() -> None:
    assert sorted(floors(read_mix("mixed"))) == [0.0, 0.7, 0.9]


def test_a_folder_goes_on_only_with_the_same_settings(tmp_path: Path) -> None:
    Folder(tmp_path / "out", {"share": 0.5, "seed": 0})
    Folder(tmp_path / "out", {"share": 0.5, "seed": 0})
    with pytest.raises(ValueError, match=r"share 0\.5, now 0\.6: give the same, or another folder"):
        Folder(tmp_path / "out", {"share": 0.6, "seed": 0})


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="must be a new folder"):
        Folder(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "out", {})
    (tmp_path / "out" / "runs" / ".1-strict-full").mkdir()
    assert not folder.has("1-strict-full")
    assert folder.runs() == []

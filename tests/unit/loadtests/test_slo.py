from __future__ import annotations

import pytest
from load.slo import Objective, exit_code, three_digits


def ttft(measured: float | None) -> Objective:
    return Objective(name="TTFT p95", unit="ms", limit=500.0, measured=measured)


def test_an_objective_says_what_was_measured_and_whether_that_keeps_its_limit() -> None:
    assert str(ttft(412.0)) == "SLO met: TTFT p95 412 ms, at most 500 ms"
    assert str(ttft(500.0)) == "SLO met: TTFT p95 500 ms, at most 500 ms"
    assert str(ttft(731.0)) == "SLO MISSED: TTFT p95 731 ms, at most 500 ms"


def test_what_nobody_measured_keeps_no_limit() -> None:
    assert str(ttft(None)) == "SLO MISSED: TTFT p95 nothing measured, at most 500 ms"


@pytest.mark.parametrize(
    ("objectives", "requests", "failures_judged", "broken", "code"),
    [
        ([ttft(412.0)], 10, False, False, None),  # Locust's own rule: 1 where any request failed
        ([ttft(412.0)], 10, True, False, 0),
        ([ttft(412.0)], 10, True, True, None),  # an error of the users themselves is Locust's to report
        ([ttft(412.0), ttft(600.0)], 10, True, False, 1),
        ([ttft(600.0)], 10, False, True, 1),
        ([], 10, False, False, None),
        ([], 0, False, False, 1),
    ],
)
def test_the_exit_code_is_1_for_a_missed_objective_and_for_a_run_without_requests(
    objectives: list[Objective], requests: int, failures_judged: bool, broken: bool, code: int | None
) -> None:
    assert exit_code(objectives, requests=requests, failures_judged=failures_judged, broken=broken) == code


def test_times_are_kept_to_three_digits() -> None:
    times = (0.0, 0.123, 8.276, 31.46, 147.6, 1049.0, 61_234.0)
    assert [three_digits(time) for time in times] == [0.0, 0.12, 8.28, 31.5, 148.0, 1050.0, 61_200.0]

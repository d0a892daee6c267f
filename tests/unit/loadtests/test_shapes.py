from __future__ import annotations

from itertools import pairwise

import pytest
from load.arrivals import Rate
from load.shapes import Curve, built_in_day, bursts, day, ramp

MINUTE = 60.0


def users(curve: Curve, *, run_s: float, peak: int) -> list[int]:
    """Every second of a run."""
    found = [curve.users(second, run_s=run_s, peak=peak) for second in range(int(run_s))]
    return [number for number in found if number is not None]


def test_between_two_points_a_curve_is_a_straight_line_and_beyond_them_it_is_level() -> None:
    curve = Curve(((0.2, 0.5), (0.6, 1.0)))
    assert [curve.share(moment) for moment in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0.5, 0.5, 0.75, 1.0, 1.0])


def test_at_a_jump_what_comes_after_it_counts() -> None:
    curve = Curve(((0.0, 0.2), (0.5, 0.2), (0.5, 1.0)))
    assert [curve.share(moment) for moment in (0.499, 0.5, 0.501)] == [0.2, 1.0, 1.0]


def test_points_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="in the order of their moments"):
        Curve(((0.5, 1.0), (0.2, 1.0)))


def test_there_is_always_one_user_at_least_and_none_after_the_run() -> None:
    assert ramp().users(0.0, run_s=MINUTE, peak=100) == 1
    assert ramp().users(59.9, run_s=MINUTE, peak=100) == 100
    assert ramp().users(60.0, run_s=MINUTE, peak=100) is None


def test_a_ramp_rises_steadily_and_stays_at_its_peak() -> None:
    seen = users(ramp(), run_s=100, peak=40)
    assert seen == sorted(seen)
    assert seen[:2] == [1, 1]
    assert seen[40] == 20
    assert seen[80:] == [40] * 20


def test_bursts_are_five_of_a_twentieth_of_the_run_at_five_times_the_rest() -> None:
    seen = users(bursts(), run_s=200, peak=50)
    assert set(seen) == {10, 50}
    assert seen.count(50) == pytest.approx(50, abs=5)
    assert sum(before < after for before, after in pairwise(seen)) == 5


def test_a_day_of_rates_is_pressed_into_the_run_and_its_highest_rate_is_the_peak() -> None:
    rates = [Rate(at_s=600.0 * number, per_s=10.0 + 30.0 * (number == 36)) for number in range(73)]
    curve = day(rates)
    assert curve.users(0.0, run_s=10 * MINUTE, peak=20) == 5
    assert curve.users(5 * MINUTE, run_s=10 * MINUTE, peak=20) == 20
    assert curve.users(9 * MINUTE, run_s=10 * MINUTE, peak=20) == 5


def test_of_a_table_of_two_weeks_the_first_day_is_taken() -> None:
    rates = [Rate(at_s=3600.0 * hour, per_s=1.0 + (hour >= 24) * 99.0) for hour in range(14 * 24)]
    assert {share for _, share in day(rates).points} == {1.0}


def test_a_rate_of_zero_is_a_gap_in_the_data_and_no_lull() -> None:
    rates = [Rate(at_s=0.0, per_s=2.0), Rate(at_s=600.0, per_s=0.0), Rate(at_s=1200.0, per_s=4.0)]
    assert day(rates).share(0.5) == pytest.approx(0.75)


def test_a_table_without_a_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        day([Rate(at_s=0.0, per_s=0.0)])


def test_the_built_in_day_has_one_peak_hour_and_a_night() -> None:
    seen = users(built_in_day(), run_s=240, peak=100)
    assert (min(seen), max(seen)) == (20, pytest.approx(100, abs=2))
    assert 0.3 < sum(seen) / len(seen) / 100 < 0.6

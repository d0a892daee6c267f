from __future__ import annotations

import random

import pytest
from load.growth import growth, growths, slope


def test_a_line_has_its_own_slope_and_no_doubt() -> None:
    found = slope([(second, 100 + 0.5 * second) for second in range(20)])
    assert (found.per_min, found.low, found.high) == pytest.approx((30, 30, 30))


def test_what_grows_above_the_limit_is_told_through_noise_and_steps() -> None:
    draw = random.Random(1)
    samples = [(second, 200 + second / 60 * 3 + draw.gauss(0, 2)) for second in range(0, 1800, 5)]
    found = growth(samples, warm_up_s=300, limit_per_min=1)
    assert found is not None
    assert found.slope is not None
    assert found.verdict == "grows"
    assert found.slope.low < 3 < found.slope.high


def test_noise_and_one_step_up_are_no_leak() -> None:
    draw = random.Random(2)
    samples = [(second, 200 + 30 * (second > 900) + draw.gauss(0, 2)) for second in range(0, 1800, 5)]
    found = growth(samples, warm_up_s=300, limit_per_min=2.0)
    assert found is not None
    assert found.verdict != "grows"
    steady = growth([(s, v) for s, v in samples if s < 900], warm_up_s=300, limit_per_min=1.0)
    assert steady is not None
    assert steady.verdict == "steady"


def test_growth_before_the_end_of_the_warm_up_does_not_count() -> None:
    samples = [(float(second), min(second, 300.0)) for second in range(0, 1200, 5)]
    found = growth(samples, warm_up_s=300, limit_per_min=0.1)
    assert found is not None
    assert (found.verdict, found.first, found.last, found.most) == ("steady", 300, 300, 300)


def test_a_handful_of_samples_and_a_minute_of_them_say_nothing() -> None:
    found = growth([(second, second) for second in range(5)], warm_up_s=0, limit_per_min=1)
    assert found is not None
    assert (found.slope, found.verdict) == (None, "too short to tell")
    minute = growth([(second, second) for second in range(60)], warm_up_s=0, limit_per_min=1)
    assert minute is not None
    assert minute.verdict == "too short to tell"
    assert growth([(1.0, 1.0)], warm_up_s=2, limit_per_min=1) is None


def test_each_series_is_held_against_the_limit_of_its_quantity() -> None:
    rising = [(float(second), second / 60) for second in range(0, 600, 5)]
    found = growths({"gateway rss_mb": rising, "gateway fds": rising}, warm_up_s=0, limits={"rss_mb": 2, "fds": 0.5})
    assert {name: one.verdict for name, one in found.items()} == {"gateway rss_mb": "steady", "gateway fds": "grows"}

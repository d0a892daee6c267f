from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from load.statistics import (
    BLOCKS_MIN,
    Estimate,
    Floats,
    Ints,
    Percentile,
    Ratio,
    blocks,
    draws,
    estimate,
    percentile,
    ratio,
    window_width_s,
)

NAN = float("nan")


def of(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


def alone(count: int) -> Ints:
    """Every request in a block of its own."""
    return np.arange(count, dtype=np.int64)


@pytest.mark.parametrize(
    ("values", "rank", "expected"),
    [
        ([7.0], 95.0, 7.0),
        ([1.0, 2.0, 3.0, 4.0], 50.0, 2.5),
        ([4.0, 1.0, 3.0, 2.0], 75.0, 3.25),
        (list(range(101)), 99.0, 99.0),
        ([], 50.0, None),
    ],
)
def test_a_percentile_lies_between_two_of_the_sorted_values(
    values: list[float], rank: float, expected: float | None
) -> None:
    assert percentile(values, rank) == expected


def test_a_ratio_is_sum_over_sum_and_leaves_out_what_is_not_known() -> None:
    mean = Ratio(of(2.0, NAN, 4.0), np.ones(3))
    assert (mean.value(), int(mean.known.sum())) == (3.0, 2)
    assert Ratio(of(1.0, 1.0, 0.0), of(0.5, 1.5, 2.0)).value() == 0.5
    assert Ratio(of(NAN, NAN), np.ones(2)).value() is None
    assert Ratio(of(1.0), of(0.0)).value() is None


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 4)), min_size=1, max_size=30),
    st.sampled_from([0.0, 5.0, 50.0, 95.0, 100.0]),
)
def test_what_a_draw_gives_is_the_figure_of_its_blocks_requests_written_out(
    requests: list[tuple[float, int]], rank: float
) -> None:
    values = of(*(value for value, _ in requests))
    block_of = np.unique([block for _, block in requests], return_inverse=True)[1].astype(np.int64)
    counts = draws(block_of, seed=3)[:20]
    ranked = Percentile(values, rank).resampled(block_of, counts)
    mean = Ratio(values, np.ones(len(values))).resampled(block_of, counts)
    for row, often in enumerate(counts):
        written_out = np.repeat(values, often[block_of])
        assert ranked[row] == pytest.approx(np.percentile(written_out, rank), abs=1e-9)
        assert mean[row] == pytest.approx(written_out.mean(), abs=1e-9)


def test_draws_of_a_mean_spread_as_the_standard_error_of_that_mean() -> None:
    values = np.random.default_rng(0).exponential(size=200)
    block_of = alone(200)
    drawn = Ratio(values, np.ones(200)).resampled(block_of, draws(block_of, seed=0))
    assert drawn.mean() == pytest.approx(values.mean(), rel=0.02)
    assert drawn.std() == pytest.approx(values.std() / sqrt(200), rel=0.07)


@pytest.mark.parametrize(
    ("span_s", "width_s"), [(0.0, 0.1), (3.9, 0.1), (4.0, 0.2), (60.0, 2.0), (300.0, 10.0), (3600.0, 100.0), (8e4, 5e3)]
)
def test_windows_are_the_shortest_round_ones_of_which_40_cover_the_run(span_s: float, width_s: float) -> None:
    assert window_width_s(span_s) == width_s


def test_blocks_are_stretches_of_time_that_have_requests() -> None:
    assert list(blocks(of(0.0, 9.9, 10.0, 55.0, 59.0), 10.0)) == [0, 0, 1, 2, 2]
    assert len(blocks(of(), 10.0)) == 0
    assert draws(blocks(of(), 10.0), seed=0).shape == (1000, 0)


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    block_of = alone(20)
    assert (draws(block_of, seed=1) == draws(block_of, seed=1)).all()
    assert (draws(block_of, seed=1) != draws(block_of, seed=2)).any()
    assert (draws(block_of, seed=1).sum(axis=1) == 20).all()


def told(values: Floats, rank: float | None = None, block_of: Ints | None = None, seed: int = 0) -> Estimate:
    block_of = alone(len(values)) if block_of is None else block_of
    statistic = Ratio(values, np.ones(len(values))) if rank is None else Percentile(values, rank)
    return estimate(statistic, block_of, draws(block_of, seed))


def test_an_interval_is_told_only_of_enough_blocks_and_enough_samples_beyond_a_percentile() -> None:
    values = np.random.default_rng(0).random(500)
    assert told(values[: BLOCKS_MIN - 1]).low is None
    assert told(values[:BLOCKS_MIN]).low is not None
    assert told(values[:499], 99.0).low is None
    assert told(values, 99.0).low is not None
    assert told(values, 99.0, block_of=alone(500) // 100).low is None
    assert told(values[:9], 50.0).value == percentile(values[:9], 50.0)


def test_no_interval_is_told_where_all_draws_are_alike() -> None:
    always = told(np.ones(300))
    assert (always.value, always.low, always.high, always.samples) == (1.0, None, None, 300)
    assert told(np.full(300, 0.1)).low is None


def test_nothing_known_is_no_figure_and_no_interval() -> None:
    for rank in (None, 95.0):
        found = told(np.full(50, NAN), rank)
        assert (found.value, found.low, found.high, found.samples) == (None, None, None, 0)
    assert told(of()).value is None


def clustered(rng: np.random.Generator, count: int, each: int) -> tuple[Floats, Ints]:
    """``count`` blocks of ``each`` requests; those of a block share half of their variance. Mean and median are 10."""
    of_block = np.repeat(rng.normal(size=count), each)
    return 10 + of_block + rng.normal(size=count * each), np.repeat(np.arange(count, dtype=np.int64), each)


@pytest.mark.parametrize("rank", [None, 50.0])
def test_an_interval_over_blocks_holds_the_truth_about_as_often_as_it_says(rank: float | None) -> None:
    rng = np.random.default_rng(5)
    held, runs = 0, 150
    for number in range(runs):
        values, block_of = clustered(rng, count=40, each=6)
        found = told(values, rank, block_of, seed=number)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 10 <= found.high
    assert 0.89 <= held / runs <= 0.99


def test_an_interval_over_single_requests_that_wait_together_would_hold_it_too_rarely() -> None:
    rng = np.random.default_rng(5)
    held, runs = 0, 150
    for number in range(runs):
        found = told(clustered(rng, count=40, each=6)[0], seed=number)
        held += (found.low or 0) <= 10 <= (found.high or 0)
    assert held / runs < 0.8


@pytest.mark.parametrize("paired", [True, False])
def test_a_ratios_interval_holds_the_true_ratio_about_as_often_as_it_says(paired: bool) -> None:
    rng = np.random.default_rng(6)
    held, runs = 0, 150
    for number in range(runs):
        size = np.repeat(rng.lognormal(sigma=0.5, size=40), 5)
        other = size if paired else np.repeat(rng.lognormal(sigma=0.5, size=40), 5)
        first, second = size * rng.lognormal(sigma=0.2, size=200), 0.8 * other * rng.lognormal(sigma=0.2, size=200)
        block_of = np.repeat(np.arange(40, dtype=np.int64), 5)
        under = told(first, None, block_of, seed=number)
        over = told(second, None, block_of, seed=number if paired else number + 1000)
        value, low, high = ratio(over, under)
        assert value == pytest.approx(second.mean() / first.mean())
        assert low is not None
        assert high is not None
        held += low <= 0.8 <= high
    assert 0.89 <= held / runs <= 0.99


def test_the_same_draws_take_what_two_runs_share_out_of_their_ratio() -> None:
    rng = np.random.default_rng(7)
    size = rng.lognormal(sigma=1.0, size=300)
    first, second = size * rng.lognormal(sigma=0.05, size=300), 0.8 * size * rng.lognormal(sigma=0.05, size=300)
    _, low, high = ratio(told(second, seed=1), told(first, seed=1))
    _, low_apart, high_apart = ratio(told(second, seed=2), told(first, seed=1))
    assert None not in (low, high, low_apart, high_apart)
    assert 5 * (high - low) < high_apart - low_apart  # type: ignore[operator]


def test_a_ratio_to_nothing_or_of_nothing_is_not_known() -> None:
    known, zero, unknown = told(of(2.0, 4.0)), told(np.zeros(20)), told(np.full(20, NAN))
    assert ratio(known, zero) == (None, None, None)
    assert ratio(unknown, known) == (None, None, None)
    assert ratio(known, known) == (1.0, None, None)

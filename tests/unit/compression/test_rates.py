"""Speed and energy from what was timed."""

from dataclasses import replace

import pytest
from economizer.variants.manifest import Interval
from economizer_compression.rates import (
    DecodeWindow,
    PrefillWindow,
    Round,
    decode_tokens,
    decode_window,
    energy_j_per_token,
    interval,
    logprob_differences,
    paired_ratios,
    prefill_lengths,
)


def figures(*, ttft_s: float, prefill_s: float, rate: float, active_w: float | None = None) -> Round:
    return Round(
        ttft_s=ttft_s,
        prefill=PrefillWindow(
            tokens=1024, wall_s=prefill_s, active_j=None if active_w is None else prefill_s * active_w
        ),
        decode={2: DecodeWindow(tokens_per_s=(rate, rate), active_w=active_w)},
    )


def test_a_batch_decodes_as_fast_as_the_sum_of_its_requests() -> None:
    streams = [[(1.0, 1), (1.5, 2), (2.0, 3)], [(1.0, 1), (1.5, 2), (2.0, 3)]]
    window = decode_window(streams, active_w=0.5)
    assert window == DecodeWindow(tokens_per_s=(2.0, 2.0), active_w=0.5)
    assert (window.batch_tokens_per_s, window.tpot_s, window.j_per_token) == (4.0, 0.5, 0.125)


def test_what_runs_while_others_still_read_their_prompts_does_not_count() -> None:
    early = [(0.0, 1), (0.1, 2), (0.2, 3), (1.0, 4), (2.0, 5), (3.0, 6)]
    late = [(1.0, 1), (2.0, 2), (3.0, 3), (4.0, 4)]
    assert decode_window([early, late], active_w=None).tokens_per_s == (1.0, 1.0)


def test_several_tokens_in_one_part_all_count() -> None:
    assert decode_window([[(0.0, 1), (1.0, 5), (2.0, 9)]], active_w=None).tokens_per_s == (4.0,)


def test_requests_that_did_not_run_together_have_no_rate() -> None:
    with pytest.raises(ValueError, match="one has 0 parts in the time in which all 2 run"):
        decode_window([[(0.0, 1), (1.0, 2)], [(2.0, 1), (3.0, 2)]], active_w=None)
    with pytest.raises(ValueError, match="1 of 2 had begun when the first was over"):
        decode_window([[(0.0, 1), (1.0, 2)], []], active_w=None)


@pytest.mark.parametrize(
    ("tokens_per_s", "room", "tokens"),
    [(31.0, 2000, 48), (15.0, 2000, 24), (1.6, 2000, 4), (0.01, 2000, 4), (5000.0, 2000, 2000)],
)
def test_a_decode_window_of_1_5_s_makes_as_many_tokens(tokens_per_s: float, room: int, tokens: int) -> None:
    assert decode_tokens(tokens_per_s, 1.5, room) == tokens


@pytest.mark.parametrize(
    ("tokens_per_s", "room", "lengths"),
    [
        (700.0, 2047, [512, 512, 1500]),
        (503.0, 2047, [512, 1500]),
        (246.0, 2047, [512]),
        (60.0, 2047, [240]),
        (0.5, 2047, [32]),
        (700.0, 400, [400] * 6 + [400]),
        (5.0, 16, [16]),
    ],
)
def test_a_prefill_window_of_4_s_reads_these_prompts(tokens_per_s: float, room: int, lengths: list[int]) -> None:
    assert prefill_lengths(tokens_per_s, 4.0, short=512, long=1500, room_tokens=room) == lengths


def test_rounds_become_their_median_and_range() -> None:
    assert interval([3.0, 1.0, 2.0]) == Interval(value=2.0, low=1.0, high=3.0)
    assert interval([3.0, 1.0]) == Interval(value=2.0, low=1.0, high=3.0)


def test_a_machine_that_slows_down_for_a_round_leaves_the_paired_ratio_as_it_was() -> None:
    full = [figures(ttft_s=0.2, prefill_s=2.0, rate=10), figures(ttft_s=0.4, prefill_s=4.0, rate=5)]
    variant = [figures(ttft_s=0.1, prefill_s=1.0, rate=15), figures(ttft_s=0.2, prefill_s=2.0, rate=7.5)]
    assert paired_ratios(variant, full) == {
        "ttft": Interval(value=0.5, low=0.5, high=0.5),
        "prefill": Interval(value=2.0, low=2.0, high=2.0),
        "decode@2": Interval(value=1.5, low=1.5, high=1.5),
    }


def test_an_engine_that_does_as_much_at_half_the_power_takes_half_the_energy() -> None:
    full = [figures(ttft_s=0.2, prefill_s=2.0, rate=10, active_w=3.0)]
    variant = [figures(ttft_s=0.2, prefill_s=2.0, rate=10, active_w=1.5)]
    ratios = paired_ratios(variant, full)
    assert {name: ratio.value for name, ratio in ratios.items()} == {
        **{"ttft": 1.0, "prefill": 1.0, "decode@2": 1.0},
        **{"prefill_j": 0.5, "decode_j@2": 0.5},
    }


def test_nothing_is_compared_with_no_rounds_of_the_full_model() -> None:
    assert paired_ratios([], []) == {}


def test_energy_that_one_window_does_not_know_leaves_no_joules_and_no_ratio_of_them_and_the_speeds_stay() -> None:
    full = [figures(ttft_s=0.2, prefill_s=2.0, rate=10, active_w=3.0)] * 2
    variant = [replace(full[0], decode={2: DecodeWindow(tokens_per_s=(10, 10), active_w=None)}), full[0]]
    assert paired_ratios(variant, full).keys() == {"ttft", "prefill", "decode@2"}
    assert paired_ratios(full, variant).keys() == {"ttft", "prefill", "decode@2"}
    assert energy_j_per_token(variant) is None


def test_joules_per_token_are_active_energy_over_the_tokens_of_its_window() -> None:
    rounds = [
        figures(ttft_s=0.1, prefill_s=2.0, rate=8, active_w=6.0),
        figures(ttft_s=0.1, prefill_s=4.0, rate=4, active_w=4.0),
    ]
    # 12 and 16 J for 1024 tokens; 6 W at 16 tokens a second and 4 W at 8.
    assert energy_j_per_token(rounds) == (
        Interval(value=14 / 1024, low=12 / 1024, high=16 / 1024),
        {2: Interval(value=0.4375, low=0.375, high=0.5)},
    )


def test_the_largest_and_the_mean_difference_of_log_probabilities_and_where_it_leans() -> None:
    assert logprob_differences([[-1.0, -2.0], [-3.0]], [[-1.5, -2.0], [-2.75]]) == (0.5, 0.25, 0.25 / 3)


def test_log_probabilities_of_other_texts_are_not_compared() -> None:
    with pytest.raises(ValueError, match="zip"):
        logprob_differences([[-1.0, -2.0]], [[-1.0]])
    with pytest.raises(ValueError, match="no log probabilities"):
        logprob_differences([], [])

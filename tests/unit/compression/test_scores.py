"""What is measured of a variant beside the full model, from literal tokens and choices."""

from dataclasses import replace

import numpy as np
import pytest
from economizer.variants.manifest import Interval
from economizer_compression.errors import CompressionError
from economizer_compression.scores import Bootstrap, ChoiceScores, TokenScores, evaluation, mean
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

LABELS = {"suite": "s", "suite_sha256": "0" * 64, "reference_sha256": "1" * 64, "seed": 0, "items_excluded": 3}
ONE = Interval(value=1.0, low=1.0, high=1.0)
ZERO = Interval(value=0.0, low=0.0, high=0.0)


def tokens(*items: tuple[int, float, bool, float, float], kind: str = "text") -> TokenScores:
    """Rows of item, KL, agrees, nll_full, nll."""
    item, kl, agrees, nll_full, nll = zip(*items, strict=True)
    return TokenScores(
        kind=kind,
        item=np.array(item),
        kl=np.array(kl),
        agrees=np.array(agrees),
        nll_full=np.array(nll_full),
        nll=np.array(nll),
    )


def choices(*items: tuple[int, int, bool, bool]) -> ChoiceScores:
    """Rows of chosen_full, chosen, correct_full, correct."""
    columns = np.array(items).T
    return ChoiceScores(chosen_full=columns[0], chosen=columns[1], correct_full=columns[2] > 0, correct=columns[3] > 0)


TWO_WINDOWS = tokens(
    (0, 0.1, True, 1.0, 1.5), (0, 0.3, False, 2.0, 2.0), (1, 0.0, True, 1.0, 1.0), (1, 0.0, True, 0.0, 0.5)
)
FOUR_QUESTIONS = choices((0, 0, True, True), (1, 2, True, False), (3, 1, False, True), (2, 3, False, False))


def test_a_text_slice_says_how_far_the_variants_next_tokens_are() -> None:
    told = evaluation({"documents": TWO_WINDOWS}, **LABELS)
    score = told.slices[0]
    assert (score.slice, score.kind, score.items, score.tokens) == ("documents", "text", 2, 4)
    assert (score.agreement.value, score.agreement.low, score.agreement.high) == (0.75, 0.5, 1.0)
    assert score.kl_mean is not None
    assert score.kl_mean.value == pytest.approx(0.1)
    assert score.kl_p99 == pytest.approx(np.percentile([0.1, 0.3, 0, 0], 99))
    assert score.perplexity_full == pytest.approx(np.exp(1.0))
    assert score.perplexity_ratio is not None
    assert score.perplexity_ratio.value == pytest.approx(np.exp(0.25))
    assert (score.accuracy, score.flips) == (None, None)


def test_a_flip_is_a_question_right_with_one_model_and_wrong_with_the_other() -> None:
    score = evaluation({"knowledge": FOUR_QUESTIONS}, **LABELS).slices[0]
    assert (score.kind, score.items, score.tokens) == ("choices", 4, 0)
    assert (score.accuracy_full, score.accuracy, score.agreement.value) == (0.5, 0.5, 0.25)
    assert score.flips is not None
    assert score.accuracy_difference is not None
    assert (score.flips.value, score.accuracy_difference.value) == (0.5, 0.0)
    assert score.accuracy_difference.low < 0 < score.accuracy_difference.high


def test_quality_counts_every_slice_the_same_whatever_its_size() -> None:
    told = evaluation({"documents": TWO_WINDOWS, "knowledge": FOUR_QUESTIONS}, **LABELS)
    assert told.quality.value == (0.75 + 0.25) / 2
    assert told.quality.low < told.quality.value < told.quality.high


def test_what_is_over_all_tokens_pools_text_and_answers_and_leaves_choices_out() -> None:
    answers = tokens((0, 0.5, False, 0.0, 1.0), (1, 0.0, True, 0.0, 0.0), kind="answers")
    told = evaluation({"documents": TWO_WINDOWS, "chat": answers, "knowledge": FOUR_QUESTIONS}, **LABELS)
    assert told.top1_agreement is not None
    assert told.kl_mean is not None
    assert told.flips is not None
    assert told.top1_agreement.value == 4 / 6
    assert told.kl_mean.value == pytest.approx(0.9 / 6)
    assert told.flips.value == 0.5
    assert [each.kind for each in told.slices] == ["text", "answers", "choices"]
    assert (told.items_excluded, told.overlap_ngram, told.seed) == (3, 13, 0)


def test_what_a_suite_has_no_slice_for_is_unknown_and_not_0() -> None:
    on_text, on_choices = evaluation({"t": TWO_WINDOWS}, **LABELS), evaluation({"c": FOUR_QUESTIONS}, **LABELS)
    assert (on_text.flips, on_text.accuracy_difference) == (None, None)
    assert (on_choices.top1_agreement, on_choices.kl_mean, on_choices.kl_p99, on_choices.perplexity_ratio) == (
        None,
        None,
        None,
        None,
    )


def test_a_model_beside_itself_has_quality_exactly_1() -> None:
    same = replace(TWO_WINDOWS, kl=np.zeros(4), agrees=np.ones(4, dtype=bool), nll=TWO_WINDOWS.nll_full)
    told = evaluation({"documents": same, "knowledge": choices((0, 0, True, True), (1, 1, False, False))}, **LABELS)
    assert (told.quality, told.top1_agreement, told.perplexity_ratio) == (ONE, ONE, ONE)
    assert (told.kl_mean, told.flips, told.accuracy_difference) == (ZERO, ZERO, ZERO)


def test_a_slice_of_one_item_has_no_interval_and_is_named() -> None:
    with pytest.raises(CompressionError, match="slice documents has 1 items to score and an interval needs 2"):
        evaluation({"documents": tokens((7, 0.1, True, 1.0, 1.5), (7, 0.0, True, 0.0, 0.0))}, **LABELS)


def test_the_interval_is_that_of_items_and_not_of_tokens() -> None:
    """Ten tokens of one window agree or do not together: with two windows, all three outcomes are in the interval."""
    rows = [(item, 0.0, item == 0, 0.0, 0.0) for item in (0, 1) for _ in range(10)]
    assert evaluation({"documents": tokens(*rows)}, **LABELS).quality == Interval(value=0.5, low=0.0, high=1.0)


def test_two_thousand_draws_of_a_share_spread_as_statistics_says() -> None:
    right = np.arange(400) < 100
    zeros = np.zeros(400, dtype=np.int64)
    share = Bootstrap.of(
        {"c": ChoiceScores(chosen_full=zeros, chosen=(~right).astype(np.int64), correct_full=right, correct=right)},
        seed=0,
    ).quality()
    assert share.value == 0.25
    assert share.high - share.low == pytest.approx(2 * 1.96 * (0.25 * 0.75 / 400) ** 0.5, rel=0.1)


@st.composite
def token_scores(draw: st.DrawFn) -> TokenScores:
    count = draw(st.integers(2, 6))
    figures = draw(arrays.arrays(np.float64, (3, count * 2), elements=st.floats(0, 10, width=16)))
    return TokenScores(
        kind="text",
        item=np.arange(count * 2) % count,
        kl=figures[0],
        agrees=draw(arrays.arrays(np.bool_, (count * 2,))),
        nll_full=figures[1],
        nll=figures[2],
    )


@settings(deadline=None, max_examples=25)
@given(token_scores())
def test_divergences_are_never_negative_and_agreement_is_a_share(scores: TokenScores) -> None:
    told = evaluation({"documents": scores}, **LABELS, resamples=200)
    assert told.kl_mean is not None
    assert told.perplexity_ratio is not None
    assert told.kl_mean.low >= 0
    assert 0 <= told.quality.low <= told.quality.high <= 1
    assert told.perplexity_ratio.low > 0


@settings(deadline=None, max_examples=25)
@given(token_scores())
def test_the_order_and_the_numbers_of_items_do_not_matter(scores: TokenScores) -> None:
    renumbered = replace(scores, item=100 - 7 * scores.item)
    assert evaluation({"documents": scores}, **LABELS, resamples=200) == evaluation(
        {"documents": renumbered}, **LABELS, resamples=200
    )


@settings(deadline=None, max_examples=25)
@given(st.lists(st.booleans(), min_size=30, max_size=60))
def test_the_interval_holds_the_value(agrees: list[bool]) -> None:
    rows = [(index, 0.0, same, 0.0, 0.0) for index, same in enumerate(agrees)]
    share = Bootstrap.of({"documents": tokens(*rows)}, seed=0).pooled(["documents"], mean(1))
    assert share.low <= share.value <= share.high

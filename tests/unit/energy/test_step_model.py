"""What the step model learns, of observations made by hand and of a made-up engine."""

import pytest
from economizer.energy.step_model import Coefficients, Episode, StepModel, prior_from
from economizer.energy.types import NO_WORK, Work
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from strategies import models, observations
from synthetic_engine import TRUE, as_gateways_see_it, decoded, metered, prefilled, taught, traffic, windows

SIMPLE = Coefficients(prefill_uj=10, decode_uj=20, step_uj=100)


def test_an_energy_card_gives_the_cost_of_a_token_and_of_a_step() -> None:
    card = {batch: 0.004 + 0.12 / batch for batch in (1, 4, 16)}
    assert prior_from(0.0066, card).values() == pytest.approx((6_600, 0, 4_000, 0, 120_000, 0), rel=1e-6)


def test_one_batch_size_is_split_into_what_a_prompts_token_costs_and_the_step() -> None:
    assert prior_from(0.01, {8: 0.05}).values() == pytest.approx((10_000, 0, 10_000, 0, 320_000, 0))
    assert prior_from(0.1, {8: 0.05}).values() == pytest.approx((100_000, 0, 50_000, 0, 0, 0))


def test_a_card_whose_tokens_cost_more_in_larger_batches_has_no_cost_of_steps() -> None:
    found = prior_from(0.01, {1: 0.05, 2: 0.06})
    assert found.values() == pytest.approx((10_000, 0, 54_098, 0, 0, 0), abs=1)


def test_a_card_without_figures_is_refused() -> None:
    for card in ({}, {0: 1.0}, {1: 0.0}):
        with pytest.raises(ValueError, match="decode_j_per_token"):
            prior_from(0.01, card)
    with pytest.raises(ValueError, match="prefill_uj"):
        prior_from(-0.01, {1: 1.0})


def test_nothing_is_predicted_before_anything_is_known() -> None:
    model = StepModel()
    assert (model.coefficients, model.predict_uj(decoded(1), 1), model.relative_error) == (None, None, None)
    assert StepModel(SIMPLE).predict_uj(decoded(2), 0.5) == 90
    model.observe(decoded(10), 10, 2_100, 1.0)
    assert model.predict_uj(decoded(10), 10) == pytest.approx(2_100)


def test_a_prior_in_other_joules_is_scaled_to_the_first_measurement_and_keeps_its_shape() -> None:
    model = StepModel(SIMPLE)
    model.observe(decoded(10), 10, 12_000, 1.0)  # ten times what the card says
    assert model.predict_uj(prefilled(1), 0) == pytest.approx(100)
    assert model.predict_uj(decoded(10), 10) == pytest.approx(12_000)


def test_what_never_happens_stays_as_the_prior_has_it() -> None:
    model = StepModel(SIMPLE)
    for tokens in range(1, 50):
        model.observe(decoded(tokens), tokens / 2, 2 * SIMPLE.work_uj(decoded(tokens), tokens / 2), 1.0)
    assert model.predict_uj(prefilled(1), 0) == pytest.approx(20, rel=0.01)


def test_an_episode_ends_with_the_first_window_at_rest_or_after_twenty_seconds() -> None:
    model, episode = StepModel(SIMPLE), Episode()
    assert [episode.add(model, [decoded(1)], 1, 120, 1.0) for _ in range(21)] == [False] * 19 + [True, False]
    assert [episode.add(model, [NO_WORK], steps, 0, 1.0) for steps in (0, 0, None)] == [True, False, False]


def test_what_a_meter_reads_late_belongs_to_the_episode_all_the_same() -> None:
    model = StepModel(SIMPLE)
    for tokens in range(1, 21):
        energy_uj, episode = int(SIMPLE.work_uj(decoded(tokens), 1)), Episode()
        episode.add(model, [decoded(tokens)], 1, energy_uj // 2, 1.0)
        episode.add(model, [], 0, energy_uj - energy_uj // 2, 1.0)
    assert model.relative_error == pytest.approx(0, abs=1e-9)
    assert model.coefficients is not None
    assert model.coefficients.second_uj == 0


def test_only_rest_teaches_the_background_and_work_that_nobody_tells_of_hardly_does() -> None:
    model, episode = StepModel(), Episode()
    for second in range(1_000):
        hidden_uj = 500_000 if second % 20 == 0 else 0  # a caller past the gateways, at an engine without counters
        episode.add(model, [], None, 1_000 + hidden_uj, 1.0)
    assert model.shape.second_uj == pytest.approx(5_000, abs=4_500)
    before = model.shape.second_uj
    for _ in range(100):
        episode.add(model, [decoded(10)], 10, 10_000_000, 1.0)
    assert model.shape.second_uj == before


@given(models(), st.lists(observations, max_size=5))
def test_a_model_from_the_database_goes_on_as_if_nothing_had_happened(
    model: StepModel, later: list[tuple[Work, float, int, float]]
) -> None:
    restored = StepModel.from_state(model.state())
    assert restored.state() == model.state()
    for work, steps, energy, seconds in later:
        for one in (model, restored):
            one.observe(work, steps, energy, seconds)
            one.judge([work], steps, energy, seconds)
    assert restored.state() == model.state()
    assert (restored.coefficients, restored.relative_error) == (model.coefficients, model.relative_error)


def test_a_span_of_no_time_teaches_nothing() -> None:
    model = StepModel(SIMPLE)
    model.observe(decoded(1), 1, 10**12, 0.0)
    model.observe(NO_WORK, 0, 10**12, 1e-310)
    assert model.state() == StepModel(SIMPLE).state()


def test_a_state_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="state is 1"):
        StepModel.from_state((1.0,))


def relative(model: StepModel, true: Coefficients = TRUE) -> tuple[float, ...]:
    """The coefficients, each over the true one."""
    return tuple(found / wanted for found, wanted in zip(model.shape.values(), true.values(), strict=True))


def test_one_measurement_of_fifty_times_the_energy_hardly_moves_the_model() -> None:
    requests = traffic(1, 600)
    seconds = windows(requests)
    model = taught(StepModel(), seconds, [int(window.active_uj) for window in seconds])
    work = sum((work for window in seconds[:20] for work in window.works.values()), NO_WORK)
    steps = sum(window.steps for window in seconds[:20])
    before = model.shape.work_uj(work, steps)
    assert before == pytest.approx(TRUE.work_uj(work, steps), rel=0.02)
    model.observe(work, steps, 50 * TRUE.work_uj(work, steps), 20.0)
    assert model.predict_uj(work, steps) == pytest.approx(before, rel=0.1)


def test_an_exact_meter_and_exact_counts_give_the_engines_coefficients_within_a_tenth() -> None:
    seconds = windows(traffic(1, 900))
    model = taught(StepModel(), seconds, [int(window.active_uj) for window in seconds])
    assert relative(model) == pytest.approx((1,) * 6, abs=0.1)
    assert model.relative_error == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("prior", [None, prior_from(0.003, {1: 0.05, 8: 0.012})])
def test_a_noisy_meter_and_what_gateways_tell_give_predictions_within_a_tenth(
    seed: int, prior: Coefficients | None
) -> None:
    requests = traffic(seed, 900)
    seconds = as_gateways_see_it(requests, windows(requests))
    model = taught(StepModel(prior), seconds, metered(seconds, seed, noise=0.03, lag=0.1))
    for work, steps in (
        (Work(prefill_tokens=6_000, prefill_context=1.8e7), 3),
        (Work(decode_tokens=200, decode_context=60_000), 25),
        (Work(prefill_tokens=300, prefill_context=45_000, decode_tokens=100, decode_context=35_000), 20),
    ):
        assert model.predict_uj(work, steps) == pytest.approx(TRUE.work_uj(work, steps), rel=0.1)
    assert relative(model)[4:] == pytest.approx((1, 1), abs=0.1)  # steps and background
    assert model.relative_error == pytest.approx(0.03, abs=0.02)


def test_an_engine_whose_power_is_capped_is_learnt_anew() -> None:
    before = windows(traffic(1, 600))
    capped = replace(TRUE, prefill_uj=2_500, prefill_context_uj=1, step_uj=150_000)
    after = windows(traffic(2, 2_400), capped)
    model = taught(StepModel(), before, [int(window.active_uj) for window in before])
    assert relative(model, capped)[0] == pytest.approx(2, abs=0.1)
    taught(model, after, [int(window.active_uj) for window in after])
    for name in ("prefill_uj", "prefill_context_uj", "step_uj", "second_uj"):
        assert getattr(model.shape, name) == pytest.approx(getattr(capped, name), rel=0.1)

"""The latency model against made-up engines, whose noise comes from a seed."""

from math import exp
from random import Random

import pytest
from economizer.router.latency import LatencyModel
from economizer.router.types import LatencyPrediction, ReplicaState
from economizer.variants.types import SpeedCard
from examples import SPEED
from hypothesis import given
from hypothesis import strategies as st

CARD = SpeedCard(
    prefill_tokens_per_s=1000.0, decode_tokens_per_s={1: 50.0, 8: 200.0}, overhead_s=0.05, source="made up"
)
IDLE = ReplicaState(id="r1")
SPREAD = exp(1.645 * 0.35)  # what is believed of log(actual / card) before anything was measured


def predict(
    model: LatencyModel, prompt_tokens: int, replica: ReplicaState = IDLE, cached_share: float = 0.0
) -> LatencyPrediction:
    found = model.predict(prompt_tokens=prompt_tokens, cached_share=cached_share, replica=replica)
    assert found is not None
    return found


def test_a_cold_variant_answers_with_its_card() -> None:
    found = predict(LatencyModel(CARD, 8), 450)
    assert (found.ttft_s.p50, found.ttft_s.p95) == pytest.approx((0.5, 0.5 * SPREAD))
    assert (found.tpot_s.p50, found.tpot_s.p95) == pytest.approx((1 / 50, SPREAD / 50))


def test_cached_tokens_need_no_prefill_and_queued_ones_are_waited_for() -> None:
    model = LatencyModel(CARD, 8)
    assert predict(model, 900, cached_share=0.5).ttft_s.p50 == pytest.approx(0.5)
    assert predict(model, 450, ReplicaState(id="r1", queued_tokens=1000)).ttft_s.p50 == pytest.approx(1.5)


def test_a_token_takes_as_long_as_the_batch_that_the_request_joins() -> None:
    model = LatencyModel(CARD, 8)
    assert predict(model, 1, ReplicaState(id="r1", running=7)).tpot_s.p50 == pytest.approx(8 / 200)
    assert predict(model, 1, ReplicaState(id="r1", running=99)).tpot_s.p50 == pytest.approx(8 / 200)


def test_without_a_card_nothing_is_predicted_until_five_answers_were_seen() -> None:
    model = LatencyModel(None, 8)
    for _ in range(5):
        assert model.predict(prompt_tokens=10, cached_share=0.0, replica=IDLE) is None
        model.observe_ttft(prompt_tokens=10, cached_share=0.0, replica=IDLE, actual_s=0.4)
    assert model.predict(prompt_tokens=10, cached_share=0.0, replica=IDLE) is None  # the rate is not known yet
    for _ in range(5):
        model.observe_tpot(replica=IDLE, actual_s=0.02)
    found = predict(model, 10)
    assert found.ttft_s.p50 == pytest.approx(0.4, rel=0.25)
    assert 0.01 < found.tpot_s.p50 < 0.04


def test_what_is_not_measured_has_no_error() -> None:
    assert (LatencyModel(CARD, 8).error().ttft, LatencyModel(CARD, 8).error().tpot) == (None, None)


def test_the_error_is_that_of_predictions_made_before_the_answer_was_known() -> None:
    model = LatencyModel(CARD, 8)
    model.observe_tpot(replica=IDLE, actual_s=1 / 25)
    error = model.error().tpot
    assert error is not None
    assert (error.mape, error.p95_coverage) == pytest.approx((0.5, 0.0))
    assert model.error().ttft is None


class Engine:
    """A made-up engine: so many times slower than the card, with lognormal noise around the median."""

    def __init__(self, slower: float, noise: float = 0.2, seed: int = 7) -> None:
        self._slower = slower
        self._noise = noise
        self._random = Random(seed)

    def request(self) -> tuple[int, ReplicaState]:
        running = self._random.randrange(8)
        queued = self._random.choice([0, 0, 500, 2000])
        return self._random.randrange(10, 4000), ReplicaState(id="r1", running=running, queued_tokens=queued)

    def ttft_s(self, prompt_tokens: int, replica: ReplicaState) -> float:
        return self._slower * predict(LatencyModel(CARD, 8), prompt_tokens, replica).ttft_s.p50

    def tpot_s(self, replica: ReplicaState) -> float:
        return self._slower * predict(LatencyModel(CARD, 8), 1, replica).tpot_s.p50

    def noise(self) -> float:
        return exp(self._random.gauss(0.0, self._noise))

    def teach(self, model: LatencyModel, requests: int) -> None:
        for _ in range(requests):
            prompt, replica = self.request()
            ttft_s = self.ttft_s(prompt, replica) * self.noise()
            model.observe_ttft(prompt_tokens=prompt, cached_share=0.0, replica=replica, actual_s=ttft_s)
            model.observe_tpot(replica=replica, actual_s=self.tpot_s(replica) * self.noise())


@pytest.mark.parametrize("slower", [0.25, 1.0, 2.0, 10.0])
def test_after_200_answers_of_an_engine_unlike_its_card_the_median_is_right(slower: float) -> None:
    model, engine = LatencyModel(CARD, 8), Engine(slower)
    engine.teach(model, 200)
    errors = []
    for _ in range(200):
        prompt, replica = engine.request()
        found = predict(model, prompt, replica)
        errors.append(abs(found.ttft_s.p50 / engine.ttft_s(prompt, replica) - 1))
        errors.append(abs(found.tpot_s.p50 / engine.tpot_s(replica) - 1))
    errors.sort()
    assert errors[len(errors) // 2] < 0.05
    assert errors[-1] < 0.25


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_after_200_answers_19_in_20_times_are_under_the_95th_percentile(seed: int) -> None:
    model, engine = LatencyModel(CARD, 8), Engine(2.0, seed=seed)
    engine.teach(model, 200)
    under = 0
    for _ in range(2000):
        prompt, replica = engine.request()
        found = predict(model, prompt, replica)
        under += engine.ttft_s(prompt, replica) * engine.noise() <= found.ttft_s.p95
        under += engine.tpot_s(replica) * engine.noise() <= found.tpot_s.p95
    assert under / 4000 == pytest.approx(0.95, abs=0.03)


def test_the_models_own_error_tells_how_good_it_has_become() -> None:
    model = LatencyModel(CARD, 8)
    Engine(2.0, noise=0.05).teach(model, 300)
    error = model.error().ttft
    assert error is not None
    assert error.mape < 0.08
    assert error.p95_coverage > 0.85


def test_an_engine_that_becomes_slower_is_learnt_anew() -> None:
    model = LatencyModel(CARD, 8)
    Engine(1.0).teach(model, 500)
    Engine(3.0, seed=8).teach(model, 300)
    assert predict(model, 1000).ttft_s.p50 == pytest.approx(3 * 1.05, rel=0.25)


def test_one_outlier_does_not_carry_the_model_away() -> None:
    model = LatencyModel(CARD, 8)
    Engine(1.0).teach(model, 200)
    before = predict(model, 1000).ttft_s.p50
    model.observe_ttft(prompt_tokens=1000, cached_share=0.0, replica=IDLE, actual_s=100_000.0)
    assert predict(model, 1000).ttft_s.p50 < 1.5 * before


observations = st.tuples(
    st.integers(0, 100_000), st.floats(0, 1), st.integers(0, 64), st.integers(0, 300), st.floats(0, 1e4)
)


@given(st.lists(observations, max_size=40), observations, st.booleans())
def test_predictions_are_above_zero_and_the_95th_percentile_is_never_under_the_median(
    seen: list[tuple[int, float, int, int, float]], asked: tuple[int, float, int, int, float], card: bool
) -> None:
    model = LatencyModel(CARD if card else None, 8)
    for prompt, cached, running, waiting, actual_s in seen:
        replica = ReplicaState(id="r1", running=running, waiting=waiting)
        model.observe_ttft(prompt_tokens=prompt, cached_share=cached, replica=replica, actual_s=actual_s)
        model.observe_tpot(replica=replica, actual_s=actual_s)
    prompt, cached, running, waiting, _ = asked
    replica = ReplicaState(id="r1", running=running, waiting=waiting)
    found = model.predict(prompt_tokens=prompt, cached_share=cached, replica=replica)
    assert (found is None) == (not card and len(seen) < 5)
    if found is not None:
        assert 0 < found.ttft_s.p50 <= found.ttft_s.p95 < float("inf")
        assert 0 < found.tpot_s.p50 <= found.tpot_s.p95 < float("inf")


def test_the_same_observations_give_the_same_predictions() -> None:
    models = [LatencyModel(CARD, 8), LatencyModel(CARD, 8)]
    for model in models:
        Engine(2.0).teach(model, 50)
    assert predict(models[0], 777) == predict(models[1], 777)


def test_the_expected_time_to_first_token_is_the_predictions_median() -> None:
    model = LatencyModel(SPEED, 4)
    state = ReplicaState(id="r1", running=2, waiting=1, queued_tokens=300)
    model.observe_ttft(prompt_tokens=500, cached_share=0.25, replica=state, actual_s=3.0)
    predicted = model.predict(prompt_tokens=500, cached_share=0.25, replica=state)
    assert predicted is not None
    assert model.expected_ttft_s(prompt_tokens=500, cached_share=0.25, replica=state) == predicted.ttft_s.p50
    assert LatencyModel(None, 4).expected_ttft_s(prompt_tokens=500, cached_share=0.0, replica=state) is None

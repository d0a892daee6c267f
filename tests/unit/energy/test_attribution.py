"""The attribution's laws, and how near it comes to the truth of a made-up engine with continuous batching."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from random import Random
from statistics import median, pvariance

import pytest
from economizer.energy.attribution import Attribution, attribute, per_token_shares, split
from economizer.energy.step_model import Coefficients, Episode, StepModel, estimated_steps
from economizer.energy.types import NO_WORK, Work
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from strategies import amounts, energies, models, works_of
from synthetic_engine import (
    Window,
    as_gateways_see_it,
    attributed,
    decoded,
    metered,
    prefilled,
    taught,
    traffic,
    windows,
)

SIMPLE = Coefficients(prefill_uj=10, decode_uj=20, step_uj=100)
batches = st.dictionaries(st.text("abc", max_size=3), st.one_of(st.just(NO_WORK), works_of), max_size=8)


def trusted(coefficients: Coefficients) -> StepModel:
    """A model that has measured what its card says often enough to stand by it."""
    model = StepModel(coefficients)
    for tokens in range(1, 7):
        work = Work(prefill_tokens=100, prefill_context=5_000, decode_tokens=tokens, decode_context=100 * tokens)
        model.observe(work, tokens, coefficients.work_uj(work, tokens) + coefficients.second_uj, 1.0)
    return model


@dataclass
class Outcome:
    """Energy by request, as it was attributed, by tokens, and in truth."""

    shares_uj: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    variances_uj2: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    by_token_uj: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    truth_uj: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @classmethod
    def of(cls, model: StepModel, seconds: Sequence[Window], read_uj: Sequence[int]) -> "Outcome":
        """Every window attributed, and learnt from afterwards."""
        outcome, episode = cls(), Episode()
        for window, active_uj in zip(seconds, read_uj, strict=True):
            found = attributed(model, window, active_uj)
            for name, share in found.shares.items():
                outcome.shares_uj[name] += share
                outcome.variances_uj2[name] += found.variances[name]
                outcome.truth_uj[name] += window.truth_uj[name]
            if window.works:
                for name, share in per_token_shares(active_uj, window.works).items():
                    outcome.by_token_uj[name] += share
            episode.add(model, list(window.works.values()), window.steps, active_uj, 1.0)
        return outcome

    def errors(self, found_uj: Mapping[str, float], names: Sequence[str]) -> list[float]:
        return [abs(found_uj[name] / self.truth_uj[name] - 1) for name in names]

    @property
    def covered(self) -> float:
        """The share of requests whose truth lies in the 95 % interval."""
        inside = [
            abs(self.shares_uj[name] - truth) <= 1.96 * sqrt(self.variances_uj2[name])
            for name, truth in self.truth_uj.items()
        ]
        return sum(inside) / len(inside)


@given(models(), batches, works_of, energies, energies, st.none() | amounts, st.floats(0, 100))
def test_requests_and_idle_and_unclaimed_add_up_to_what_was_measured(
    model: StepModel,
    works: dict[str, Work],
    unclaimed: Work,
    active_uj: int,
    idle_uj: int,
    steps: float | None,
    seconds: float,
) -> None:
    found = attribute(
        active_uj=active_uj,
        idle_uj=idle_uj,
        seconds=seconds,
        steps=steps,
        works=works,
        unclaimed=unclaimed,
        model=model,
    )
    assert sum(found.shares.values()) + found.idle_uj + found.unclaimed_uj == active_uj + idle_uj
    assert found.shares.keys() == found.variances.keys() == works.keys()
    assert min([*found.shares.values(), found.unclaimed_uj, *found.variances.values()]) >= 0
    assert found.idle_uj >= idle_uj
    assert all(found.shares[key] <= 1 for key, work in works.items() if work == NO_WORK)


@given(models(), batches, energies, amounts, st.randoms(use_true_random=False))
def test_the_order_in_which_requests_come_does_not_matter(
    model: StepModel, works: dict[str, Work], active_uj: int, steps: float, random: Random
) -> None:
    keys = list(works)
    random.shuffle(keys)

    def found(batch: dict[str, Work]) -> Attribution[str]:
        return attribute(active_uj=active_uj, idle_uj=0, seconds=1.0, steps=steps, works=batch, model=model)

    assert found(works) == found({key: works[key] for key in keys})


@given(models(), batches, works_of, works_of, energies, st.none() | amounts)
def test_a_request_that_does_more_never_gets_less(
    model: StepModel, others: dict[str, Work], work: Work, more: Work, active_uj: int, steps: float | None
) -> None:
    known = steps or estimated_steps([*others.values(), work + more])

    def share(of: Work) -> int:
        works = {**others, "it": of}
        found = attribute(active_uj=active_uj, idle_uj=0, seconds=1.0, steps=known, works=works, model=model)
        return found.shares["it"]

    if model.relative_error is None or model.predict_uj(work, 0):  # else the rule of last resort weighs it
        assert share(work + more) >= share(work) - 1 - active_uj // 10**12


@given(st.integers(0, 10**30), st.lists(amounts, min_size=1, max_size=12))
def test_a_split_is_exact_and_each_part_is_within_one_of_its_due(total: int, weights: list[float]) -> None:
    parts = split(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    for part, weight in zip(parts, weights, strict=True):
        due = total * weight / whole if whole else total / len(weights)
        assert part == pytest.approx(due, rel=1e-9, abs=1.0001)
        assert part == 0 or weight > 0 or not whole


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [
        (10, [1, 1, 1], [4, 3, 3]),  # equal remainders: the first gets the unit
        (10, [1.0, 0.0, 3.0], [3, 0, 7]),  # 2.5 and 7.5: equal remainders again
        (7, [0.0, 0.0], [4, 3]),
        (10**18 + 1, [1.0, 1.0], [5 * 10**17 + 1, 5 * 10**17]),
        (0, [], []),
        (5, [1e-300, 1e300], [0, 5]),
    ],
)
def test_largest_remainders_get_what_rounding_leaves(total: int, weights: list[float], parts: list[int]) -> None:
    assert split(total, weights) == parts


@pytest.mark.parametrize(("total", "weights"), [(-1, [1.0]), (1, []), (1, [-1.0]), (1, [float("nan")])])
def test_what_cannot_be_split_is_refused(total: int, weights: list[float]) -> None:
    with pytest.raises(ValueError, match="must"):
        split(total, weights)


def window_of(active_uj: int, works: dict[str, Work], model: StepModel, **more: float) -> Attribution[str]:
    steps = more.get("steps")
    return attribute(
        active_uj=active_uj, idle_uj=50, seconds=more.get("seconds", 1.0), steps=steps, works=works, model=model
    )


def test_steps_are_shared_by_decoded_tokens_and_everything_is_scaled_to_the_meter() -> None:
    found = window_of(960, {"a": decoded(3), "b": decoded(1)}, trusted(SIMPLE), steps=4)
    assert (found.shares, found.idle_uj, found.unclaimed_uj) == ({"a": 720, "b": 240}, 50, 0)  # 3 * 20 + 3 * 100


def test_a_chunk_of_a_prompt_is_in_a_step_as_a_token_is() -> None:
    found = window_of(20_480 + 20 + 200, {"a": prefilled(2048), "b": decoded(1)}, trusted(SIMPLE), steps=2)
    assert found.shares == {"a": 20_580, "b": 120}


def test_an_engine_that_does_not_count_its_steps_made_those_of_its_longest_request() -> None:
    works = {"a": decoded(4), "b": decoded(2)}
    assert estimated_steps(works.values()) == 4
    assert window_of(520, works, trusted(SIMPLE)) == window_of(520, works, trusted(SIMPLE), steps=4)
    assert estimated_steps([]) == 0


def test_a_window_without_work_is_idle() -> None:
    found = window_of(1_000, {"cancelled": NO_WORK}, trusted(SIMPLE), steps=3)
    assert (found.shares, found.idle_uj, found.unclaimed_uj) == ({"cancelled": 0}, 1_050, 0)


def test_work_that_nobody_told_of_takes_its_part() -> None:
    found = attribute(
        active_uj=480,
        idle_uj=0,
        seconds=1.0,
        steps=4,
        works={"a": decoded(3)},
        unclaimed=decoded(1),
        model=trusted(SIMPLE),
    )
    assert (found.shares, found.idle_uj, found.unclaimed_uj) == ({"a": 360}, 0, 120)


def test_the_engines_background_is_idle() -> None:
    found = window_of(480, {"a": decoded(3)}, trusted(replace(SIMPLE, second_uj=60)), steps=3, seconds=2.0)
    assert (found.shares, found.idle_uj) == ({"a": 360}, 50 + 120)


def test_a_request_is_never_charged_more_than_three_times_what_it_is_predicted_to_take() -> None:
    found = window_of(6_000, {"a": decoded(1)}, trusted(SIMPLE), steps=1)
    assert (found.shares, found.idle_uj) == ({"a": 360}, 50 + 5_640)


def test_a_model_that_has_measured_nothing_knows_no_limit() -> None:
    for model in (StepModel(), StepModel(replace(SIMPLE, second_uj=1e9))):
        found = window_of(6_000, {"a": decoded(3), "b": decoded(1)}, model, steps=4)
        assert (found.shares, found.idle_uj) == ({"a": 4_500, "b": 1_500}, 50)


def test_without_any_knowledge_a_lone_decoded_token_weighs_as_21_of_a_prompt() -> None:
    works = {"a": prefilled(210), "b": decoded(10)}
    found = window_of(10_000, works, StepModel(), steps=10)
    assert found.shares["b"] / found.shares["a"] == pytest.approx(1, abs=0.02)


def test_the_variance_is_that_of_shares_whose_predictions_have_independent_errors() -> None:
    model = trusted(SIMPLE)
    for _ in range(2_000):  # windows of one request that are 10 % off
        model.judge([decoded(1)], 1, 120 * 1.1 / 0.995, 1.0)
    assert model.share_error == pytest.approx(0.1, rel=0.02)
    works = {"a": decoded(6), "b": decoded(3), "c": decoded(1)}
    found = window_of(1_200_000, works, StepModel(SIMPLE), steps=10)
    assert found.relative_error == 0.5
    scaled = {key: variance * (0.1 / 0.5) ** 2 for key, variance in found.variances.items()}
    random, drawn = Random(1), defaultdict[str, list[float]](list)
    for _ in range(4_000):
        energies = {key: work.decode_tokens * random.gauss(1, 0.1) for key, work in works.items()}
        for key, energy in energies.items():
            drawn[key].append(1_200_000 * energy / sum(energies.values()))
    assert scaled == pytest.approx({key: pvariance(values) for key, values in drawn.items()}, rel=0.08)


def test_the_share_of_a_request_alone_is_certain() -> None:
    assert window_of(1_000, {"a": decoded(5)}, StepModel()).variances == {"a": 0.0}


def test_per_token_shares_know_only_tokens() -> None:
    works = {"a": prefilled(300, 45_000), "b": decoded(100)}
    assert per_token_shares(1_000, works) == {"a": 750, "b": 250}


def outcome(seed: int, *, gateways: bool, noise: float, lag: float, chunk_tokens: int) -> tuple[Outcome, list[str]]:
    """The last five minutes of ten at an engine, and the names of the long prompts in it."""
    requests = traffic(seed, 600)
    seconds = windows(requests, chunk_tokens=chunk_tokens)
    if gateways:
        seconds = as_gateways_see_it(requests, seconds)
    read = metered(seconds, seed, noise, lag)
    model = taught(StepModel(), seconds[:300], read[:300])
    found = Outcome.of(model, seconds[300:], read[300:])
    whole = [one for one in requests if one.began_s > 300]
    found.truth_uj = defaultdict(float, {one.name: found.truth_uj[one.name] for one in whole})
    return found, [one.name for one in whole if one.prompt >= 4_000]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("chunk_tokens", [2048, 512])
def test_exact_counts_charge_every_long_prompt_within_a_tenth_of_the_truth_and_per_token_shares_do_not(
    seed: int, chunk_tokens: int
) -> None:
    found, long = outcome(seed, gateways=False, noise=0.0, lag=0.0, chunk_tokens=chunk_tokens)
    assert max(found.errors(found.shares_uj, long)) < 0.1
    assert max(found.errors(found.by_token_uj, long)) > 0.2
    everyone = list(found.truth_uj)
    assert median(found.errors(found.shares_uj, everyone)) < 0.07
    assert median(found.errors(found.by_token_uj, everyone)) > 0.2


@pytest.mark.parametrize("seed", [1, 2])
def test_under_noise_and_with_what_gateways_tell_half_of_all_shares_are_within_an_eighth_of_the_truth(
    seed: int,
) -> None:
    found, long = outcome(seed, gateways=True, noise=0.03, lag=0.1, chunk_tokens=2048)
    assert median(found.errors(found.shares_uj, long)) < 0.06 < median(found.errors(found.by_token_uj, long))
    everyone = list(found.truth_uj)
    assert median(found.errors(found.shares_uj, everyone)) < 0.125
    assert median(found.errors(found.by_token_uj, everyone)) > 0.25
    assert 0.9 < found.covered <= 1.0

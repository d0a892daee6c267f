"""The comparison's settings, the order of texts, and the report of what came of it."""

from pathlib import Path
from typing import Any

import pytest
from economizer_training.classify.order import batches, learning_rate_at
from economizer_training.classify.report import Outcome, Report, markdown
from economizer_training.classify.settings import Classification, Run, encoder_folder, load_classification
from economizer_training.errors import TrainingError
from economizer_training.record import Cost
from economizer_training.settings import parse_settings
from hypothesis import given
from hypothesis import strategies as st

RUNS = Path(__file__).parents[3] / "training" / "runs"
GIVEN: dict[str, Any] = {
    "train": "a.csv",
    "test": "b.csv",
    "out": "./made",
    "measures": [{"name": "sorted", "by_length": True}, {"name": "cut", "blocks": [0, 1]}],
}


def parsed(**changed: Any) -> Classification:
    job = parse_settings({**GIVEN, **changed}, Classification, "run.yaml")
    job.runs()
    return job


def test_each_measure_is_added_to_those_before_it() -> None:
    assert parsed().runs() == {
        "plain": Run(),
        "sorted": Run(by_length=True),
        "cut": Run(by_length=True, blocks=(0, 1)),
    }


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"speed": 3}, "run.yaml: speed: is not a known key here"),
        ({"seeds": []}, "seeds is []: must name at least one"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]: must name at least one, from 0 on, each once"),
        ({"measures": []}, "measures is []: must have at least one"),
        ({"measures": [{"batch": 4}]}, "must each have a name of their own, other than plain"),
        ({"measures": [{"name": "plain"}]}, "must each have a name of their own, other than plain"),
        ({"measures": [{"name": "a", "speed": 3}]}, "measures.0: speed: is not a known key here"),
        ({"measures": [{"name": "a", "blocks": []}]}, "blocks is []: must name at least one block"),
        ({"measures": [{"name": "a", "blocks": [1, 0]}]}, "blocks is [1, 0]: must name at least one block"),
        ({"measures": [{"name": "a", "workers": 3}]}, "batch is 8: must be a multiple of workers, which is 3"),
        ({"measures": [{"name": "a", "preparation": {"near": 2}}]}, "near is 2.0: must be between 0 and 1"),
        ({"plain": {"epochs": 0}}, "epochs is 0: must be 1 or more"),
        ({"plain": {"learning_rate": 0}}, "learning_rate is 0.0: must be above 0 and finite"),
        ({"plain": {"warmup": 1}}, "warmup is 1.0: must be at least 0 and under 1"),
        ({"plain": {"precision": "int8"}}, "plain.precision"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_key_value_and_rule(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainingError) as refused:
        parsed(**changed)
    assert told in str(refused.value)


def test_the_shipped_comparison_can_be_read() -> None:
    runs = load_classification(RUNS / "classify.yaml").runs()
    plain, *_, ours = runs.values()
    assert plain == Run()
    assert ours.workers == 2


def test_an_encoder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"encoder: .* is no model folder: it has no config\.json"):
        encoder_folder(str(tmp_path))


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    batch=st.integers(1, 9),
    workers=st.integers(1, 3),
    by_length=st.booleans(),
    seed=st.integers(0, 5),
)
def test_an_epoch_has_every_text_once_in_batches_that_workers_share_evenly(
    lengths: list[int], batch: int, workers: int, by_length: bool, seed: int
) -> None:
    how: dict[str, Any] = {"batch": batch * workers, "workers": workers, "by_length": by_length, "seed": seed}
    found = batches(lengths, **how)
    rows = [row for each in found for row in each]
    assert len(rows) == len(set(rows)) == len(lengths) // workers * workers
    assert all(len(each) % workers == 0 and 0 < len(each) <= batch * workers for each in found)
    assert found == batches(lengths, **how)


def test_batches_by_length_hold_texts_that_are_about_as_long_in_no_order() -> None:
    lengths = [1, 9, 5] * 40
    found = batches(lengths, batch=10, workers=1, by_length=True, seed=0)
    longest = [{lengths[row] for row in each} for each in found]
    assert all(len(each) == 1 for each in longest)
    assert [min(each) for each in longest] != sorted(min(each) for each in longest)
    assert found != batches(lengths, batch=10, workers=1, by_length=True, seed=1)


def test_the_rate_rises_over_the_warm_up_and_falls_in_a_line_to_nothing() -> None:
    rates = [learning_rate_at(step, 10, peak=0.8, warmup=0.2) for step in range(10)]
    assert rates == pytest.approx([0.4, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert learning_rate_at(0, 10, peak=0.8, warmup=0.0) == 0.8


def outcome(name: str, seed: int, accuracy: float, seconds: float, joules: float | None) -> Outcome:
    costs = {
        "prepare": Cost(seconds=1.0, cpu_s=2.0, energy_j=joules and 1.0, active_j=joules and 0.5),
        "train": Cost(seconds=seconds - 1, cpu_s=2 * seconds - 2, energy_j=joules and joules - 1, active_j=joules),
        "score": Cost(seconds=50.0, cpu_s=50.0, energy_j=50.0, active_j=50.0),
    }
    return Outcome(
        name=name, seed=seed, texts=90, accuracy=accuracy, costs=costs, method="cpu-time-model", meter="a model"
    )


def test_a_report_has_means_and_shares_of_the_plain_run_with_the_same_seed_and_no_cost_of_scoring() -> None:
    report = Report(
        names=("plain", "ours"),
        outcomes=(
            outcome("plain", 0, 0.90, 100, 200),
            outcome("plain", 1, 0.92, 100, 400),
            outcome("ours", 0, 0.895, 40, 80),
            outcome("ours", 1, 0.915, 60, 120),
        ),
        hardware="a machine",
    )
    head, _, plain, ours, *rest = markdown(report).splitlines()
    assert head == "| run | seeds | texts | accuracy | s | CPU s | J | time | energy |"
    assert plain == "| plain | 0, 1 | 90 | 91.00 % | 100 | 200 | 300 | 1.00 (1.00-1.00) | 1.00 (1.00-1.00) |"
    assert ours == "| ours | 0, 1 | 90 | 90.50 % | 50 | 100 | 100 | 0.50 (0.40-0.60) | 0.35 (0.30-0.40) |"
    assert rest[-3:] == ["- half the time: yes", "- half the energy: yes", "- at most a point of accuracy lost: yes"]
    assert report.figures()["runs"][1]["points_lost"] == pytest.approx([0.5, 0.5])


def test_joules_that_are_not_known_are_reached_by_nobody() -> None:
    report = Report(
        names=("plain", "ours"),
        outcomes=(outcome("plain", 0, 0.9, 100, None), outcome("ours", 0, 0.8, 60, None)),
        hardware="a machine",
    )
    assert report.reached() == {
        "half the time": False,
        "half the energy": None,
        "at most a point of accuracy lost": False,
    }
    assert "| ours | 0 | 90 | 80.00 % | 60 | 120 | unknown | 0.60 | unknown |" in markdown(report)


def test_a_report_of_what_is_made_so_far_names_what_is_missing() -> None:
    report = Report(
        names=("plain", "between", "ours"),
        outcomes=(outcome("plain", 0, 0.9, 100, 200), outcome("ours", 0, 0.9, 40, 80)),
        hardware="a machine",
    )
    assert "Not made yet: between." in markdown(report).splitlines()
    assert report.figures()["runs"][1] == {
        "name": "between",
        "outcomes": [],
        "points_lost": [],
        "time_share": None,
        "cpu_share": None,
        "energy_share": None,
    }

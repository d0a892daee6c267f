"""A variant is scored against the full model, on tiny random Llamas."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
ONE = {"value": 1.0, "low": 1.0, "high": 1.0}
ZERO = {"value": 0.0, "low": 0.0, "high": 0.0}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each evaluation said, or the error that it raised."""
    folder = tmp_path_factory.mktemp("evaluate")
    python = ROOT / ".venvs" / "compression" / "bin" / "python"
    tokenizer = ROOT / ".economizer" / "models" / "smollm2-135m-instruct"
    done = subprocess.run(
        [python, Path(__file__).with_name("tiny_evaluations.py"), folder, tokenizer],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "how many" not in done.stderr + done.stdout, "items' text is not logged"
    return dict(json.loads((folder / "told.json").read_text()))


@pytest.mark.parametrize("model", ["full", "same"])
def test_a_model_beside_itself_has_quality_1_and_no_divergence(told: dict[str, Any], model: str) -> None:
    score = told[model]
    assert [score[key] for key in ("quality", "top1_agreement", "perplexity_ratio")] == [ONE, ONE, ONE]
    assert [score[key] for key in ("kl_mean", "flips", "accuracy_difference")] == [ZERO, ZERO, ZERO]
    assert [(each["slice"], each["kind"], each["items"]) for each in score["slices"]] == [
        ("documents", "text", 8),
        ("chat", "answers", 4),
        ("sums", "choices", 24),
    ]


def test_a_model_of_other_weights_has_less_quality_and_says_where(told: dict[str, Any]) -> None:
    score = told["other"]
    assert 0 < score["quality"]["low"] < score["quality"]["value"] < score["quality"]["high"] < 1
    assert score["kl_mean"]["low"] > 0
    text, chat, _ = score["slices"]
    assert (text["tokens"], text["agreement"]["value"] < 1) == (8 * 63, True)
    assert 4 <= chat["tokens"] <= 4 * 8
    assert score["quality"]["value"] == pytest.approx(sum(each["agreement"]["value"] for each in score["slices"]) / 3)


def test_the_full_model_is_loaded_once_for_all_its_variants(told: dict[str, Any]) -> None:
    assert told["loaded"] == ["full", "same", "other"]


def test_choices_accuracy_and_flips_are_what_the_models_choose_without_lm_eval(told: dict[str, Any]) -> None:
    full, other = told["chosen"]
    right = [index % 3 for index in range(24)]
    flips = sum((a == r) != (b == r) for a, b, r in zip(full, other, right, strict=True))
    assert flips > 0
    score = told["other"]["slices"][2]
    assert score["flips"]["value"] == flips / 24
    assert score["agreement"]["value"] == sum(a == b for a, b in zip(full, other, strict=True)) / 24
    assert score["accuracy_full"] == sum(a == r for a, r in zip(full, right, strict=True)) / 24
    assert score["accuracy"] == sum(b == r for b, r in zip(other, right, strict=True)) / 24


def test_items_that_share_text_with_the_calibration_are_not_scored_and_counted(told: dict[str, Any]) -> None:
    score = told["learnt"]
    assert score["items_excluded"] == 2
    assert [each["items"] for each in score["slices"]] == [6, 4, 24]
    assert score["slices"][0]["tokens"] == 6 * 63
    assert score["slices"][1:] == told["other"]["slices"][1:]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("learnt by heart", "slice documents: 100% of its items share 13 words in a row"),
        ("damaged", "slice documents: the model's logits are not finite"),
        ("damaged on choices", "slice sums: the model's logits are not finite"),
        ("strange", "strange has another tokenizer than the full model"),
        ("too little text", "tokens and 10000000 are wanted"),
        ("too few items", "slice sums: its task has 24 items and 100 are wanted"),
        ("no data", "--data"),
    ],
)
def test_what_cannot_be_scored_is_told_with_its_slice(told: dict[str, Any], what: str, says: str) -> None:
    assert says in told[what]


def test_nothing_unfinished_is_left(told: dict[str, Any]) -> None:
    assert set(told["left"]) == {"lock"}

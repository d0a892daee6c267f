"""The gate: what a variant may lose, when another one makes it needless, and the words in which it says so."""

from dataclasses import replace
from typing import Any

import pytest
from checkpoints import ENGINE, EVALUATION, MANIFEST, interval
from economizer.variants.manifest import Interval, Manifest
from economizer_compression.gate import Margins, costs, judge
from hypothesis import given
from hypothesis import strategies as st

MARGINS = Margins(quality_loss=0.2, accuracy_loss=0.1)


def made(
    variant: str,
    quality: float,
    *,
    width: float = 0.01,
    full: bool = False,
    accuracy: Interval | None = None,
    logprobs: float | None = None,
    **ratios: float,
) -> Manifest:
    """A variant of this quality, with its paired ratios to the full model (``decode_16`` for ``decode@16``)."""
    evaluation = replace(
        EVALUATION, quality=interval(quality, quality - width, min(1.0, quality + width)), accuracy_difference=accuracy
    )
    against = {key.replace("_at_", "@"): interval(value) for key, value in ratios.items()}
    engine = replace(ENGINE, against_full=against, logprob_shift=logprobs)
    return replace(MANIFEST, variant=variant, full=full, evaluation=evaluation, engine=engine, verdict=None)


def ratios(speed: float, joules: float) -> dict[str, float]:
    return {
        "prefill": speed,
        "decode_at_1": speed,
        "decode_at_16": speed,
        "prefill_j": joules,
        "decode_j_at_16": joules,
    }


FULL = made("bf16", 1.0, width=0.0, full=True)


def test_a_variant_within_the_margins_that_is_better_somewhere_is_promoted_with_what_speaks_for_it() -> None:
    verdict = judge(made("int8", 0.92, **ratios(1.25, 0.8)), [FULL], MARGINS)
    assert verdict.promoted
    assert verdict.reasons == (
        "joules per output token: 0.80 of the full model's",
        "joules per prompt token: 0.80 of the full model's",
        "machine time (dollars) per output token: 0.80 of the full model's",
        "seconds per output token alone: 0.80 of the full model's",
        "seconds per prompt token: 0.80 of the full model's",
    )
    assert verdict.margins == {"quality_loss": 0.2, "accuracy_loss": 0.1, "better": 0.02, "logprob_shift": 0.05}


def test_the_lower_bound_of_quality_is_held_against_the_margin_and_not_the_score() -> None:
    verdict = judge(made("int4", 0.81, width=0.03, **ratios(2, 0.5)), [FULL], MARGINS)
    assert not verdict.promoted
    assert verdict.reasons == (
        "quality against the full model may be -0.220 (lower 95 % bound) and -0.200 is allowed: 0.020 too low",
    )


def test_the_lower_bound_of_the_paired_accuracy_is_held_against_its_own_margin() -> None:
    verdict = judge(made("int8", 0.95, accuracy=interval(-0.05, -0.13, 0.03), **ratios(2, 0.5)), [FULL], MARGINS)
    assert verdict.reasons == (
        "accuracy against the full model may be -0.130 (lower 95 % bound) and -0.100 is allowed: 0.030 too low",
    )


def test_a_variant_that_saves_nothing_is_dominated_by_the_full_model() -> None:
    verdict = judge(made("int4", 0.9, **ratios(0.6, 1.5)), [FULL], MARGINS)
    assert not verdict.promoted
    assert verdict.reasons == (
        "bf16 is as good (quality 1.000, this one 0.900) and this one is nowhere 2% better: best is joules per output "
        "token, 1.50 of bf16's",
    )


def test_a_slow_variant_that_saves_joules_is_not_dominated() -> None:
    assert judge(made("int4", 0.9, **ratios(0.6, 0.9)), [FULL], MARGINS).promoted


def test_joules_by_another_method_are_left_out_and_that_is_told() -> None:
    other = made("int8", 0.93, **ratios(1.0, 1.0))
    assert other.engine is not None
    metered = replace(other, engine=replace(other.engine, energy_method="RAPL"))
    thriftier = made("int4", 0.9, **ratios(1.0, 0.8))
    assert judge(thriftier, [FULL, other], MARGINS).promoted
    verdict = judge(thriftier, [FULL, metered], MARGINS)
    assert verdict.reasons == (
        "int8 is as good (quality 0.930, this one 0.900) and this one is nowhere 2% better: best is machine time "
        "(dollars) per output token, 1.00 of int8's (joules were not compared: int8's were not measured alike)",
    )
    assert judge(made("int4", 0.9, **ratios(1.1, 0.8)), [FULL, metered], MARGINS).promoted


def test_joules_beside_the_full_model_count_however_it_was_measured_before() -> None:
    assert FULL.engine is not None
    full = replace(FULL, engine=replace(FULL.engine, energy_method="RAPL"))
    assert judge(made("int4", 0.9, **ratios(0.6, 0.9)), [full], MARGINS).promoted


def test_what_is_better_by_less_than_the_noise_does_not_count() -> None:
    assert not judge(made("int8", 0.9, **ratios(1.01, 0.99)), [FULL], MARGINS).promoted


def test_a_worse_copy_of_a_served_variant_is_needless() -> None:
    served = [FULL, made("int8", 0.93, **ratios(1.25, 0.8))]
    verdict = judge(made("int8-rtn", 0.91, **ratios(1.25, 0.8)), served, MARGINS)
    assert not verdict.promoted
    assert verdict.reasons[0].startswith("int8 is as good (quality 0.930, this one 0.910)")


def test_a_better_one_takes_its_place_beside_a_served_variant() -> None:
    served = [FULL, made("int8-rtn", 0.91, **ratios(1.25, 0.8))]
    assert judge(made("int8", 0.93, **ratios(1.25, 0.8)), served, MARGINS).promoted


def test_a_variant_is_not_held_against_its_own_former_release() -> None:
    same = made("int8", 0.93, **ratios(1.25, 0.8))
    assert judge(same, [FULL, same], MARGINS).promoted


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("evaluation", "it was not evaluated: run `economizer-compress evaluate` first"),
        ("engine", "it was not measured beside the full model on an engine"),
    ],
)
def test_what_was_not_measured_is_not_promoted(missing: str, reason: str) -> None:
    parts: dict[str, Any] = {missing: None}
    verdict = judge(replace(made("int8", 0.93, **ratios(1.25, 0.8)), **parts), [FULL], MARGINS)
    assert not verdict.promoted
    assert reason in verdict.reasons[0]


def test_an_engine_that_computes_something_else_is_not_promoted() -> None:
    verdict = judge(made("int8", 0.93, logprobs=-0.4, **ratios(1.25, 0.8)), [FULL], MARGINS)
    assert not verdict.promoted
    assert "log probabilities lie -0.400 apart in the mean and 0.05 is allowed" in verdict.reasons[0]


def test_the_full_model_is_always_promoted() -> None:
    assert judge(FULL, [], MARGINS).promoted


def test_a_full_model_that_was_not_evaluated_counts_all_the_same() -> None:
    verdict = judge(made("int4", 0.9, **ratios(0.5, 2)), [replace(FULL, evaluation=None)], MARGINS)
    assert not verdict.promoted
    assert verdict.reasons[0].startswith("bf16 is as good (quality 1.000")


def test_scores_of_other_text_do_not_compare() -> None:
    other = made("int8-rtn", 0.91, **ratios(1.25, 0.8))
    assert other.evaluation is not None
    other = replace(other, evaluation=replace(other.evaluation, suite_sha256="f" * 64))
    verdict = judge(made("int8", 0.93, **ratios(1.25, 0.8)), [FULL, other], MARGINS)
    assert verdict.reasons == (
        "it was scored on other text or against another model than int8-rtn: evaluate both alike",
    )


def test_costs_are_shares_of_the_full_models() -> None:
    assert costs(FULL) == dict.fromkeys(costs(FULL), 1.0)
    found = costs(made("int8", 0.9, **ratios(1.25, 0.8)))
    assert found["seconds per output token alone"] == pytest.approx(0.8)
    assert found["joules per prompt token"] == 0.8


def test_margins_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"quality_loss is 1.5: must be between 0 and 1"):
        Margins(quality_loss=1.5)


@given(st.floats(0.3, 0.99), st.floats(0, 0.5), st.floats(0.2, 5), st.floats(0.2, 5))
def test_a_wider_margin_never_shuts_the_gate(quality: float, loss: float, speed: float, joules: float) -> None:
    variant = made("x", quality, **ratios(speed, joules))
    narrow, wide = Margins(quality_loss=loss), Margins(quality_loss=loss + 0.3)
    assert judge(variant, [FULL], wide).promoted >= judge(variant, [FULL], narrow).promoted

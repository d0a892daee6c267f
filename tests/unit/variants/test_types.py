import re
from collections.abc import Callable
from typing import Any

import examples
import pytest
from economizer.variants.types import Family, PowerCard, QualityCard, SpeedCard, Variant


def quality(**given: Any) -> QualityCard:
    return QualityCard(**{"score": 0.5, "source": "made up", **given})


def speed(**given: Any) -> SpeedCard:
    return SpeedCard(**{"prefill_tokens_per_s": 1.0, "decode_tokens_per_s": {1: 1.0}, "source": "made up", **given})


def power(**given: Any) -> PowerCard:
    return PowerCard(**{"active_w": 2.0, "source": "made up", **given})


def variant(**given: Any) -> Variant:
    return Variant(
        **{"family": "m", "name": "a", "context_tokens_max": 1, "concurrency_max": 1, "hardware": "cpu", **given}
    )


def family(**given: Any) -> Family:
    return Family(**{"name": "m", "full": "a", "variants": (variant(),), **given})


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("build", "field", "value", "rule"),
    [
        (quality, "score", 1.5, "score is 1.5: must be between 0 and 1"),
        (quality, "score", -0.1, "score is -0.1: must be between 0 and 1"),
        (quality, "score", NAN, "score is nan: must be between 0 and 1"),
        (quality, "low", 0.6, "low is 0.6: must be between 0 and score"),
        (quality, "low", -0.1, "low is -0.1: must be between 0 and score"),
        (speed, "prefill_tokens_per_s", 0.0, "prefill_tokens_per_s is 0.0: must be above 0"),
        (speed, "prefill_tokens_per_s", INFINITE, "prefill_tokens_per_s is inf: must be above 0"),
        (speed, "decode_tokens_per_s", {}, "decode_tokens_per_s is {}: must map at least one batch size (1 or more)"),
        (speed, "decode_tokens_per_s", {0: 1.0}, "decode_tokens_per_s is {0: 1.0}: must map at least one batch size"),
        (speed, "decode_tokens_per_s", {1: 0.0}, "decode_tokens_per_s is {1: 0.0}: must map at least one batch size"),
        (speed, "decode_tokens_per_s", {1: INFINITE}, "decode_tokens_per_s is {1: inf}: must map at least one batch"),
        (speed, "overhead_s", -1.0, "overhead_s is -1.0: must be 0 or more"),
        (speed, "overhead_s", INFINITE, "overhead_s is inf: must be 0 or more"),
        (speed, "cold_start_s", -1.0, "cold_start_s is -1.0: must be 0 or more"),
        (speed, "cold_start_s", INFINITE, "cold_start_s is inf: must be 0 or more"),
        (power, "idle_w", -1.0, "idle_w is -1.0: must be 0 or more"),
        (power, "idle_w", 3.0, "active_w is 2.0: must be at least idle_w"),
        (power, "active_w", NAN, "active_w is nan: must be at least idle_w"),
        (power, "active_w", INFINITE, "active_w is inf: must be at least idle_w"),
        (variant, "context_tokens_max", 0, "context_tokens_max is 0: must be 1 or more"),
        (variant, "concurrency_max", 0, "concurrency_max is 0: must be 1 or more"),
        (variant, "features", frozenset({"chat", "psychic"}), "features is ['psychic']: must be among ['audio', "),
        (variant, "replicas_min", -1, "replicas_min is -1: must be 0 or more"),
        (variant, "replicas_min", 2, "replicas_max is 1: must be 1 or more, and at least replicas_min"),
        (variant, "replicas_max", 0, "replicas_max is 0: must be 1 or more, and at least replicas_min"),
        (family, "variants", (), "variants is []: must name at least one variant"),
        (family, "variants", (variant(), variant()), "variants is ['a', 'a']: must have unique names"),
        (family, "full", "b", "full is 'b': must be one of this family's variants ['a']"),
        (family, "name", "n", "variants is ['a']: must belong to this family"),
    ],
)
def test_a_wrong_value_cannot_be_built_and_is_named(
    build: Callable[..., object], field: str, value: object, rule: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}"):
        build(**{field: value})


def test_nothing_unknown_has_a_value() -> None:
    plain = variant()
    assert (plain.quality, plain.speed, plain.power, plain.price) == (None, None, None, None)
    assert (speed().cold_start_s, quality().low) == (None, None)


def test_a_floor_is_compared_with_the_low_end_of_the_quality_where_that_is_known() -> None:
    assert quality(score=0.9, low=0.8).promised == 0.8
    assert quality(score=0.9).promised == 0.9
    assert quality(score=0.9, low=0.0).promised == 0.0


def test_a_variant_is_pinned_by_its_family_and_name() -> None:
    assert examples.variant("int8", family="llama").id == "llama@int8"


def test_the_full_variant_is_the_one_that_the_family_names() -> None:
    full, small = variant(name="a"), variant(name="b")
    assert family(full="b", variants=(full, small)).full_variant is small

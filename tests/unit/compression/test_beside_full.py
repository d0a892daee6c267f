"""Figures of different minutes, made to compare by what was measured in turns."""

from dataclasses import replace

import pytest
from checkpoints import ENGINE, MANIFEST, interval
from economizer.variants.manifest import Interval, Manifest
from economizer_compression.beside_full import beside_full, energy_methods, methods_told

RATIOS = {"prefill": 1.25, "decode@1": 1.1, "decode@16": 1.2, "ttft": 0.8, "prefill_j": 0.75, "decode_j@16": 0.9}
FULL = replace(MANIFEST, variant="bf16", full=True, engine=replace(ENGINE, against_full={}))


def measured(**changes: object) -> Manifest:
    engine = replace(
        ENGINE,
        prefill_tokens_per_s=interval(500),
        against_full={name: interval(ratio, ratio - 0.1, ratio + 0.1) for name, ratio in RATIOS.items()},
    )
    return replace(MANIFEST, variant="int8", engine=replace(engine, **changes))  # type: ignore[arg-type]


def test_a_variant_measured_in_a_slow_hour_keeps_its_place_beside_the_full_model() -> None:
    found = beside_full(measured(), FULL).engine
    assert found is not None
    assert found.prefill_tokens_per_s.value == pytest.approx(1.25 * 1234.567)
    assert found.prefill_tokens_per_s.low == pytest.approx(1.15 * 1234.567)
    assert found.decode_tokens_per_s[16].value == pytest.approx(1.2 * 150.04)
    assert found.ttft_s.value == pytest.approx(0.8 * 0.125)
    assert found.prefill_j_per_token is not None
    assert found.prefill_j_per_token.value == pytest.approx(0.75 * 0.01)
    assert found.decode_j_per_token is not None
    assert found.decode_j_per_token[16].value == pytest.approx(0.9 * 0.8)


def test_a_batch_without_a_ratio_keeps_its_own_figure() -> None:
    found = beside_full(measured(), FULL).engine
    assert found is not None
    assert found.decode_j_per_token is not None
    assert found.decode_j_per_token[1] == Interval(value=2.5, low=2.5, high=2.5)


def test_the_full_model_and_what_cannot_be_compared_stay_as_they_are() -> None:
    assert beside_full(FULL, FULL) == FULL
    assert beside_full(measured(), None) == measured()
    assert beside_full(measured(hardware="another"), FULL) == measured(hardware="another")
    assert beside_full(measured(engine="another"), FULL) == measured(engine="another")
    assert beside_full(measured(energy_method="RAPL"), FULL) == measured(energy_method="RAPL")
    unmeasured = replace(measured(), engine=None)
    assert beside_full(unmeasured, FULL) == unmeasured


def test_joules_that_were_measured_in_several_ways_are_told_by_way() -> None:
    unmeasured = replace(measured(energy_method=None), variant="int4")
    alike = [FULL, measured(), unmeasured]
    assert methods_told(energy_methods(alike)) == []
    assert methods_told(energy_methods([*alike, replace(measured(energy_method="RAPL"), variant="fp8")])) == [
        "joules were measured in 2 ways, which do not compare: measure all alike",
        "  tiny@bf16, tiny@int8: CPU seconds x 9 W per busy core",
        "  tiny@fp8: RAPL",
    ]

"""Recipes: what a YAML file may say, what is refused before any work, and what a swept setting comes to."""

from typing import Any

import pytest
from economizer_compression.errors import CompressionError
from economizer_compression.recipes import (
    SHIPPED,
    Calibration,
    DepthPrune,
    Gptq,
    Recipe,
    Rtn,
    SmoothQuant,
    load_recipe,
    parse_recipe,
    refuse_group_sizes,
)


def recipe(*steps: Any, **others: Any) -> Recipe:
    return parse_recipe("mine", {"steps": list(steps), **others}, "mine.yaml")


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_recipe_that_comes_with_the_package_is_well_formed_and_short(file: Any) -> None:
    found = load_recipe(file.stem)
    assert found.name == file.stem
    assert found.summary
    assert len(file.read_text().splitlines()) <= 8


def test_the_promised_recipes_are_there() -> None:
    promised = {"int8", "int8-rtn", "gptq-w4a16", "awq-w4a16", "fp8-dynamic", "sparse24", "sparse24-int8"}
    promised |= {"depth-prune", "width-prune", "depth-prune-int8"}
    assert promised <= {file.stem for file in SHIPPED.glob("*.yaml")}


def test_a_recipe_is_read_with_its_defaults() -> None:
    assert recipe({"smoothquant": {"strength": 0.8}}, {"gptq": {"scheme": "W8A8"}}) == Recipe(
        name="mine",
        summary="",
        steps=(SmoothQuant(strength=0.8), Gptq(scheme="W8A8")),
        calibration=Calibration(samples=64, tokens=512, seed=0),
    )


def test_a_swept_setting_comes_to_one_candidate_for_each_combination() -> None:
    swept = recipe(
        {"smoothquant": {"strength": [0.5, 0.8]}}, {"gptq": {"scheme": "W8A8", "observer": ["minmax", "mse"]}}
    )
    candidates = {tuple(settings.values()): steps for settings, steps in swept.candidates()}
    assert list(candidates) == [(0.5, "minmax"), (0.5, "mse"), (0.8, "minmax"), (0.8, "mse")]
    assert candidates[(0.8, "mse")] == (SmoothQuant(strength=0.8), Gptq(scheme="W8A8", observer="mse"))


def test_a_recipe_without_a_sweep_has_one_candidate_of_its_own_steps() -> None:
    plain = recipe({"rtn": {"scheme": "W8A8"}})
    assert list(plain.candidates()) == [({}, (Rtn(scheme="W8A8"),))]
    assert not plain.needs_text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "a recipe must be a mapping of summary, steps, calibration"),
        ({"steps": []}, "steps is (): must name at least one step"),
        ({}, "steps: None: must be a list"),
        ({"steps": [{"rtn": {"scheme": "W8A8"}}], "sample": 3}, "sample: is not a known key here"),
        ({"steps": [{"round": {}}]}, "steps[0]: {'round': {}}: must be one of awq, depth_prune, gptq"),
        ({"steps": [{"rtn": {"scheme": "W8A8", "bits": 8}}]}, "steps[0].rtn.bits: is not a known key here"),
        ({"steps": [{"rtn": {"scheme": "W3A16"}}]}, "steps[0].rtn.scheme: 'W3A16'"),
        ({"steps": [{"gptq": {"scheme": "W4A16"}}]}, "group_size is None: must be given for W4A16"),
        ({"steps": [{"rtn": {"scheme": "W8A8", "group_size": 64}}]}, "group_size is 64: has no meaning for W8A8"),
        ({"steps": ["smoothquant"]}, "must be followed by a step that quantises"),
        ({"steps": [{"rtn": {"scheme": "W8A8"}}, {"depth_prune": {"keep": 0.5}}]}, "must not come after the model is"),
        ({"steps": [{"rtn": {"scheme": "W8A8"}}, {"rtn": {"scheme": "W8A8"}}]}, "must quantise at most once"),
        ({"steps": [{"depth_prune": {"keep": 1.5}}]}, "keep is 1.5: must be a share of the blocks between 0 and 1"),
        ({"steps": [{"rtn": {"scheme": "W8A8"}}], "calibration": {"samples": 0}}, "samples is 0: must be 1 or more"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(content: Any, message: str) -> None:
    with pytest.raises(CompressionError) as caught:
        parse_recipe("mine", content, "mine.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("mine.yaml")


def test_an_unknown_recipe_is_answered_with_those_there_are() -> None:
    with pytest.raises(CompressionError, match=r"there is no recipe int9: .*fp8-dynamic.*int8"):
        load_recipe("int9")


def test_a_group_size_that_divides_every_layer_is_taken() -> None:
    refuse_group_sizes(recipe({"gptq": {"scheme": "W4A16", "group_size": 64}}), {"q": 576, "down": 1536})


def test_a_group_size_that_does_not_divide_is_refused_with_the_sizes_that_would() -> None:
    grouped = recipe({"gptq": {"scheme": "W4A16", "group_size": 128}})
    with pytest.raises(CompressionError) as caught:
        refuse_group_sizes(grouped, {"layers.0.q_proj": 576, "layers.0.o_proj": 576, "layers.0.down_proj": 1536})
    assert str(caught.value) == (
        "recipe mine: group_size 128 does not divide the 576 input channels of layers.0.q_proj (and 1 more layers): "
        "64 or 32 or 16 would"
    )


def test_a_pruning_recipe_groups_nothing() -> None:
    pruned = recipe({"depth_prune": {"keep": 0.8}})
    refuse_group_sizes(pruned, {"q": 7})
    assert pruned.steps == (DepthPrune(keep=0.8),)

from __future__ import annotations

from typing import Any

import pytest
from economizer.config import parse
from economizer.engine.types import EngineSpec
from load.fleets import engine_words
from load.sizing import RAY_GIB, Requests, awake, gated, memory_gib, serve_file

SPEED = {"prefill_tokens_per_s": 500, "decode_tokens_per_s": {1: 30, 8: 180}, "source": "a test's"}
ARGS: dict[str, Any] = {
    "prices": {"core": {"usd_per_hour": 0.05, "source": "a test's"}},
    "ledger": {"keep_days": 2},
    "families": {"boiler": {"full": "bf16", "variants": {}}, "kettle": {"full": "bf16", "variants": {}}},
}


def variant(score: float, decode_j: float, low: float | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "hardware": "core",
        "context_tokens_max": 2048,
        "engine": {"model": "./m"},
        "ray": {"num_cpus": 1, "memory_gib": 3.5},
        "quality": {"score": score, "low": low, "source": "a test's"},
        "speed": SPEED,
        "energy": {"prefill_j_per_token": 0.005, "decode_j_per_token": {8: decode_j}, "source": "a test's"},
        **fields,
    }


ARGS["families"]["boiler"]["variants"] = {
    "bf16": variant(1.0, 0.02),
    "int8": variant(0.93, 0.017, low=0.91),
    "cut": variant(0.77, 0.012, low=0.75),
    "slow": variant(0.93, 0.2, routed=False),
}
ARGS["families"]["kettle"]["variants"] = {"bf16": variant(1.0, 0.02)}


def asking(floor: float) -> Requests:
    return Requests(prompt_tokens=300, output_tokens=50, floor=floor)


def made(floor: float, engines: int = 2, free_gib: float = 20.0) -> dict[str, Any]:
    content = serve_file(
        ARGS,
        family="boiler",
        requests=asking(floor),
        engines=engines,
        free_gib=free_gib,
        port=8001,
        ledger={"url": "sqlite:///x.db", "spool": "x"},
    )
    args: dict[str, Any] = content["applications"][0]["args"]
    return args


@pytest.mark.parametrize(("floor", "stays"), [(0.0, "cut"), (0.75, "cut"), (0.9, "int8"), (0.92, "bf16")])
def test_the_variant_of_least_joules_that_meets_the_highest_floor_stays_awake(floor: float, stays: str) -> None:
    assert awake(gated(parse(ARGS), "boiler"), asking(floor)) == stays
    replicas = {name: each["replicas"] for name, each in made(floor)["families"]["boiler"]["variants"].items()}
    assert replicas == {name: {"min": int(name == stays), "max": 2} for name in ("bf16", "cut", "int8")}


def test_a_floor_that_no_variant_is_known_to_meet_is_refused() -> None:
    variants = {name: each for name, each in gated(parse(ARGS), "boiler").items() if name != "bf16"}
    with pytest.raises(ValueError, match=r"quality_min is 0\.95: must be met by a variant .* \['cut', 'int8'\]"):
        awake(variants, asking(0.95))


def test_only_what_the_gate_promoted_is_in_the_fleet_and_it_is_a_good_configuration() -> None:
    args = made(0.9)
    assert sorted(args["families"]) == ["boiler"]
    assert sorted(parse(args).families["boiler"].variants) == ["bf16", "cut", "int8"]
    assert args["ledger"] == {"keep_days": 2, "url": "sqlite:///x.db", "spool": "x"}


def test_what_was_given_is_not_changed() -> None:
    made(0.9)
    assert sorted(ARGS["families"]) == ["boiler", "kettle"]
    assert ARGS["families"]["boiler"]["variants"]["int8"]["ray"]["memory_gib"] == 3.5


@pytest.mark.parametrize("engines", [1, 2, 3, 5])
def test_memory_holds_as_many_engines_as_the_control_has_and_not_one_more(engines: int) -> None:
    each = memory_gib(20.0, engines)
    for drift_gib in (-0.8, 0.0, 0.8):  # what is free changes until the fleet starts
        room = 20.0 + drift_gib - RAY_GIB
        assert engines * each < room < (engines + 1) * each


def test_an_engine_is_told_from_other_processes_by_the_fixed_words_of_its_command() -> None:
    assert engine_words(EngineSpec(model="./m")) == "vllm.entrypoints.openai.api_server"
    command = ("python", "engine.py", "--port", "{port}", "--fast")
    assert engine_words(EngineSpec(command=command)) == "python engine.py --port"

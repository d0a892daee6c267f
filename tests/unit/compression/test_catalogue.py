"""The catalogue as it is written, and as the gateway's own types read it."""

from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import yaml
from checkpoints import ENGINE, EVALUATION, MANIFEST, PROMOTED, UNMEASURED, interval
from economizer.published import Published
from economizer.variants.manifest import EngineMeasurement
from economizer_compression.catalogue import catalogued, catalogued_folders, entry, register, unregister
from economizer_compression.errors import CompressionError
from pydantic import TypeAdapter

ENTRY = {
    "engine": {"model": "./there"},
    "routed": True,
    "quality": {
        "score": 0.8437,
        "low": 0.8123,
        "source": "measured: agreement with the full model on held-out, 100 items, with its 95 % interval",
    },
    "speed": {
        "prefill_tokens_per_s": 1235.0,
        "decode_tokens_per_s": {1: 20.0, 16: 150.0},
        "overhead_s": 0.05,
        "cold_start_s": 31.25,
        "source": "measured: vLLM 0.32.0 on 2 cores, medians of 5 rounds",
    },
    "energy": {
        "prefill_j_per_token": 0.01,
        "decode_j_per_token": {1: 2.5, 16: 0.8},
        "source": "CPU seconds x 9 W per busy core; vLLM 0.32.0 on 2 cores",
    },
    "size_bytes": 1000,
    "kl_mean": 0.03123,
    "top1_agreement": 0.9375,
}


def test_an_entry_says_all_that_was_measured_to_four_digits() -> None:
    assert entry(MANIFEST, "./there") == ENTRY


def test_what_was_not_measured_is_left_out_and_such_a_variant_is_not_routed() -> None:
    assert entry(UNMEASURED, "./there") == {"engine": {"model": "./there"}, "routed": False, "size_bytes": 1000}


def test_the_full_model_is_routed_without_a_verdict_and_its_quality_is_one_by_definition() -> None:
    found = entry(replace(UNMEASURED, full=True), "m")
    assert (found["routed"], found["quality"]) == (True, {"score": 1.0, "source": "the full model, by definition"})


def test_a_variant_that_the_gate_refuses_is_not_routed() -> None:
    assert entry(replace(MANIFEST, verdict=replace(PROMOTED, promoted=False)), "m")["routed"] is False


def test_a_short_time_to_a_first_token_is_the_overhead_itself() -> None:
    assert (
        entry(replace(MANIFEST, engine=replace(ENGINE, ttft_s=interval(0.0123456))), "m")["speed"]["overhead_s"]
        == 0.01235
    )


@pytest.mark.parametrize(
    "engine",
    [
        replace(ENGINE, energy_method=None),
        replace(ENGINE, prefill_j_per_token=None),
        replace(ENGINE, decode_j_per_token=None),
        replace(ENGINE, decode_j_per_token={1: interval(0.0)}),
    ],
)
def test_energy_that_is_unknown_in_part_is_left_out(engine: EngineMeasurement) -> None:
    assert "energy" not in entry(replace(MANIFEST, engine=engine), "m")


def test_the_lower_end_of_quality_is_never_above_its_score() -> None:
    odd = replace(EVALUATION, quality=interval(0.9, 0.91, 0.95))
    assert entry(replace(MANIFEST, evaluation=odd), "m")["quality"]["low"] == 0.9


def test_a_registered_variant_is_read_by_the_gateway_and_found_again(tmp_path: Path) -> None:
    catalogue, view = tmp_path / "catalogue.yaml", tmp_path / "there"
    outside = replace(UNMEASURED, variant="other")
    register(catalogue, [(MANIFEST, view), (outside, Path("/models/other"))])
    assert catalogue.read_text().startswith("# Written by economizer-compress")
    content = yaml.safe_load(catalogue.read_text())
    assert content["families"]["tiny"]["variants"]["int8"] == ENTRY
    assert content["families"]["tiny"]["variants"]["other"]["engine"] == {"model": "/models/other"}
    published = TypeAdapter(Published).validate_python(content).families["tiny"].variants["int8"]
    assert published.speed is not None
    assert published.speed.decode_tokens_per_s == {1: 20.0, 16: 150.0}
    assert published.energy is not None
    assert catalogued(catalogue) == {("tiny", "int8"), ("tiny", "other")}
    assert catalogued_folders(catalogue) == {view, Path("/models/other")}
    assert catalogued_folders(catalogue, without={("tiny", "other")}) == {view}


def test_registering_again_replaces_the_variant_and_leaves_the_others(tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue.yaml"
    register(catalogue, [(MANIFEST, tmp_path / "old"), (replace(MANIFEST, variant="b"), tmp_path / "b")])
    register(catalogue, [(UNMEASURED, tmp_path / "new")])
    variants = yaml.safe_load(catalogue.read_text())["families"]["tiny"]["variants"]
    assert variants["int8"] == {"engine": {"model": "./new"}, "routed": False, "size_bytes": 1000}
    assert variants["b"]["routed"] is True


def test_the_order_of_registering_does_not_show(tmp_path: Path) -> None:
    both = [(MANIFEST, tmp_path / "x"), (replace(MANIFEST, family="a"), tmp_path / "y")]
    register(tmp_path / "one.yaml", both)
    register(tmp_path / "two.yaml", both[::-1])
    assert (tmp_path / "one.yaml").read_bytes() == (tmp_path / "two.yaml").read_bytes()


def test_an_unregistered_variant_is_gone_and_an_empty_family_with_it(tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue.yaml"
    register(catalogue, [(MANIFEST, tmp_path / "x"), (replace(MANIFEST, family="a"), tmp_path / "y")])
    unregister(catalogue, [("tiny", "int8"), ("nobody", "knows")])
    assert catalogued(catalogue) == {("a", "int8")}
    assert set(yaml.safe_load(catalogue.read_text())["families"]) == {"a"}


def test_many_who_register_at_once_all_get_in(tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue.yaml"
    names = [f"v{number}" for number in range(8)]
    threads = [
        Thread(target=register, args=(catalogue, [(replace(UNMEASURED, variant=name), tmp_path)])) for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert catalogued(catalogue) == {("tiny", name) for name in names}


@pytest.mark.parametrize("text", ["- a list", "families: [a]", "families: {a: {variants: {b: 1}}}", "x: {", ""])
def test_a_file_that_is_no_catalogue_is_refused_and_left_as_it_is(tmp_path: Path, text: str) -> None:
    catalogue = tmp_path / "catalogue.yaml"
    catalogue.write_text(text)
    with pytest.raises(CompressionError, match=r"is no catalogue|is not YAML"):
        register(catalogue, [(MANIFEST, tmp_path)])
    assert catalogue.read_text() == text


def test_where_there_is_no_catalogue_nothing_is_catalogued(tmp_path: Path) -> None:
    assert catalogued(tmp_path / "catalogue.yaml") == set()

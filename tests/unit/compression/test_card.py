"""The card's text; its plot needs matplotlib, which the compression environment alone has."""

from dataclasses import replace

import yaml
from checkpoints import ENGINE, MANIFEST, PROMOTED, UNMEASURED, interval
from economizer_compression.card import model_card
from economizer_compression.card_speed import against_full

FULL = replace(MANIFEST, variant="full", full=True)


def section(card: str, title: str) -> str:
    """The text below one heading, up to the next."""
    return card.split(f"## {title}\n\n", 1)[1].split("\n\n## ", 1)[0]


def test_the_front_matter_is_what_a_hub_reads() -> None:
    front = model_card(MANIFEST, [MANIFEST, FULL]).split("---\n")[1]
    assert yaml.safe_load(front) == {
        "license": "apache-2.0",
        "base_model": "made-up/tiny",
        "library_name": "transformers",
        "tags": ["economizer", "tiny", "int8"],
    }


def test_a_card_names_every_parameter_the_seed_and_the_calibration() -> None:
    made = section(model_card(MANIFEST, []), "How it was made")
    assert "| 1 | gptq | scheme=W8A8, dampening=0.01 |" in made
    assert "| seed | 7 |" in made
    assert f"| calibration | documents: 48 samples, 24,576 tokens, seed 7, SHA-256 {'c' * 64} |" in made
    assert "| versions | torch 2.13.0 |" in made


def test_quality_stands_over_all_and_by_slice_with_intervals() -> None:
    quality = section(model_card(MANIFEST, []), "Quality")
    assert "| quality (mean agreement of the slices) | 0.8437 [0.8123, 0.875] |" in quality
    assert (
        "| prose | text | 40 | 9,000 | 0.9375 [0.92, 0.95] | 0.03 [0.02, 0.04] | 1.05 [1.03, 1.07] |  |  |" in quality
    )
    assert r"| a\|b | choices | 60 | 5,000 | 0.75 [0.5, 1] |  |  | 0.45 (0.5) | 0.1 [0.08, 0.12] |" in quality
    assert "| choices right with one model alone | unknown |" in quality


def test_a_card_says_where_the_variant_is_slower_and_hungrier_than_the_full_model() -> None:
    speed = section(model_card(MANIFEST, [FULL]), "Speed and energy")
    assert "| prefill, tokens/s | 1,235 [1,200, 1,300] | 1,235 [1,200, 1,300] | 1.30x [1.28, 1.32] |" in speed
    assert "On this hardware it is slower than the full model: decode at batch 16 0.62x [0.60, 0.64]." in speed
    assert (
        "On this hardware it takes more energy than the full model: energy of decode at batch 16 1.40x [1.38, 1.42]."
    ) in speed


def test_a_faster_and_thriftier_variant_is_said_to_be_worse_in_nothing() -> None:
    better = replace(
        ENGINE, against_full={"ttft": interval(0.9), "decode@1": interval(1.1), "decode_j@1": interval(0.8)}
    )
    assert against_full(better) == [
        "On this hardware it is slower than the full model in nothing that was measured.",
        "",
        "On this hardware it takes more energy than the full model in nothing that was measured.",
    ]


def test_a_later_first_token_counts_as_slower_and_rounds_on_both_sides_are_told() -> None:
    later = replace(ENGINE, against_full={"ttft": interval(1.01, 0.98, 1.05)})
    assert against_full(later) == [
        "On this hardware it is slower than the full model: time to first token 1.01x [0.98, 1.05] "
        "(rounds lie on both sides of 1x where the brackets do).",
        "",
        "Whether it takes more energy than the full model is unknown: that was not measured.",
    ]


def test_the_full_models_figures_from_other_hardware_are_not_set_beside() -> None:
    elsewhere = replace(FULL, engine=replace(ENGINE, hardware="a GPU"))
    speed = section(model_card(MANIFEST, [elsewhere]), "Speed and energy")
    assert "| prefill, tokens/s | 1,235 [1,200, 1,300] | unknown | 1.30x [1.28, 1.32] |" in speed


def test_the_full_models_joules_by_another_meter_are_not_set_beside_and_its_speed_is() -> None:
    metered = replace(FULL, engine=replace(ENGINE, energy_method="RAPL"))
    speed = section(model_card(MANIFEST, [metered]), "Speed and energy")
    assert "| energy of decode at batch 16, J/token | 0.8 [0.8, 0.8] | unknown | 1.40x [1.38, 1.42] |" in speed
    assert "| prefill, tokens/s | 1,235 [1,200, 1,300] | 1,235 [1,200, 1,300] | 1.30x [1.28, 1.32] |" in speed
    assert "Energy: CPU seconds x 9 W per busy core." in speed


def test_what_is_unknown_is_said_as_unknown() -> None:
    card = model_card(replace(UNMEASURED, license=None), [])
    assert "license: unknown" in card
    assert section(card, "How it was made") == "It was taken over as it is: how it was made is unknown here."
    assert section(card, "Quality") == "Unknown: it was not evaluated."
    assert section(card, "Speed and energy") == "Unknown: it was not measured on an engine."
    assert section(card, "What the gate said") == "Unknown: it was not judged, so the router leaves it alone."
    assert section(card, "Losses by module") == "Unknown: the recipe reported none."
    assert section(card, "Limitations").splitlines()[:2] == [
        "- Its quality was not evaluated.",
        "- Speed, memory and energy were not measured.",
    ]


def test_a_card_says_what_the_gate_said() -> None:
    refused = replace(PROMOTED, promoted=False, reasons=("too slow",))
    assert section(model_card(replace(MANIFEST, verdict=refused), []), "What the gate said") == (
        "It is not promoted: only a request that names it gets it.\n\n- too slow\n\nMargins: better 0.02."
    )
    assert section(model_card(MANIFEST, []), "What the gate said").startswith(
        "It is promoted: the router may choose it"
    )


def test_the_ten_largest_losses_come_first_and_all_are_there() -> None:
    largest, _, rest = section(model_card(MANIFEST, []), "Losses by module").partition("<details>")
    shown = [line for line in largest.splitlines() if line.startswith("| model.")]
    assert shown == [f"| model.layers.{number}.mlp | {number} |" for number in range(11, 1, -1)]
    assert sum(line.startswith("| model.") for line in rest.splitlines()) == 12


def test_kinds_of_tasks_that_were_not_evaluated_are_named() -> None:
    limitations = section(model_card(MANIFEST, []), "Limitations")
    assert "- Not evaluated: what the full model itself answers." in limitations
    assert "- Whether the engine computes what transformers computes was not checked." in limitations


def test_a_card_says_how_to_serve_and_pin_the_variant() -> None:
    serving = section(model_card(MANIFEST, []), "How to serve it")
    assert '"model": "tiny@int8"' in serving
    assert "vllm serve . --max-num-seqs 16" in serving

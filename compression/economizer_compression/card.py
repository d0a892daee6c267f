"""A variant's card: ``README.md`` in a model hub's form, all of it from manifests; what is unknown is said so."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from economizer.variants.manifest import EngineMeasurement, Making, Manifest, SliceScore

from economizer_compression.card_speed import speed_and_energy
from economizer_compression.markdown import UNKNOWN, cell_text, interval, number, table
from economizer_compression.whole_files import write_whole

FILE_NAME = "README.md"
PLOT_NAME = "family.png"
LARGEST_LOSSES = 10


def write_card(folder: Path, manifest: Manifest, family: Sequence[Manifest]) -> None:
    """Writes the card and the family's plot beside a checkpoint; `family` are all manifests to compare with."""
    from economizer_compression.family_plot import plot_family  # matplotlib is in the compression environment alone

    plot_family(family, folder / PLOT_NAME)
    write_whole(folder / FILE_NAME, [model_card(manifest, family).encode()])


def model_card(manifest: Manifest, family: Sequence[Manifest]) -> str:
    """The card as Markdown with the hub's YAML in front. `family` gives the full model's figures. Pure."""
    sections = [
        _front_matter(manifest),
        _what_it_is(manifest),
        _how_it_was_made(manifest),
        _quality(manifest),
        speed_and_energy(manifest, next((other for other in family if other.full), None)),
        _verdict(manifest),
        _module_losses(manifest.making.module_losses if manifest.making else {}),
        ["## Limitations", "", *(f"- {line}" for line in _limitations(manifest))],
        _serving(manifest),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _front_matter(manifest: Manifest) -> list[str]:
    recipe = [manifest.making.recipe] if manifest.making else []
    content = {
        "license": manifest.license or UNKNOWN,
        "base_model": manifest.origin.name,
        "library_name": "transformers",
        "tags": list(dict.fromkeys(["economizer", manifest.family, manifest.variant, *recipe])),
    }
    return ["---", yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip(), "---"]


def _what_it_is(manifest: Manifest) -> list[str]:
    what = "the full model of its family" if manifest.full else f"a variant of {manifest.origin.name}"
    return [
        f"# {manifest.family}@{manifest.variant}",
        "",
        f"This is {what}. Every figure below was measured by `economizer-compress`; 95 % intervals are in brackets.",
        "",
        *table(
            ("what", "value"),
            [
                ("origin", manifest.origin.name),
                ("SHA-256 over the origin's files", manifest.origin.sha256),
                ("architecture", manifest.origin.architecture),
                ("licence", manifest.license or UNKNOWN),
                ("licence of the origin", manifest.origin.license or UNKNOWN),
                ("weights' format", manifest.quantization or "not quantized"),
                ("size of the weights", f"{manifest.size_bytes:,} bytes" if manifest.size_bytes else UNKNOWN),
            ],
        ),
    ]


def _how_it_was_made(manifest: Manifest) -> list[str]:
    making = manifest.making
    if making is None:
        return ["## How it was made", "", "It was taken over as it is: how it was made is unknown here."]
    calibration = making.calibration
    seen = (
        "none: the recipe looks at no text"
        if calibration is None
        else f"{calibration.source}: {calibration.samples} samples, {calibration.tokens:,} tokens, "
        f"seed {calibration.seed}, SHA-256 {calibration.sha256}"
    )
    facts = [
        ("recipe", making.recipe),
        ("seed", str(making.seed)),
        ("calibration", seen),
        ("made at", making.made_at),
        ("hardware", making.hardware),
        ("CPU time", f"{number(making.cpu_seconds)} s"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(making.versions.items()))),
    ]
    steps = [
        (str(number), step.name, _parameters(step.parameters)) for number, step in enumerate(making.steps, start=1)
    ]
    return [
        "## How it was made",
        "",
        *table(("what", "value"), facts),
        "",
        *table(("step", "name", "parameters"), steps),
        *_candidates(making),
    ]


def _candidates(making: Making) -> list[str]:
    if not making.candidates:
        return []
    rows = [
        (_parameters(one.parameters), number(one.kl_mean), "chosen" if one.chosen else "") for one in making.candidates
    ]
    note = "These settings were tried, and compared by their mean KL from the input model on held-back samples:"
    return ["", note, "", *table(("setting", "KL", ""), rows)]


def _parameters(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in parameters.items()) or "none"


def _quality(manifest: Manifest) -> list[str]:
    evaluation = manifest.evaluation
    if evaluation is None:
        own = "It is 1 by definition: this is the full model." if manifest.full else "Unknown: it was not evaluated."
        return ["## Quality", "", own]
    rows = [
        ("quality (mean agreement of the slices)", interval(evaluation.quality)),
        ("same most probable token", interval(evaluation.top1_agreement)),
        ("KL from the full model, mean, per token", interval(evaluation.kl_mean)),
        ("KL from the full model, 99th percentile", number(evaluation.kl_p99)),
        ("perplexity, times the full model's", interval(evaluation.perplexity_ratio)),
        ("choices right with one model alone", interval(evaluation.flips)),
        ("accuracy minus the full model's", interval(evaluation.accuracy_difference)),
    ]
    return [
        "## Quality",
        "",
        f"Against the full model on the suite `{evaluation.suite}` (SHA-256 {evaluation.suite_sha256}, "
        f"seed {evaluation.seed}).",
        "",
        *table(("over all", "value"), rows),
        "",
        *table(
            (
                "slice",
                "kind",
                "items",
                "tokens",
                "agreement",
                "KL mean",
                "perplexity ratio",
                "accuracy (full)",
                "flips",
            ),
            [_slice(part) for part in evaluation.slices],
        ),
    ]


def _slice(part: SliceScore) -> tuple[str, ...]:
    accuracy = "" if part.accuracy is None else f"{number(part.accuracy)} ({number(part.accuracy_full)})"
    measured = (part.kl_mean, part.perplexity_ratio)
    kl, perplexity = ("" if value is None else interval(value) for value in measured)
    flips = "" if part.flips is None else interval(part.flips)
    counts = (str(part.items), f"{part.tokens:,}")
    return (part.slice, part.kind, *counts, interval(part.agreement), kl, perplexity, accuracy, flips)


def _verdict(manifest: Manifest) -> list[str]:
    verdict = manifest.verdict
    if verdict is None:
        said = (
            "It is the full model." if manifest.full else "Unknown: it was not judged, so the router leaves it alone."
        )
        return ["## What the gate said", "", said]
    said = "It is promoted: the router may choose it by itself." if verdict.promoted else "It is not promoted: only a "
    said += "" if verdict.promoted else "request that names it gets it."
    margins = ", ".join(f"{name} {number(value)}" for name, value in sorted(verdict.margins.items()))
    return [
        "## What the gate said",
        "",
        said,
        "",
        *(f"- {cell_text(reason)}" for reason in verdict.reasons),
        "",
        f"Margins: {margins or 'none'}.",
    ]


def _module_losses(losses: Mapping[str, float]) -> list[str]:
    if not losses:
        return ["## Losses by module", "", "Unknown: the recipe reported none."]
    by_loss = sorted(losses, key=lambda name: (-losses[name], name))
    shown = by_loss[:LARGEST_LOSSES]
    return [
        "## Losses by module",
        "",
        f"What each module's own compression reported; the {len(shown)} largest of {len(losses)}:",
        "",
        *table(("module", "loss"), [(name, number(losses[name])) for name in shown]),
        "",
        f"<details><summary>All {len(losses)} in the order of the work</summary>",
        "",
        *table(("module", "loss"), [(name, number(loss)) for name, loss in losses.items()]),
        "",
        "</details>",
    ]


def _limitations(manifest: Manifest) -> list[str]:
    """What was not measured, and how far that which was reaches."""
    evaluation, measured = manifest.evaluation, manifest.engine
    lines = []
    if evaluation is None:
        lines.append("Its quality was not evaluated." if not manifest.full else "It was compared with no other model.")
    else:
        kinds = {part.kind for part in evaluation.slices}
        missing = [what for kind, what in _KINDS.items() if kind not in kinds]
        lines += [f"Not evaluated: {what}." for what in missing]
        lines.append(
            f"{evaluation.items_excluded} items were left out, for they share {evaluation.overlap_ngram}-grams with "
            "calibration or training text."
        )
        lines.append("Quality is agreement with the full model, whose own mistakes count as right.")
    if measured is None:
        lines.append("Speed, memory and energy were not measured.")
    else:
        lines.append(
            f"Speed and energy hold for {cell_text(measured.hardware)} and {cell_text(measured.engine)} alone."
        )
        if measured.decode_j_per_token is None:
            lines.append("Energy was not measured.")
        lines.append(_beside_transformers(measured))
    lines.append("Safety, bias, long contexts, tool calls and languages that no slice names were not evaluated.")
    return lines


_KINDS = {
    "text": "teacher-forced documents",
    "answers": "what the full model itself answers",
    "choices": "multiple-choice tasks",
}


def _beside_transformers(measured: EngineMeasurement) -> str:
    mean, largest, shift = measured.logprob_difference_mean, measured.logprob_difference_max, measured.logprob_shift
    if mean is None or largest is None or shift is None:
        return "Whether the engine computes what transformers computes was not checked."
    return (
        "The engine's log probabilities differ from transformers' on the same checkpoint by "
        f"{number(mean)} in the mean and {number(largest)} at most; their means lie {shift:+.4f} apart."
    )


def _serving(manifest: Manifest) -> list[str]:
    arguments = " ".join(manifest.engine.engine_args) if manifest.engine else ""
    return [
        "## How to serve it",
        "",
        "By Economizer: `economizer-compress publish` puts it into a catalogue that the gateway's configuration names. "
        f'A request pins it by `"model": "{manifest.family}@{manifest.variant}"`.',
        "",
        "By vLLM alone, in this folder:",
        "",
        "```sh",
        f"vllm serve . {arguments}".rstrip(),
        "```",
        "",
        f"![Quality against energy in the family]({PLOT_NAME})",
    ]

"""The card's part on speed and energy, and where a variant is worse than the full model. Pure."""

from collections.abc import Mapping

from economizer.variants.manifest import EngineMeasurement, Interval, Manifest

from economizer_compression.markdown import UNKNOWN, interval, number, table


def speed_and_energy(manifest: Manifest, full: Manifest | None) -> list[str]:
    """The lines of the section; `full` is the family's full model, whose figures stand beside."""
    measured = manifest.engine
    if measured is None:
        return ["## Speed and energy", "", "Unknown: it was not measured on an engine."]
    beside = full.engine if full is not None else None
    if beside is not None and (beside.hardware, beside.engine) != (measured.hardware, measured.engine):
        beside = None  # figures of another machine or engine compare nothing
    theirs = {} if beside is None else _figures(beside)
    if beside is not None and beside.energy_method != measured.energy_method:
        theirs = {name: figure for name, figure in theirs.items() if not _is_energy(name)}
    rows = [
        (
            _label(name),
            interval(value),
            interval(theirs.get(name)),
            _ratio(measured.against_full.get(name)),
        )
        for name, value in _figures(measured).items()
    ]
    cold_start_s, memory_bytes = (None, None) if beside is None else (beside.cold_start_s, beside.memory_bytes)
    rows += [
        ("cold start, s", number(measured.cold_start_s), number(cold_start_s), ""),
        ("memory, bytes", number(measured.memory_bytes), number(memory_bytes), ""),
    ]
    return [
        "## Speed and energy",
        "",
        f"Measured with {measured.engine} on {measured.hardware}: medians of {measured.rounds} rounds, the smallest "
        f"and the largest in brackets. Engine arguments: `{' '.join(measured.engine_args) or 'none'}`. Energy: "
        f"{measured.energy_method or 'unknown, it was not measured'}.",
        "",
        *table(("figure", "this variant", "full model", "this / full, in turns"), rows),
        *([] if manifest.full else ["", *against_full(measured)]),
    ]


def against_full(measured: EngineMeasurement) -> list[str]:
    """Sentences, a paragraph each, that say where it is slower or hungrier than the full model on this hardware."""
    if not measured.against_full:
        return [
            "It was not measured beside the full model: whether it is faster here, or takes less energy, is unknown."
        ]
    energy = {name: ratio for name, ratio in measured.against_full.items() if _is_energy(name)}
    rest = {name: ratio for name, ratio in measured.against_full.items() if name not in energy}
    slower = {name: ratio for name, ratio in rest.items() if (ratio.value > 1 if _is_time(name) else ratio.value < 1)}
    hungrier = {name: ratio for name, ratio in energy.items() if ratio.value > 1}
    paragraphs = [
        _sentence("it is slower than the full model", slower)
        if slower
        else "On this hardware it is slower than the full model in nothing that was measured."
    ]
    if not energy:
        paragraphs.append("Whether it takes more energy than the full model is unknown: that was not measured.")
    elif hungrier:
        paragraphs.append(_sentence("it takes more energy than the full model", hungrier))
    else:
        paragraphs.append("On this hardware it takes more energy than the full model in nothing that was measured.")
    return [line for paragraph in paragraphs for line in (paragraph, "")][:-1]


def _sentence(claim: str, ratios: Mapping[str, Interval]) -> str:
    listed = ", ".join(f"{_label(name).partition(',')[0]} {_ratio(ratio)}" for name, ratio in ratios.items())
    noisy = [name for name, ratio in ratios.items() if ratio.low <= 1 <= ratio.high]
    note = " (rounds lie on both sides of 1x where the brackets do)" if noisy else ""
    return f"On this hardware {claim}: {listed}{note}."


def _figures(measured: EngineMeasurement) -> dict[str, Interval]:
    """The figures by the names that the paired ratios have."""
    found = {"ttft": measured.ttft_s, "prefill": measured.prefill_tokens_per_s}
    found |= {f"decode@{batch}": value for batch, value in sorted(measured.decode_tokens_per_s.items())}
    found |= {f"tpot@{batch}": value for batch, value in sorted(measured.tpot_s.items())}
    if measured.prefill_j_per_token is not None:
        found["prefill_j"] = measured.prefill_j_per_token
    found |= {f"decode_j@{batch}": value for batch, value in sorted((measured.decode_j_per_token or {}).items())}
    return found


def _label(name: str) -> str:
    figure, _, batch = name.partition("@")
    labels = {
        "ttft": ("time to first token", "s"),
        "tpot": ("time per output token", "s"),
        "prefill": ("prefill", "tokens/s"),
        "decode": ("decode", "tokens/s"),
        "prefill_j": ("energy of prefill", "J/token"),
        "decode_j": ("energy of decode", "J/token"),
    }
    what, unit = labels.get(figure, (figure, UNKNOWN))
    return f"{what} at batch {batch}, {unit}" if batch else f"{what}, {unit}"


def _ratio(ratio: Interval | None) -> str:
    if ratio is None:
        return UNKNOWN
    return f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def _is_energy(name: str) -> bool:
    return name.partition("@")[0].endswith("_j")


def _is_time(name: str) -> bool:
    return name.partition("@")[0] in ("ttft", "tpot")

"""The catalogue: a YAML file that a gateway's configuration names, with each published variant and what is known of it.

Every figure in it comes from a manifest; what a manifest does not know is left out.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from economizer.variants.manifest import EngineMeasurement, Evaluation, Interval, Manifest

from economizer_compression.errors import CompressionError
from economizer_compression.whole_files import locked, write_whole

FILE_NAME = "catalogue.yaml"
HEADER = """\
# Written by economizer-compress, which replaces what it says of a variant whenever that is published again.
# A gateway whose configuration names this file lays it over what that declares: a measured card counts more.
"""
# The manifest's time to a first token includes its prompt's prefill, which the router adds by itself. How long that
# prompt was is not recorded, so what is left for the empty prompt is bounded by what an idle engine takes at most.
OVERHEAD_S_MAX = 0.05

_DIGITS = 4


def entry(manifest: Manifest, model: str) -> dict[str, Any]:
    """What the catalogue says of one variant that an engine loads from `model`; what is unknown is left out. Pure."""
    measured, evaluation = manifest.engine, manifest.evaluation
    known = {
        "engine": {"model": model},
        "routed": manifest.full or (manifest.verdict is not None and manifest.verdict.promoted),
        "quality": _quality(manifest),
        "speed": None if measured is None else _speed(measured),
        "energy": None if measured is None else _energy(measured),
        "size_bytes": manifest.size_bytes or None,
        "kl_mean": None if evaluation is None else _value(evaluation.kl_mean),
        "top1_agreement": None if evaluation is None else _value(evaluation.top1_agreement),
    }
    return {key: value for key, value in known.items() if value is not None}


def _quality(manifest: Manifest) -> dict[str, Any] | None:
    if manifest.full:
        return {"score": 1.0, "source": "the full model, by definition"}
    if manifest.evaluation is None:
        return None
    quality = manifest.evaluation.quality
    low = min(quality.low, quality.value)
    return {"score": _figure(quality.value), "low": _figure(low), "source": _suite(manifest.evaluation)}


def _suite(evaluation: Evaluation) -> str:
    items = sum(part.items for part in evaluation.slices)
    return f"measured: agreement with the full model on {evaluation.suite}, {items} items, with its 95 % interval"


def _speed(measured: EngineMeasurement) -> dict[str, Any]:
    return {
        "prefill_tokens_per_s": _figure(measured.prefill_tokens_per_s.value),
        "decode_tokens_per_s": _figures(measured.decode_tokens_per_s),
        "overhead_s": _figure(min(max(measured.ttft_s.value, 0.0), OVERHEAD_S_MAX)),
        "cold_start_s": _figure(measured.cold_start_s),
        "source": f"measured: {measured.engine} on {measured.hardware}, medians of {measured.rounds} rounds",
    }


def _energy(measured: EngineMeasurement) -> dict[str, Any] | None:
    """The joules per token; None where a part is unknown, or not above 0: so small a figure was not measured."""
    prefill, decode = measured.prefill_j_per_token, measured.decode_j_per_token
    if prefill is None or not decode or measured.energy_method is None:
        return None
    if min(prefill.value, *(interval.value for interval in decode.values())) <= 0:
        return None
    return {
        "prefill_j_per_token": _figure(prefill.value),
        "decode_j_per_token": _figures(decode),
        "source": f"{measured.energy_method}; {measured.engine} on {measured.hardware}",
    }


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else _figure(interval.value)


def _figures(by_batch: Mapping[int, Interval]) -> dict[int, float]:
    return {batch: _figure(by_batch[batch].value) for batch in sorted(by_batch)}


def _figure(value: float) -> float:
    """The value to four significant digits: no measurement here is known better."""
    return float(f"{value:.{_DIGITS}g}")


def register(catalogue: Path, checkpoints: Iterable[tuple[Manifest, Path]]) -> None:
    """Writes into the catalogue what is known of these variants and where an engine finds them; all others stay.

    Several may register at once. Raises CompressionError for a file that is no catalogue.
    """
    with _changed(catalogue) as families:
        for manifest, folder in checkpoints:
            variants = families.setdefault(manifest.family, {}).setdefault("variants", {})
            variants[manifest.variant] = entry(manifest, _reference(catalogue, folder))


def unregister(catalogue: Path, variants: Iterable[tuple[str, str]]) -> None:
    """Takes variants, each a (family, variant), out of the catalogue; a family without any goes too."""
    with _changed(catalogue) as families:
        for family, variant in variants:
            there = families.get(family, {}).get("variants", {})
            there.pop(variant, None)
            if not there:
                families.pop(family, None)


def catalogued(catalogue: Path) -> set[tuple[str, str]]:
    """The (family, variant) pairs that the catalogue names; none where there is no file."""
    return {(family, variant) for family, value in _read(catalogue).items() for variant in value.get("variants", {})}


def catalogued_folders(catalogue: Path, *, without: Collection[tuple[str, str]] = ()) -> set[Path]:
    """The folders that the catalogue's engines load, as absolute paths, less those of the variants in `without`."""
    return {
        catalogue.absolute().parent / entry["engine"]["model"]
        for family, value in _read(catalogue).items()
        for variant, entry in value.get("variants", {}).items()
        if "engine" in entry and (family, variant) not in without
    }


def _reference(catalogue: Path, folder: Path) -> str:
    """The folder as the catalogue names it: from where the catalogue lies, so that both may move together."""
    base, there = catalogue.resolve().parent, folder.resolve()
    return f"./{there.relative_to(base)}" if there.is_relative_to(base) else str(there)


@contextmanager
def _changed(catalogue: Path) -> Iterator[dict[str, Any]]:
    """The catalogue's families, to be changed in place; they are written when the block succeeds."""
    with locked(catalogue.with_name(f".{catalogue.name}.lock")):
        families = _read(catalogue)
        yield families
        ordered = {
            family: {**value, "variants": dict(sorted(value.get("variants", {}).items()))}
            for family, value in sorted(families.items())
        }
        text = yaml.safe_dump({"families": ordered}, sort_keys=False, allow_unicode=True, width=120)
        write_whole(catalogue, [HEADER.encode(), text.encode()])


def _read(catalogue: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(catalogue.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CompressionError(f"{catalogue} is not YAML: {' '.join(str(error).split())}") from None
    families = content.get("families") if isinstance(content, dict) else content
    if not isinstance(families, dict) or not all(_is_family(family) for family in families.values()):
        raise CompressionError(
            f"{catalogue} is no catalogue: it must hold families, in each variants, and in each of these engine.model"
        )
    return families


def _is_family(family: Any) -> bool:
    variants = family.get("variants", {}) if isinstance(family, dict) else None
    return isinstance(variants, dict) and all(_is_variant(variant) for variant in variants.values())


def _is_variant(variant: Any) -> bool:
    engine = variant.get("engine", {"model": ""}) if isinstance(variant, dict) else None
    return isinstance(engine, dict) and isinstance(engine.get("model"), str)

"""What was measured at different times, made to compare: the full model's figures times each variant's paired ratios.

A shared machine is faster in one minute than in another by more than variants differ. What was measured in turns with
the full model compares; figures of two variants, measured an hour apart, do not. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from economizer.variants.manifest import EngineMeasurement, Interval, Manifest

_ALIKE = ("hardware", "engine", "engine_args", "energy_method")


def beside_full(manifest: Manifest, full: Manifest | None) -> Manifest:
    """The manifest with its engine's rates and joules as the full model's own times the paired ratios.

    Unchanged for the full model, and where either was not measured, on the same hardware and engine by the same meter.
    """
    if manifest.full or full is None or manifest.engine is None or full.engine is None:
        return manifest
    ours, theirs = manifest.engine, full.engine
    alike = all(getattr(ours, name) == getattr(theirs, name) for name in _ALIKE)
    if not alike or not ours.against_full:
        return manifest
    return replace(manifest, engine=_scaled(ours, theirs))


def energy_methods(manifests: Iterable[Manifest]) -> dict[str, list[str]]:
    """The variants whose joules were measured, by how they were; what is under two methods does not compare."""
    found: dict[str, list[str]] = {}
    for manifest in manifests:
        if manifest.engine is not None and manifest.engine.energy_method is not None:
            found.setdefault(manifest.engine.energy_method, []).append(f"{manifest.family}@{manifest.variant}")
    return {method: sorted(names) for method, names in sorted(found.items())}


def methods_told(methods: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines that say which joules do not compare; none where one method measured all."""
    if len(methods) < 2:
        return []
    listed = [f"  {', '.join(names)}: {method}" for method, names in methods.items()]
    return [f"joules were measured in {len(methods)} ways, which do not compare: measure all alike", *listed]


def _scaled(ours: EngineMeasurement, theirs: EngineMeasurement) -> EngineMeasurement:
    def scaled(figure: Interval, full: Interval | None, key: str) -> Interval:
        ratio = ours.against_full.get(key)
        if ratio is None or full is None:
            return figure
        ends = (full.value * ratio.low, full.value * ratio.high)
        return Interval(value=full.value * ratio.value, low=ends[0], high=ends[1])

    prefill_j, decode_j = ours.prefill_j_per_token, ours.decode_j_per_token
    full_decode_j = theirs.decode_j_per_token or {}
    return replace(
        ours,
        prefill_tokens_per_s=scaled(ours.prefill_tokens_per_s, theirs.prefill_tokens_per_s, "prefill"),
        decode_tokens_per_s={
            batch: scaled(figure, theirs.decode_tokens_per_s.get(batch), f"decode@{batch}")
            for batch, figure in ours.decode_tokens_per_s.items()
        },
        ttft_s=scaled(ours.ttft_s, theirs.ttft_s, "ttft"),
        prefill_j_per_token=prefill_j and scaled(prefill_j, theirs.prefill_j_per_token, "prefill_j"),
        decode_j_per_token=decode_j
        and {
            batch: scaled(figure, full_decode_j.get(batch), f"decode_j@{batch}") for batch, figure in decode_j.items()
        },
    )

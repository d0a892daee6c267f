"""Small checkpoints and manifests that the unit tests of compression share, made without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from economizer.variants.manifest import (
    CalibrationSet,
    EngineMeasurement,
    Evaluation,
    FileDigest,
    Interval,
    Making,
    Manifest,
    Origin,
    SliceScore,
    Step,
    Verdict,
)
from economizer_compression.manifests import digest_folder, write_manifest

# A tensor as (dtype, shape, bytes).
Raw = tuple[str, tuple[int, ...], bytes]

ORIGIN = Origin(name="made-up/tiny", sha256="0" * 64, architecture="LlamaForCausalLM", license="apache-2.0")
EMBEDDING: Raw = ("BF16", (2, 2), b"embedded")
NORM: Raw = ("F32", (1,), b"norm")
FULL: Mapping[str, Raw] = {
    "lm_head.weight": EMBEDDING,
    "model.layers.0.mlp.down_proj.weight": ("BF16", (2, 4), bytes(range(16))),
    "model.norm.weight": NORM,
}
INT8: Mapping[str, Raw] = {
    "lm_head.weight": EMBEDDING,
    "model.layers.0.mlp.down_proj.weight": ("I8", (2, 4), bytes(range(8))),
    "model.layers.0.mlp.down_proj.weight_scale": ("F32", (1,), b"scal"),
    "model.norm.weight": NORM,
}


def safetensors(tensors: Mapping[str, Raw]) -> bytes:
    """A safetensors file with the tensors in the order given."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def checkpoint(
    folder: Path,
    tensors: Mapping[str, Raw] = FULL,
    *,
    variant: str = "full",
    family: str = "tiny",
    files: Mapping[str, bytes] | None = None,
) -> Manifest:
    """Writes a checkpoint of one weight file with its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content)
    return manifest_of(folder, variant=variant, family=family)


def manifest_of(folder: Path, *, variant: str = "full", family: str = "tiny") -> Manifest:
    """Writes the manifest of what lies in the folder."""
    manifest = Manifest(
        family=family,
        variant=variant,
        full=variant == "full",
        origin=ORIGIN,
        license="apache-2.0",
        quantization=None,
        files=digest_folder(folder),
    )
    write_manifest(folder, manifest)
    return manifest


def interval(value: float, low: float | None = None, high: float | None = None) -> Interval:
    """An interval, without width where no ends are given."""
    return Interval(value=value, low=value if low is None else low, high=value if high is None else high)


SCORES = (
    SliceScore(
        slice="prose",
        kind="text",
        items=40,
        tokens=9000,
        agreement=interval(0.9375, 0.92, 0.95),
        kl_mean=interval(0.03, 0.02, 0.04),
        perplexity_full=12.0,
        perplexity_ratio=interval(1.05, 1.03, 1.07),
    ),
    SliceScore(
        slice="a|b",
        kind="choices",
        items=60,
        tokens=5000,
        agreement=interval(0.75, 0.5, 1.0),
        accuracy_full=0.5,
        accuracy=0.45,
        accuracy_difference=interval(-0.05, -0.08, -0.02),
        flips=interval(0.1, 0.08, 0.12),
    ),
)
EVALUATION = Evaluation(
    suite="held-out",
    suite_sha256="a" * 64,
    reference_sha256="b" * 64,
    seed=1,
    quality=interval(0.843749, 0.8123456, 0.875),
    top1_agreement=interval(0.9375),
    kl_mean=interval(0.0312345, 0.03, 0.0325),
    kl_p99=0.4,
    perplexity_ratio=interval(1.05),
    slices=SCORES,
    items_excluded=3,
    overlap_ngram=8,
)
ENGINE = EngineMeasurement(
    engine="vLLM 0.32.0",
    engine_args=("--max-num-seqs", "16"),
    hardware="2 cores",
    rounds=5,
    prefill_tokens_per_s=interval(1234.567, 1200.0, 1300.0),
    decode_tokens_per_s={16: interval(150.04, 146.0, 154.0), 1: interval(20.0, 19.0, 21.0)},
    tpot_s={1: interval(0.05), 16: interval(0.1)},
    ttft_s=interval(0.125),
    cold_start_s=31.25,
    memory_bytes=1_500_000_000,
    prefill_j_per_token=interval(0.01),
    decode_j_per_token={1: interval(2.5), 16: interval(0.8)},
    energy_method="CPU seconds x 9 W per busy core",
    against_full={
        "prefill": interval(1.3, 1.28, 1.32),
        "decode@16": interval(0.62, 0.6, 0.64),
        "decode_j@16": interval(1.4, 1.38, 1.42),
    },
)
MAKING = Making(
    recipe="int8",
    steps=(Step(name="gptq", parameters={"scheme": "W8A8", "dampening": 0.01}),),
    seed=7,
    calibration=CalibrationSet(source="documents", samples=48, tokens=24576, seed=7, sha256="c" * 64),
    module_losses={f"model.layers.{number}.mlp": float(number) for number in range(12)},
    cpu_seconds=1234.5,
    versions={"torch": "2.13.0"},
    hardware="2 cores",
    made_at="2026-01-01T00:00:00+00:00",
)
PROMOTED = Verdict(
    promoted=True, reasons=("joules per output token: 0.80 of the full model's",), margins={"better": 0.02}
)
MANIFEST = Manifest(
    family="tiny",
    variant="int8",
    origin=ORIGIN,
    license="apache-2.0",
    quantization="compressed-tensors",
    making=MAKING,
    evaluation=EVALUATION,
    engine=ENGINE,
    verdict=PROMOTED,
    files={
        "config.json": FileDigest(sha256="d" * 64, size_bytes=10),
        "model.safetensors": FileDigest(sha256="e" * 64, size_bytes=1000),
    },
)
UNMEASURED = replace(MANIFEST, making=None, evaluation=None, engine=None, verdict=None)

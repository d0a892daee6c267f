"""``economizer-compress evaluate``: what is measured of a checkpoint goes into its manifest."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from economizer.variants.manifest import FILE_NAME, EngineMeasurement, Manifest

from economizer_compression.errors import CompressionError
from economizer_compression.evaluate import evaluate_folder
from economizer_compression.family import EngineFile, load_engine, located
from economizer_compression.loading import load_model
from economizer_compression.manifests import write_manifest
from economizer_compression.metering import energy_method, meter_of
from economizer_compression.promotion import whole_manifest
from economizer_compression.serving import Engine, EngineSettings
from economizer_compression.speed import LogprobReference, MeasurePlan, measure_pair
from economizer_compression.suite import load_suite
from economizer_compression.texts import DOCUMENTS, documents

_TEXTS = 4
_TEXT_TOKENS = 192
_PREFILL_S = 3.0
_DECODE_S = 1.2

Say = Callable[[str], None]


def measure_quality(folder: Path, reference: Path, *, suite: str, data: Path | None, say: Say) -> None:
    """Scores the variant in ``folder`` against the full model and writes the evaluation into its manifest.

    The full model's own pass is kept in a folder beside the variant, for the next one.
    """
    manifest = whole_manifest(folder)
    _full_manifest(reference)
    evaluation = evaluate_folder(
        folder, reference, load_suite(suite), data=data, work=folder.parent / "reference", seed=0, load=load_model
    )
    write_manifest(folder, replace(manifest, evaluation=evaluation, verdict=None))
    quality = evaluation.quality
    say(f"{manifest.variant}: quality {quality.value:.3f} ({quality.low:.3f} to {quality.high:.3f})")


def measure_speed(folders: Sequence[Path], reference: Path, *, engine: str, say: Say) -> dict[Path, str]:
    """Measures each variant on a real engine in turns with the full model's, and writes it into its manifest.

    The first one's rounds go into the full model's manifest, too, where it has none. Returns why for each folder that
    no engine served.
    """
    file = load_engine(engine)
    settings = _settings(file)
    plan = MeasurePlan(rounds=file.rounds, batches=file.batches, prefill_s=_PREFILL_S, decode_s=_DECODE_S)
    failures: dict[Path, str] = {}
    reference_manifest = _full_manifest(reference)
    full_expected = _expected(reference)
    with Engine(reference, settings, name="full", progress=say) as full:
        for folder in folders:
            manifest = whole_manifest(folder)
            try:
                expected = _expected(folder)
                with Engine(folder, settings, name=manifest.variant, progress=say) as variant:
                    measured, full_measured = measure_pair(
                        variant, full, plan, reference=expected, full_reference=full_expected, progress=say
                    )
            except CompressionError as error:
                failures[folder] = str(error)
                say(f"{manifest.variant}: {error}")
                continue
            write_manifest(folder, replace(manifest, engine=measured, verdict=None))
            if reference_manifest is not None and not is_current(reference_manifest.engine, file):
                reference_manifest = replace(reference_manifest, engine=full_measured)
                write_manifest(reference, reference_manifest)
    return failures


def _full_manifest(reference: Path) -> Manifest | None:
    """The reference's manifest, where it has one; raises CompressionError when that is of a variant."""
    if not (reference / FILE_NAME).is_file():
        return None
    manifest = whole_manifest(reference)
    if not manifest.full:
        name = f"{manifest.family}@{manifest.variant}"
        raise CompressionError(
            f"--reference {reference} is {name}: must be the full model, which variants are held against"
        )
    return manifest


def is_current(engine: EngineMeasurement | None, file: EngineFile) -> bool:
    """Whether a measurement is by an engine and a meter as they would be now: arguments, batches, rounds, method."""
    if engine is None or engine.engine_args != file.args or set(engine.decode_tokens_per_s) != set(file.batches):
        return False
    with closing(meter_of(_settings(file))) as meter:
        return engine.rounds == file.rounds and engine.energy_method == energy_method(meter)


def _settings(file: EngineFile) -> EngineSettings:
    return EngineSettings(
        python=located(file.python),
        args=file.args,
        env=file.env,
        gpus=file.gpus,
        gpu_idle_w=file.gpu_idle_w,
        meter=file.meter,
    )


def _expected(folder: Path) -> LogprobReference:
    """What transformers says of a few texts; the model is gone again before the engine is measured."""
    model, tokenizer = load_model(folder)
    texts = [
        tokenizer(text).input_ids[:_TEXT_TOKENS] for text in documents(DOCUMENTS, None, part="evaluation")[:_TEXTS]
    ]
    logprobs = []
    with torch.no_grad():
        for ids in texts:
            tokens = torch.tensor([ids], device=model.device)
            every = model(input_ids=tokens).logits[0, :-1].float().log_softmax(-1)
            logprobs.append(every.gather(1, tokens[0, 1:, None])[:, 0].tolist())
    del model
    gc.collect()
    return LogprobReference(token_ids=texts, logprobs=logprobs)

"""``economizer-compress run``: a recipe on a model folder, from the checks before it to the manifest after it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from economizer.variants.manifest import FILE_NAME, Candidate, Making, Manifest, Origin, Step
from safetensors import SafetensorError
from transformers import AutoTokenizer

from economizer_compression import overlap
from economizer_compression.calibration import CalibrationTexts, calibration_samples
from economizer_compression.checks import check
from economizer_compression.errors import CompressionError
from economizer_compression.gptqmodel_step import quantize_folder, require_gptqmodel
from economizer_compression.loading import load_model, model_to_compress
from economizer_compression.manifests import digest_folder, read_manifest, write_manifest
from economizer_compression.model_folder import ModelFolder
from economizer_compression.oneshot import apply_steps
from economizer_compression.provenance import hardware, versions
from economizer_compression.pruning import drop_blocks, drop_channels
from economizer_compression.recipes import (
    STRUCTURAL,
    DepthPrune,
    GptqModel,
    Quantization,
    Recipe,
    StepSettings,
    WidthPrune,
)
from economizer_compression.suite import Suite
from economizer_compression.sweep import kept_logits, mean_kl

HELD_BACK = 4  # samples that candidates are compared on and no candidate saw

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One variant to make: which recipe on which model, as what, and the text it may look at."""

    recipe: Recipe
    source: ModelFolder
    out: Path
    family: str
    variant: str
    suite: Suite
    data: Path | None

    @property
    def work(self) -> Path:
        """Where unfinished work lies, so that a killed run goes on; it is gone when the job is done."""
        return self.out.with_name(f"{self.out.name}.work")


def make_variant(job: Job, say: Say) -> Manifest:
    """Makes the variant in ``job.out`` with its manifest; raises CompressionError before the work where it can.

    What a killed run finished is taken up: the answers that calibrate, and each candidate of a sweep.
    """
    if job.out.exists():
        raise CompressionError(f"{job.out} exists already; remove it first to make it anew")
    check(job.recipe, job.source, job.out, say)
    if isinstance(job.recipe.steps[0], GptqModel):
        require_gptqmodel()
    origin = _origin(job.source)
    texts = _texts(job, say) if job.recipe.needs_text or _is_swept(job.recipe) else None
    _open_work(job, origin, texts)
    with _partial_output_removed(job):
        chosen, candidates = _best(job, texts, say)
        finished = job.work / "finished"
        shutil.rmtree(finished, ignore_errors=True)
        shutil.copytree(chosen, finished, ignore=shutil.ignore_patterns("made.json"), copy_function=os.link)
        made = json.loads((chosen / "made.json").read_text(encoding="utf-8"))
        if (seen := _seen(job, texts)) is not None:
            overlap.save(seen, finished / overlap.FILE_NAME)
        making = Making(
            recipe=job.recipe.name,
            steps=tuple(_recorded(made["steps"])),
            seed=job.recipe.calibration.seed,
            calibration=texts.record if texts is not None else None,
            candidates=candidates,
            module_losses=made["losses"],
            cpu_seconds=_cpu_seconds(job),
            versions=versions(),
            hardware=hardware(),
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        manifest = manifest_of(finished, family=job.family, variant=job.variant, origin=origin, making=making)
        write_manifest(finished, manifest)
        finished.rename(job.out)
    shutil.rmtree(job.work)
    return manifest


def _seen(job: Job, texts: CalibrationTexts | None) -> overlap.Hashes | None:
    """The n-grams of all text that the variant comes from, its input model's own calibration or training text too."""
    earlier = job.source.path / overlap.FILE_NAME
    found = [overlap.load(earlier)] if earlier.is_file() else []
    found += [texts.ngrams] if texts is not None else []
    return np.unique(np.concatenate(found)) if found else None


def _origin(source: ModelFolder) -> Origin:
    """What the source's own manifest says of it, if it has one: the full model by its own name, else the variant."""
    origin = source.origin()
    if not (source.path / FILE_NAME).is_file():
        return origin
    manifest = read_manifest(source.path)
    name = manifest.origin.name if manifest.full else f"{manifest.family}@{manifest.variant}"
    return replace(origin, name=name, license=manifest.license)


def manifest_of(
    folder: Path, *, family: str, variant: str, origin: Origin, making: Making | None = None, full: bool = False
) -> Manifest:
    """The manifest of a checkpoint of which nothing was measured yet."""
    return Manifest(
        family=family,
        variant=variant,
        full=full,
        origin=origin,
        license=origin.license,
        quantization=ModelFolder.open(folder).quantization,
        making=making,
        files=digest_folder(folder),
    )


def _open_work(job: Job, origin: Origin, texts: CalibrationTexts | None) -> None:
    """The work folder of this very job; what another job left there is removed."""
    told: dict[str, Any] = {
        "recipe": asdict(job.recipe),
        "steps": [step.name for step in job.recipe.steps],
        "model": origin.sha256,
        "text": texts.record.sha256 if texts is not None else None,
        "versions": versions(),
    }
    key = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
    file = job.work / "job.txt"
    if not file.is_file() or file.read_text(encoding="ascii") != key:
        shutil.rmtree(job.work, ignore_errors=True)
        job.work.mkdir(parents=True)
        file.write_text(key, encoding="ascii")


def _texts(job: Job, say: Say) -> CalibrationTexts:
    """The calibration samples and a few more that are held back when there is something to choose between."""
    settings = job.recipe.calibration
    held_back = HELD_BACK if _is_swept(job.recipe) else 0
    say(f"calibration: {settings.samples + held_back} samples of {settings.tokens} tokens")

    def model() -> Any:
        return load_model(job.source.path)[0]

    return calibration_samples(
        job.suite,
        AutoTokenizer.from_pretrained(job.source.path),
        model,
        data=job.data,
        samples=settings.samples + held_back,
        tokens=settings.tokens,
        seed=settings.seed,
        cache=job.out.parent / "answers",
        model_sha256=job.source.origin().sha256,
    )


def _is_swept(recipe: Recipe) -> bool:
    return sum(1 for _ in recipe.candidates()) > 1


def _best(job: Job, texts: CalibrationTexts | None, say: Say) -> tuple[Path, tuple[Candidate, ...]]:
    """The folder of the candidate nearest to the input model, and how all of them did."""
    everything = texts.token_ids if texts is not None else []
    samples = everything[: job.recipe.calibration.samples]
    tried: list[tuple[Mapping[str, Any], Path]] = []
    for index, (settings, steps) in enumerate(job.recipe.candidates()):
        folder = job.work / f"candidate-{index}"
        if not (folder / "made.json").is_file():
            say(f"making {job.variant}{_shown(settings)}")
            _make_candidate(job, steps, samples, folder)
        tried.append((settings, folder))
    if len(tried) == 1:
        return tried[0][1], ()
    say("comparing the candidates on held-back text")
    held_back = everything[job.recipe.calibration.samples :]
    reference, _ = load_model(job.source.path)
    logits = kept_logits(reference, held_back)
    del reference
    kls = []
    for _, folder in tried:
        model, _ = load_model(folder)
        kls.append(mean_kl(model, held_back, logits))
        del model
    best = min(range(len(kls)), key=lambda index: kls[index])
    candidates = tuple(
        Candidate(parameters=settings, kl_mean=kl, chosen=index == best)
        for index, ((settings, _), kl) in enumerate(zip(tried, kls, strict=True))
    )
    return tried[best][1], candidates


def _make_candidate(job: Job, steps: Sequence[StepSettings], samples: Sequence[Sequence[int]], folder: Path) -> None:
    """Makes one candidate's folder, ``made.json`` last. What is cut away goes first, in a model of its own."""
    started_s = time.process_time()
    torch.manual_seed(job.recipe.calibration.seed)
    partial, pruned = (folder.with_name(f"{folder.name}.{kind}") for kind in ("partial", "pruned"))
    for left in (partial, pruned):
        shutil.rmtree(left, ignore_errors=True)
    losses: dict[str, float] = {}
    source = job.source
    structural = [step for step in steps if isinstance(step, STRUCTURAL)]
    rest = [step for step in steps if not isinstance(step, STRUCTURAL) and not isinstance(step, GptqModel)]
    if structural:
        losses |= _prune(source, structural, samples, pruned)
        source = ModelFolder.open(pruned)
    if isinstance(steps[0], GptqModel):
        losses |= quantize_folder(source.path, partial, steps[0], samples)
        AutoTokenizer.from_pretrained(source.path).save_pretrained(partial)
    elif rest:
        with model_to_compress(source) as model:
            losses |= apply_steps(model, rest, samples)
            model.save_pretrained(partial, save_compressed=any(isinstance(step, Quantization) for step in rest))
        AutoTokenizer.from_pretrained(job.source.path).save_pretrained(partial)
        shutil.rmtree(pruned, ignore_errors=True)
    else:
        pruned.rename(partial)
    made = {
        "steps": [[step.name, asdict(step)] for step in steps],
        "losses": losses,
        "cpu_seconds": time.process_time() - started_s,
    }
    (partial / "made.json").write_text(json.dumps(made), encoding="utf-8")
    partial.rename(folder)


def _prune(
    source: ModelFolder, steps: Sequence[DepthPrune | WidthPrune], samples: Sequence[Sequence[int]], out: Path
) -> dict[str, float]:
    losses: dict[str, float] = {}
    with model_to_compress(source) as model:
        for step in steps:
            if isinstance(step, DepthPrune):
                losses |= drop_blocks(model, step.keep, samples)
            else:
                losses |= drop_channels(model, step.keep, step.multiple, samples)
        model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source.path).save_pretrained(out)
    return losses


def _cpu_seconds(job: Job) -> float:
    """What making all candidates took, those of a run that was killed too."""
    made = [json.loads(file.read_text(encoding="utf-8")) for file in job.work.glob("candidate-*/made.json")]
    return round(sum(float(each["cpu_seconds"]) for each in made), 1)


def _recorded(steps: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[Step]:
    for name, parameters in steps:
        yield Step(name=name, parameters=parameters)


def _shown(settings: Mapping[str, Any]) -> str:
    return f" with {', '.join(f'{key} = {value}' for key, value in settings.items())}" if settings else ""


@contextmanager
def _partial_output_removed(job: Job) -> Iterator[None]:
    """On a full disk what is half written is removed, so that the disk is not full afterwards, too."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not full and not any(text in str(error) for text in ("os error 28", "No space left", "File too large")):
            raise
        shutil.rmtree(job.work, ignore_errors=True)
        message = f"the disk at {job.out.parent} is full; what was half written is removed: {error}"
        raise CompressionError(message) from None

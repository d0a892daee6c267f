"""``economizer-compress run``: a recipe on a model folder, from the checks before it to the manifest after it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from economizer.variants.manifest import Candidate, Making, Manifest, Origin, Step
from safetensors import SafetensorError
from safetensors.torch import safe_open
from transformers import AutoTokenizer

from economizer_compression import overlap
from economizer_compression.calibration import CalibrationTexts, calibration_samples
from economizer_compression.errors import CompressionError
from economizer_compression.loading import load_model, model_to_compress
from economizer_compression.manifests import digest_folder, read_manifest, write_manifest
from economizer_compression.model_folder import GIB, ModelFolder, available_memory_bytes, require_disk
from economizer_compression.oneshot import apply_steps
from economizer_compression.progress import steps as progress
from economizer_compression.pruning import drop_blocks, drop_channels, require_prunable
from economizer_compression.recipes import (
    STRUCTURAL,
    DepthPrune,
    Quantization,
    Recipe,
    StepSettings,
    WidthPrune,
    refuse_group_sizes,
)
from economizer_compression.suite import Suite
from economizer_compression.sweep import kept_logits, mean_kl

_WORKING_BYTES = 2 * GIB  # Python, torch and the libraries, and one block's activations
_HELD_BACK = 4  # samples that candidates are compared on and no candidate saw
_PACKAGES = ("economizer", "llmcompressor", "compressed-tensors", "transformers", "torch")

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
    check(job, say)
    started_s = time.process_time()
    origin = job.source.origin()
    _open_work(job, origin)
    with _partial_output_removed(job):
        texts = _texts(job, say) if job.recipe.needs_text else None
        chosen, candidates = _best(job, texts, say)
        finished = job.work / "finished"
        shutil.rmtree(finished, ignore_errors=True)
        shutil.copytree(chosen, finished, ignore=shutil.ignore_patterns("made.json"), copy_function=os.link)
        made = json.loads((chosen / "made.json").read_text(encoding="utf-8"))
        if texts is not None:
            overlap.save(texts.ngrams, finished / "calibration.ngrams")
        making = Making(
            recipe=job.recipe.name,
            steps=tuple(_recorded(made["steps"])),
            seed=job.recipe.calibration.seed,
            calibration=texts.record if texts is not None else None,
            candidates=candidates,
            module_losses=made["losses"],
            cpu_seconds=round(made["cpu_seconds"] + time.process_time() - started_s, 1),
            versions=versions(),
            hardware=hardware(),
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        manifest = manifest_of(finished, family=job.family, variant=job.variant, origin=origin, making=making)
        write_manifest(finished, manifest)
        finished.rename(job.out)
    shutil.rmtree(job.work)
    return manifest


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


def check(job: Job, say: Say) -> None:
    """What would make the work fail later, found now: format, sizes, broken weights, disk and memory."""
    source, recipe = job.source, job.recipe
    if source.quantization is not None:
        raise CompressionError(f"{source.path} is quantised already ({source.quantization}): give the full model")
    if recipe.hidden_size is not None and recipe.hidden_size != source.config.get("hidden_size"):
        found = source.config.get("hidden_size")
        raise CompressionError(f"recipe {recipe.name} is for models of hidden size {recipe.hidden_size}, not {found}")
    if any(isinstance(step, STRUCTURAL) for step in recipe.steps):
        require_prunable(source.architecture)
    refuse_group_sizes(recipe, source.input_channels())
    count = sum(1 for _ in recipe.candidates())
    require_disk(job.out.parent, (count + 1) * source.weights_bytes + GIB // 2, f"recipe {recipe.name}")
    _require_memory(job)
    say(f"checking {source.weights_bytes / GIB:.2f} GiB of weights")
    refuse_broken_weights(source)


def _require_memory(job: Job) -> None:
    """The weights may lie on disk, but one block with its Hessians, and the text's activations, may not."""
    source = job.source
    widest = max(source.input_channels().values(), default=0)
    blocks = max(1, int(source.config.get("num_hidden_layers", 1)))
    block_bytes = source.weights_bytes // blocks + 3 * 4 * widest**2
    calibration = job.recipe.calibration
    text_bytes = 0
    if job.recipe.needs_text:
        text_bytes = 4 * calibration.samples * calibration.tokens * int(source.config.get("hidden_size", 0))
    needed, available = _WORKING_BYTES + 2 * block_bytes + text_bytes, available_memory_bytes()
    if available < needed:
        raise CompressionError(
            f"recipe {job.recipe.name} needs {needed / GIB:.1f} GiB of memory for this model, and "
            f"{available / GIB:.1f} GiB are available: end other programs, or lower calibration.samples"
        )


def refuse_broken_weights(source: ModelFolder) -> None:
    """Raises CompressionError naming the first tensor that has a NaN or an infinity in it."""
    files = sorted({tensor.file for tensor in source.tensors.values()})
    with progress(len(source.tensors), "checking weights") as advance:
        for file in files:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118  # not a mapping
                    tensor = weights.get_tensor(name)
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
                        raise CompressionError(f"{file.name} has NaN or infinity in {name}: the model is broken")
                    advance()


def versions() -> dict[str, str]:
    """The releases that a manifest names."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """The processor, and the GPUs where there are some."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join([f"{name}, {os.cpu_count()} cores", *gpus])


def _open_work(job: Job, origin: Origin) -> None:
    """The work folder of this very job; what another job left there is removed."""
    told = {"recipe": asdict(job.recipe), "steps": [step.name for step in job.recipe.steps], "model": origin.sha256}
    told |= {"suite": job.suite.sha256, "versions": versions()}
    key = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
    file = job.work / "job.txt"
    if not file.is_file() or file.read_text(encoding="ascii") != key:
        shutil.rmtree(job.work, ignore_errors=True)
        job.work.mkdir(parents=True)
        file.write_text(key, encoding="ascii")


def _texts(job: Job, say: Say) -> CalibrationTexts:
    """The calibration samples and a few more that are held back when there is something to choose between."""
    settings = job.recipe.calibration
    held_back = _HELD_BACK if _is_swept(job.recipe) else 0
    say(f"calibration: {settings.samples + held_back} samples of {settings.tokens} tokens")

    def model() -> tuple[Any, Any]:
        return load_model(job.source.path)

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
    started_s = time.process_time()
    torch.manual_seed(job.recipe.calibration.seed)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    losses: dict[str, float] = {}
    with model_to_compress(job.source) as model:
        for step in steps:
            if isinstance(step, DepthPrune):
                losses |= drop_blocks(model, step.keep, samples)
            elif isinstance(step, WidthPrune):
                losses |= drop_channels(model, step.keep, step.multiple, samples)
        rest = [step for step in steps if not isinstance(step, STRUCTURAL)]
        if rest:
            losses |= apply_steps(model, rest, samples)
        model.save_pretrained(partial, save_compressed=any(isinstance(step, Quantization) for step in steps))
    AutoTokenizer.from_pretrained(job.source.path).save_pretrained(partial)
    made = {
        "steps": [[step.name, asdict(step)] for step in steps],
        "losses": losses,
        "cpu_seconds": time.process_time() - started_s,
    }
    (partial / "made.json").write_text(json.dumps(made), encoding="utf-8")
    partial.rename(folder)


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


def import_checkpoint(folder: Path, out: Path, *, family: str, variant: str, full: bool, say: Say) -> Manifest:
    """Takes over a checkpoint that was made elsewhere, plain or quantised (AutoGPTQ's too), with a manifest.

    The files are linked where they can be and copied otherwise. AutoGPTQ's older layout, with the settings in
    ``quantize_config.json`` and a name of its own for the weights, is brought into the form that engines load.
    """
    if out.exists():
        raise CompressionError(f"{out} exists already; remove it first to import again")
    source = ModelFolder.open(folder)
    require_disk(out.parent, source.weights_bytes, "the import")
    say(f"checking {source.weights_bytes / GIB:.2f} GiB of weights")
    refuse_broken_weights(source)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder, partial, copy_function=_link_or_copy, ignore=shutil.ignore_patterns("manifest.json", ".*"))
    _with_settings_in_config(partial)
    _with_usual_weights_name(partial)
    imported = replace(source.origin(), name=source.path.resolve().name)
    manifest = manifest_of(partial, family=family, variant=variant, origin=imported, full=full)
    write_manifest(partial, manifest)
    partial.rename(out)
    return manifest


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _with_settings_in_config(folder: Path) -> None:
    older, file = folder / "quantize_config.json", folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if "quantization_config" in config or not older.is_file():
        return
    config["quantization_config"] = {**json.loads(older.read_text(encoding="utf-8")), "quant_method": "gptq"}
    file.unlink()  # a link to the original
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _with_usual_weights_name(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1 and files[0].name != "model.safetensors":
        files[0].rename(folder / "model.safetensors")


def require_manifest(folder: Path) -> Manifest:
    """The manifest of a folder whose files are as they were written; raises CompressionError otherwise."""
    from economizer_compression.manifests import damaged_files

    manifest = read_manifest(folder)
    if damage := damaged_files(folder, manifest):
        raise CompressionError(f"{folder} is damaged: {'; '.join(damage[:3])}: make it anew")
    return manifest

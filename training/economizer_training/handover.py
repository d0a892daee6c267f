"""The end of a distillation: the best checkpoint as a model folder with its manifest, as every variant has one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from economizer.variants.manifest import FILE_NAME, CalibrationSet, Making, Manifest, Origin, Step
from economizer_compression import overlap
from economizer_compression.folders import whole_folder
from economizer_compression.make import manifest_of
from economizer_compression.manifests import read_manifest, write_manifest
from economizer_compression.model_folder import ModelFolder
from economizer_compression.provenance import hardware, versions
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from economizer_training import checkpoints
from economizer_training.errors import TrainingError
from economizer_training.record import lines, scores
from economizer_training.shards import Shards
from economizer_training.stored_answers import StoredAnswers
from economizer_training.work import Work


def hand_over(work: Work, shards: Shards, out: Path) -> Manifest:
    """Writes the student of the least held-out KL to ``out``, from where it is evaluated, gated and published."""
    found = checkpoints.best(work.checkpoints)
    if found is None:
        raise TrainingError(f"{work.checkpoints} has no checkpoint")
    checkpoint, state = found
    model = AutoModelForCausalLM.from_pretrained(work.student, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not any(part in name.split(".") for part in work.job.freeze)
    checkpoints.load_weights(checkpoint, model)
    stored = getattr(AutoConfig.from_pretrained(work.student), "dtype", None) or torch.bfloat16
    with whole_folder(out) as partial:
        model.to(stored).save_pretrained(partial)
        AutoTokenizer.from_pretrained(work.student).save_pretrained(partial)
        seen = [work.student / overlap.FILE_NAME, work.data / overlap.FILE_NAME]
        if known := [overlap.load(file) for file in seen if file.is_file()]:
            overlap.save(np.unique(np.concatenate(known)), partial / overlap.FILE_NAME)
        manifest = manifest_of(
            partial,
            family=work.job.family,
            variant=work.job.variant,
            origin=_origin(work),
            making=_making(work, shards, state),
        )
        write_manifest(partial, manifest)
    return manifest


def _origin(work: Work) -> Origin:
    """The teacher, by what the student's own manifest says of it where it has one."""
    if (work.student / FILE_NAME).is_file():
        return read_manifest(work.student).origin
    return ModelFolder.open(work.teacher).origin()


def _making(work: Work, shards: Shards, state: checkpoints.State) -> Making:
    job = work.job
    before = read_manifest(work.student).making if (work.student / FILE_NAME).is_file() else None
    settings = {key: value for key, value in job.identity().items() if key not in ("family", "variant")}
    early = stopped_early(lines(work.run))
    parameters = {**settings, "mesh": asdict(job.mesh), **figures(scores(work.run), state), "stopped_early": early}
    if work.answers is not None:  # what they took is not in the run's own energy_j
        parameters["teacher_answers_energy_j"] = StoredAnswers.open(work.answers).energy_j
    parameters = json.loads(json.dumps(parameters))  # as they are read again: lists, not tuples
    tokens = state.step * job.batch * shards.length
    return Making(
        recipe=job.variant,
        steps=(*(before.steps if before else ()), Step(name="distil", parameters=parameters)),
        seed=before.seed if before else 0,
        calibration=CalibrationSet(
            source=str(job.data),
            samples=min(shards.rows("train"), state.step * job.batch),
            tokens=tokens,
            seed=0,
            sha256=shards.sha256,
        ),
        module_losses=before.module_losses if before else {},
        cpu_seconds=round((before.cpu_seconds if before else 0) + scores(work.run)[-1]["cpu_s"], 1),
        versions=versions() | {"ray": version("ray")},
        hardware=hardware(),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def stopped_early(found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Where a run ended before its last step, and the gains in nats per kJ that ended it; ``found`` are its lines."""
    last = found[-1]
    return {key: last[key] for key in ("step", "kl_per_kj")} if last["kind"] == "stopped_early" else None


def figures(found: Sequence[Mapping[str, Any]], state: checkpoints.State) -> dict[str, Any]:
    """What distilling came to and cost: held-out scores before and after, joules in all and per thousand tokens."""
    first, last = found[0], found[-1]
    chosen = next((score for score in found if score["step"] == state.step), last)
    energy_j, tokens = last["energy_j"], last["tokens"]
    return {
        "step": state.step,
        "tokens": chosen["tokens"],
        "heldout_kl": [first["kl"], chosen["kl"]],
        "heldout_agreement": [first["agreement"], chosen["agreement"]],
        "seconds": last["seconds"],
        "energy_j": energy_j,
        "active_energy_j": last["active_j"],
        "paused_seconds": last.get("paused_s", 0.0),
        "paused_energy_j": last.get("paused_j", 0.0),
        "energy_j_per_1000_tokens": None if energy_j is None else round(1000 * energy_j / tokens, 3),
        "energy_method": last["energy_method"],
    }

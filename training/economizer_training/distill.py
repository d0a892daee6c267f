"""``economizer-train distill``: from the checks before it to the student's folder after it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from economizer_compression.family import located
from economizer_compression.manifests import digest_folder, digest_of
from economizer_compression.model_folder import ModelFolder, require_disk
from transformers import AutoConfig

from economizer_training.distillation import Distillation
from economizer_training.errors import TrainingError
from economizer_training.handover import hand_over
from economizer_training.mesh import refuse_shapes
from economizer_training.plot import plot_run
from economizer_training.record import scores
from economizer_training.shards import Shards
from economizer_training.students import initial_student, refuse_other_vocabulary
from economizer_training.train import Work
from economizer_training.workers_ray import run_workers

_BEGUN = "run.json"
_FP32_STATES = 3  # a weight and AdamW's two moments

Say = Callable[[str], None]


def distill(job: Distillation, *, say: Say) -> None:
    """Makes the student, teaches it, and leaves it in ``job.out`` with its manifest; ``<out>.run`` has how it went.

    Called again after a stop it goes on from the last checkpoint, on another mesh if the settings have one. Raises
    TrainingError before the work where it can.
    """
    out = located(job.out)
    if out.exists():
        raise TrainingError(f"{out} exists already; remove it first to distil anew")
    teacher, data = ModelFolder.open(located(job.teacher)), located(job.data)
    if teacher.quantization is not None:
        raise TrainingError(f"{teacher.path} is quantised ({teacher.quantization}): give the full model as the teacher")
    shards = Shards.open(data)
    shards.verify()
    for split in ("train", "heldout"):
        if not shards.rows(split):
            raise TrainingError(f"{data} has no {split} rows: prepare it with some")
    job.run.mkdir(parents=True, exist_ok=True)
    _go_on_with_the_same(job, teacher, shards)
    student = initial_student(job, say)
    refuse_other_vocabulary(teacher.path, student, data, shards.index.vocabulary_sha256)
    _refuse_what_would_fail_later(job, teacher.path, student)
    work = Work(job=job, teacher=teacher.path, student=student, data=data, run=job.run)
    run_workers(work)
    plot_run(scores(work.run), f"{job.family}@{job.variant}", work.run / "heldout.png")
    manifest = hand_over(work, shards, out)
    say(f"{manifest.family}@{manifest.variant}: {manifest.size_bytes / 1e6:.0f} MB in {out}; how it went: {job.run}")


def _go_on_with_the_same(job: Distillation, teacher: ModelFolder, shards: Shards) -> None:
    """Raises TrainingError where what lies in the run's folder was begun with other settings, teacher or text."""
    now: dict[str, Any] = {
        "settings": job.identity(),
        "teacher": digest_of(digest_folder(teacher.path)),
        "text": shards.sha256,
        "student": digest_of(digest_folder(located(job.student.folder))) if job.student.folder else None,
    }
    now = json.loads(json.dumps(now))
    path = job.run / _BEGUN
    begun = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else now
    if begun != now:
        others = [key for key in now if begun.get(key) != now[key]]
        if others == ["settings"]:
            others = [key for key, value in now["settings"].items() if begun["settings"].get(key) != value]
        told = f"{job.run} was begun with other {', '.join(others)}"
        raise TrainingError(f"{told}: remove it to begin anew, or give this run another `out`")
    path.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")


def _refuse_what_would_fail_later(job: Distillation, teacher: Path, student: Path) -> None:
    taught, learning = (AutoConfig.from_pretrained(folder) for folder in (teacher, student))
    refuse_shapes(job.mesh, "student", learning)
    refuse_shapes(job.mesh, "teacher", taught)
    if job.loss.hidden and learning.hidden_size != taught.hidden_size:
        told = f"the student's hidden_size is {learning.hidden_size} and the teacher's {taught.hidden_size}"
        raise TrainingError(f"loss.hidden: must be 0 where widths differ: {told}")
    each = 4 * _FP32_STATES * ModelFolder.open(student).parameters
    kept = job.checkpoints.keep_last + 2  # the best one and the one that is being written
    require_disk(job.run, kept * each, f"{kept} checkpoints")

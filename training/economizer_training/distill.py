"""``economizer-train distill``: from the checks before it to the student's folder after it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from economizer_compression.family import located
from economizer_compression.manifests import digest_folder, digest_of
from economizer_compression.model_folder import ModelFolder, require_disk
from transformers import AutoConfig, AutoTokenizer

from economizer_training.answering import stored_answers
from economizer_training.distillation import Distillation
from economizer_training.errors import TrainingError
from economizer_training.handover import hand_over
from economizer_training.mesh import refuse_shapes
from economizer_training.on_policy import answer_opening, refuse_text_without_chats
from economizer_training.plot import plot_run
from economizer_training.record import scores
from economizer_training.shards import Shards
from economizer_training.students import initial_student, refuse_other_vocabulary
from economizer_training.work import Work
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
    teacher, shards = _teacher_and_text(job)
    digest = digest_of(digest_folder(teacher.path))
    job.run.mkdir(parents=True, exist_ok=True)
    _go_on_with_the_same(job, digest, shards)
    student = initial_student(job, say)
    refuse_other_vocabulary(teacher.path, student, shards.folder, shards.index.vocabulary_sha256)
    _refuse_what_would_fail_later(job, teacher.path, student, shards)
    answers = stored_answers(job, digest, shards, say)
    work = Work(job=job, teacher=teacher.path, student=student, data=shards.folder, run=job.run, answers=answers)
    run_workers(work)
    found = scores(work.run)
    plot_run(found, f"{job.family}@{job.variant}", work.run / "heldout.png")
    manifest = hand_over(work, shards, out)
    name, took = f"{manifest.family}@{manifest.variant}", f"{found[-1]['seconds'] / 60:.1f} min of learning"
    say(f"{name}: {manifest.size_bytes / 1e6:.0f} MB in {out} after {took}; how it went: {job.run}")


def answer(job: Distillation, *, say: Say) -> None:
    """Has the teacher answer the text, where ``distill`` would: so that it can be done before, or elsewhere."""
    if job.teacher_logits.kind == "in_process":
        raise TrainingError("teacher_logits.kind: in_process: must be stored or http, else there is nothing to keep")
    teacher, shards = _teacher_and_text(job)
    refuse_other_vocabulary(teacher.path, teacher.path, shards.folder, shards.index.vocabulary_sha256)
    stored_answers(job, digest_of(digest_folder(teacher.path)), shards, say)


def _teacher_and_text(job: Distillation) -> tuple[ModelFolder, Shards]:
    teacher, data = ModelFolder.open(located(job.teacher)), located(job.data)
    if teacher.quantization is not None:
        raise TrainingError(f"{teacher.path} is quantised ({teacher.quantization}): give the full model as the teacher")
    shards = Shards.open(data)
    shards.verify()
    for split in ("train", "heldout"):
        if not shards.rows(split):
            raise TrainingError(f"{data} has no {split} rows: prepare it with some")
    return teacher, shards


def _go_on_with_the_same(job: Distillation, teacher: str, shards: Shards) -> None:
    """Raises TrainingError where what lies in the run's folder was begun with other settings, teacher or text."""
    now: dict[str, Any] = {
        "settings": job.identity(),
        "teacher": teacher,
        "text": shards.sha256,
        "student": digest_of(digest_folder(located(job.student.folder))) if job.student.folder else None,
    }
    now = json.loads(json.dumps(now))
    path = job.run / _BEGUN
    begun = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else now
    others = [key for key in now if begun.get(key) != now[key]]
    if others == ["settings"]:  # a setting that an older release did not have is None where it is not used
        others = [key for key, value in now["settings"].items() if begun["settings"].get(key) != value]
    if others:
        told = f"{job.run} was begun with other {', '.join(others)}"
        raise TrainingError(f"{told}: remove it to begin anew, or give this run another `out`")
    path.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")


def _refuse_what_would_fail_later(job: Distillation, teacher: Path, student: Path, shards: Shards) -> None:
    taught, learning = (AutoConfig.from_pretrained(folder) for folder in (teacher, student))
    if job.pause is not None:
        job.pause.intensity(os.environ)
    refuse_shapes(job.mesh, "student", learning)
    if job.teacher_logits.kind != "http":
        refuse_shapes(job.mesh, "teacher", taught)
    if job.loss.on_policy:
        refuse_text_without_chats(shards, answer_opening(AutoTokenizer.from_pretrained(teacher)))
    if job.loss.hidden and learning.hidden_size != taught.hidden_size:
        told = f"the student's hidden_size is {learning.hidden_size} and the teacher's {taught.hidden_size}"
        raise TrainingError(f"loss.hidden: must be 0 where widths differ: {told}")
    each = 4 * _FP32_STATES * ModelFolder.open(student).parameters
    kept = job.checkpoints.keep_last + 2  # the best one and the one that is being written
    require_disk(job.run, kept * each, f"{kept} checkpoints")

"""The teacher's answers to prepared text, made once and kept beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from economizer_compression.family import located
from economizer_compression.locks import one_at_a_time
from economizer_compression.model_folder import require_disk
from economizer_compression.progress import steps
from transformers import AutoConfig

from economizer_training.batches import read_batch
from economizer_training.distillation import Distillation
from economizer_training.errors import TrainingError
from economizer_training.losses import sampled
from economizer_training.metered import Metered, worker_meter
from economizer_training.shards import Shards, Split
from economizer_training.stored_answers import (
    INDEX,
    Answer,
    Index,
    Question,
    StoredAnswers,
    kept,
    write_answers,
    write_index,
)
from economizer_training.teacher_http import Endpoint
from economizer_training.teachers import InProcess, load_teacher

Say = Callable[[str], None]


class Asked(Protocol):
    """A teacher that answers a file's rows."""

    def answers(self, split: Split, rows: range, advance: Callable[[], None]) -> tuple[list[Answer], float | None]:
        """The answers, and the joules that they took, None where these are not known; ``advance`` for each row."""


def stored_answers(job: Distillation, teacher_sha256: str, shards: Shards, say: Say) -> Path | None:
    """The folder of the teacher's answers to the text, made where it is not there; None where it teaches in process.

    ``teacher_sha256`` is the digest of ``job.teacher``'s files. A run that was stopped while it made them goes on after
    the last whole file. Raises TrainingError where the teacher cannot be asked, or where answers that are there were
    changed.
    """
    if job.teacher_logits.kind == "in_process":
        return None
    question = _question(job, teacher_sha256, shards)
    folder = shards.folder.with_name(f"{shards.folder.name}.answers") / question.key
    with one_at_a_time(folder, "the teacher's answers"):
        if not (folder / INDEX).is_file():
            _make(job, question, shards, folder, say)
    stored = StoredAnswers.open(folder)
    stored.verify()
    size = sum(each.stat().st_size for each in folder.glob("*.parquet"))
    say(f"the teacher's answers: {size / 1e6:.1f} MB in {folder}")
    return folder


def _question(job: Distillation, teacher_sha256: str, shards: Shards) -> Question:
    settings = job.teacher_logits
    vocabulary = AutoConfig.from_pretrained(located(job.teacher)).vocab_size
    by_http = settings.kind == "http"
    if by_http and settings.top >= vocabulary:
        raise TrainingError(f"teacher_logits.top: {settings.top}: must be less than the {vocabulary} tokens there are")
    return Question(
        teacher=teacher_sha256,
        text=shards.sha256,
        kind="top" if by_http else "draws",
        count=settings.top if by_http else settings.samples,
        vocabulary=vocabulary,
        model=settings.model,
        precision=None if by_http else job.precision,
    )


def _make(job: Distillation, question: Question, shards: Shards, folder: Path, say: Say) -> None:
    # A student is scored by answers where no worker has the teacher itself.
    splits: tuple[Split, ...] = ("train", "heldout") if question.kind == "top" else ("train",)
    every = [(split, folder / shard.file, rows) for split in splits for shard, rows in shards.files(split)]
    missing = [(split, path, rows) for split, path, rows in every if kept(path, len(rows)) is None]
    positions = sum(shard.tokens for split in splits for shard, _ in shards.files(split))
    bytes_each = question.id_type().itemsize + (2 if question.kind == "top" else 0)
    require_disk(folder, positions * question.count * bytes_each, "the teacher's answers")
    teacher = _asked(job, question, shards, say) if missing else None
    with steps(sum(len(rows) for *_, rows in missing), "the teacher's answers") as advance:
        for split, path, rows in missing:
            assert teacher is not None
            answers, energy_j = teacher.answers(split, rows, advance)
            write_answers(path, question, answers, energy_j)
    found = [(split, kept(path, len(rows))) for split, path, rows in every]
    files = {split: tuple(file for of, file in found if of == split and file is not None) for split in splits}
    write_index(folder, Index(question=question, splits=files))


def _asked(job: Distillation, question: Question, shards: Shards, say: Say) -> Asked:
    if question.kind == "top":
        return Endpoint(job.teacher_logits, shards, question.vocabulary, say)
    return InThisProcess(job, shards)


class InThisProcess:
    """The teacher's weights, loaded here; draws follow from the file that they are for."""

    def __init__(self, job: Distillation, shards: Shards) -> None:
        self._job, self._shards = job, shards
        self._device = torch.device("cuda" if job.gpu and torch.cuda.is_available() else "cpu")
        self._teacher = InProcess(load_teacher(located(job.teacher), job.precision, self._device))

    def answers(self, split: Split, rows: range, advance: Callable[[], None]) -> tuple[list[Answer], float | None]:
        meter = worker_meter(self._job.meter, self._device.type, here=1)
        try:
            metered = Metered(meter, time.process_time)
            return list(self._drawn(split, rows, advance)), metered.lap().energy_j
        finally:
            meter.close()

    def _drawn(self, split: Split, rows: range, advance: Callable[[], None]) -> Iterator[Answer]:
        generator = torch.Generator(self._device).manual_seed(rows.start)
        for start in range(0, len(rows), self._job.micro_batch):
            batch = read_batch(self._shards, split, rows[start : start + self._job.micro_batch], self._device)
            logits = self._teacher.answer(batch).logits[batch.counts]
            drawn, _ = sampled(logits, self._job.teacher_logits.samples, generator)
            ids = drawn.sort(-1).values.cpu().numpy()
            ends = np.cumsum(batch.counts.sum(1).cpu().numpy())
            for each in np.split(ids, ends[:-1]):
                yield Answer(ids=each)
                advance()

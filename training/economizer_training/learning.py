"""One step's forward and backward pass, whole or through a pipeline, and the same passes to score."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM

from economizer_training.batches import Batch
from economizer_training.distillation import Distillation
from economizer_training.errors import TrainingError
from economizer_training.losses import hidden_loss, token_losses
from economizer_training.mesh import Stage, Workers, accumulating, pipeline, refuse_shapes, spread
from economizer_training.students import matched
from economizer_training.teachers import Answered, Scored, Teachers, passed

Tensor = Any


class Learner(Protocol):
    """A student beside its teacher.

    ``module`` has the parameters that this worker holds.
    """

    module: Any

    def learn(self, batch: Batch, counted: int) -> Tensor:
        """Adds up gradients of this worker's rows; returns each row's summed loss, zeros where another has them.

        ``counted`` is how many positions count in all workers' rows: the loss is the mean over them.
        """

    def score(self, batch: Batch) -> Tensor:
        """(sum of KL(teacher || student), positions where both find the same token most probable), likewise."""


def learner(job: Distillation, teachers: Teachers | None, student: Any, workers: Workers, length: int) -> Learner:
    """The student's passes on the mesh; raises TrainingError for shapes that it does not divide."""
    refuse_shapes(job.mesh, "student", student.config)
    tied = student.config.tie_word_embeddings and student.get_input_embeddings().weight.requires_grad
    if job.mesh.pipeline > 1 and tied:
        raise TrainingError("mesh.pipeline above 1 needs frozen embeddings where the head shares their weights")
    if job.recompute_activations:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    student.train()
    if job.mesh.pipeline > 1:
        return _Pipelined(job, teachers, student, workers, length)
    assert teachers is not None
    return _Whole(job, teachers, student, workers)


def load_fp32(folder: Any, frozen: tuple[str, ...], device: torch.device) -> Any:
    """A student in single precision; parameters with one of ``frozen`` in their names do not learn."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not any(part in name.split(".") for part in frozen)
    return model


class _Whole:
    """All blocks are here, or parts of each."""

    def __init__(self, job: Distillation, teachers: Teachers, student: Any, workers: Workers) -> None:
        self.module = student
        self._job, self._teachers, self._workers = job, teachers, workers
        self._student = spread(student, workers)
        self._autocast = autocast(job, workers)

    def learn(self, batch: Batch, counted: int) -> Tensor:
        losses = []
        for number, micro in enumerate(batch.split(self._job.micro_batch), start=1):
            with accumulating(self._student, last=number == self._job.micro_batches):
                sums = _sums(self._losses(micro), micro)
                (sums.sum() * (self._job.mesh.batches / counted)).backward()
            losses.append(sums.detach())
        return torch.cat(losses) * self._workers.speaks

    def _losses(self, micro: Batch) -> Tensor:
        loss = self._job.loss
        taught = self._teachers.learnt_from.answer(micro, hidden=loss.hidden > 0)
        with self._autocast():
            answer = passed(self._student, micro, hidden=loss.hidden > 0)
        losses = token_losses(loss, answer.logits, taught, micro.targets)
        if loss.hidden > 0:
            losses = losses + loss.hidden * _hidden(answer.hidden_states, taught.hidden_states)
        return losses

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        scores = torch.zeros(2, device=self._workers.device)
        for micro in batch.split(self._job.micro_batch):
            with self._autocast():
                logits = passed(self._student, micro).logits
            scores += _scores(logits, self._teachers.scored_by.answer(micro), micro)
        return scores * self._workers.speaks


class _Pipelined:
    """Each worker has some of the student's blocks; the last also has the whole teacher."""

    def __init__(
        self, job: Distillation, teachers: Teachers | None, student: Any, workers: Workers, length: int
    ) -> None:
        config = student.config
        self._job, self._teachers, self._workers = job, teachers, workers
        self.module = student
        rows = job.batch // job.mesh.batches
        self._schedule = pipeline(
            spread(Stage(student, workers), workers),
            config,
            workers,
            rows=rows,
            length=length,
            micro=job.micro_batches,
            loss=self._loss,
        )
        self._autocast = autocast(job, workers)
        self._batch: tuple[Batch, int] | None = None
        self._taught: Answered | None = None
        self._examined: Scored | None = None
        self._sums = torch.zeros(rows, device=workers.device)
        self._scores = torch.zeros(2, device=workers.device)

    def learn(self, batch: Batch, counted: int) -> Tensor:
        self._sums.zero_()
        if self._teachers is not None:
            self._taught = self._teachers.learnt_from.answer(batch)
        target = self._begun(batch, counted)
        with self._autocast():
            self._schedule.step(*self._received(batch), target=target, return_outputs=False, **_beside(batch))
        return self._sums * self._workers.speaks

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        self._scores.zero_()
        if self._teachers is not None:
            self._examined = self._teachers.scored_by.answer(batch)
        target = self._begun(batch, 1)
        with self._autocast():
            self._schedule.eval(*self._received(batch), target=target, **_beside(batch))
        return self._scores * self._workers.speaks

    def _begun(self, batch: Batch, counted: int) -> Tensor | None:
        """Keeps what `_loss` needs where that is called; the schedule hands it rows' numbers."""
        if self._teachers is None:
            return None
        self._batch = batch, counted
        return torch.arange(len(batch.input_ids))

    def _loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        assert self._batch is not None
        batch, counted = self._batch
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        micro = batch.part(part)
        if not torch.is_grad_enabled():
            assert self._examined is not None
            self._scores += _scores(logits, self._examined.part(part), micro)
            return self._scores[0]
        assert self._taught is not None
        sums = _sums(token_losses(self._job.loss, logits, self._taught.part(part), micro.targets), micro)
        self._sums[part] = sums.detach()
        return sums.sum() * (self._job.mesh.batches / counted)

    def _received(self, batch: Batch) -> tuple[Tensor, ...]:
        return (batch.input_ids,) if self._workers.stage == 0 else ()


def autocast(job: Distillation, workers: Workers) -> Callable[[], AbstractContextManager[Any]]:
    """In what a student's passes run."""
    enabled = job.precision == "bf16"
    return lambda: torch.autocast(workers.device.type, dtype=torch.bfloat16, enabled=enabled)


def _beside(batch: Batch) -> dict[str, Tensor]:
    return {"position_ids": batch.position_ids, "attention_mask": batch.mask}


def _sums(losses: Tensor, batch: Batch) -> Tensor:
    return torch.where(batch.counts, losses, 0.0).sum(1)


def _hidden(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """The mean over the student's blocks, each beside the teacher's that is as deep."""
    blocks, teacher_blocks = len(student) - 1, len(teacher) - 1
    each = [hidden_loss(student[at], teacher[matched(at, blocks, teacher_blocks)]) for at in range(1, blocks + 1)]
    return torch.stack(each).mean(0)


def _scores(student: Tensor, taught: Scored, batch: Batch) -> Tensor:
    return torch.stack([each[batch.counts].float().sum() for each in taught.compared(student)])

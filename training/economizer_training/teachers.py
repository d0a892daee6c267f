"""Who teaches: a model in this process, or what a teacher has answered before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from economizer_training.batches import Batch
from economizer_training.compiling import compile_blocks
from economizer_training.distillation import Distillation
from economizer_training.losses import Loss, Taught, bucketed_forward_kl, divergence, forward_kl, sampled_forward_kl
from economizer_training.mesh import Workers, refuse_shapes, spread
from economizer_training.stored_answers import Answer, StoredAnswers

Tensor = Any


class Answered(Taught, Protocol):
    """A teacher's distributions over a batch's positions, [rows, length]."""

    @property
    def hidden_states(self) -> tuple[Tensor, ...]:
        """Those before and after each block, [rows, length, width], where they were asked for and are known."""

    def part(self, rows: slice) -> Answered:
        """Those of some of the rows."""


class Scored(Answered, Protocol):
    """Distributions that a student can be scored by."""

    def part(self, rows: slice) -> Scored: ...

    def compared(self, student: Tensor) -> tuple[Tensor, Tensor]:
        """(KL(teacher || student), whether both find the same token most probable), position by position."""


AnsweredT = TypeVar("AnsweredT", bound=Answered, covariant=True)


class Teacher(Protocol[AnsweredT]):
    """Whom a student learns from, or is scored by."""

    def answer(self, batch: Batch, *, hidden: bool = False) -> AnsweredT:
        """Its distributions; ``hidden`` asks for its hidden states, too."""


@dataclass(frozen=True, slots=True)
class AllLogits:
    """The whole distributions."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...] = ()

    def part(self, rows: slice) -> AllLogits:
        return AllLogits(self.logits[rows], tuple(each[rows] for each in self.hidden_states))

    def divergence(self, loss: Loss, student: Tensor) -> Tensor:
        return divergence(loss, student, self.logits)

    def compared(self, student: Tensor) -> tuple[Tensor, Tensor]:
        return forward_kl(student, self.logits), student.argmax(-1) == self.logits.argmax(-1)


@dataclass(frozen=True, slots=True)
class Draws:
    """Tokens drawn from them, [rows, length, count]. Nobody is scored by these: they hide how sure the teacher was."""

    ids: Tensor
    hidden_states: ClassVar[tuple[Tensor, ...]] = ()

    def part(self, rows: slice) -> Draws:
        return Draws(self.ids[rows])

    def divergence(self, loss: Loss, student: Tensor) -> Tensor:
        each = torch.tensor(1 / self.ids.shape[-1], device=student.device)
        return sampled_forward_kl(student, self.ids, each)


@dataclass(frozen=True, slots=True)
class Top:
    """The most probable tokens of each, [rows, length, count], the first one first.

    What is compared by them is a lower bound of the whole divergence.
    """

    ids: Tensor
    log_p: Tensor
    hidden_states: ClassVar[tuple[Tensor, ...]] = ()

    def part(self, rows: slice) -> Top:
        return Top(self.ids[rows], self.log_p[rows])

    def divergence(self, loss: Loss, student: Tensor) -> Tensor:
        return bucketed_forward_kl(student, self.ids, self.log_p)

    def compared(self, student: Tensor) -> tuple[Tensor, Tensor]:
        return bucketed_forward_kl(student, self.ids, self.log_p), student.argmax(-1) == self.ids[..., 0]


class InProcess:
    """A causal model, whole or as this worker holds it."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @torch.no_grad()
    def answer(self, batch: Batch, *, hidden: bool = False) -> AllLogits:
        found = passed(self._model, batch, hidden=hidden)
        return AllLogits(found.logits, found.hidden_states if hidden else ())


class FromStore(Generic[AnsweredT]):
    """What a teacher has answered before, in the form that ``form`` gives it."""

    def __init__(self, stored: StoredAnswers, form: Callable[[Answer, torch.device], AnsweredT]) -> None:
        self._stored = stored
        self._form = form

    def answer(self, batch: Batch, *, hidden: bool = False) -> AnsweredT:
        found = self._stored.read(batch.source, batch.rows, batch.counts.cpu().numpy())
        return self._form(found, batch.input_ids.device)


def draws(answer: Answer, device: torch.device) -> Draws:
    """Stored draws on a device."""
    return Draws(torch.from_numpy(answer.ids).to(device))


def top(answer: Answer, device: torch.device) -> Top:
    """Stored top tokens on a device."""
    return Top(torch.from_numpy(answer.ids).to(device), torch.from_numpy(answer.log_p).to(device))


@dataclass(frozen=True, kw_only=True, slots=True)
class Teachers:
    """Whom the student learns from, and whom it is scored by, which may be the same."""

    learnt_from: Teacher[Answered]
    scored_by: Teacher[Scored]


def teachers_of(
    job: Distillation, folder: Path, answers: Path | None, workers: Workers, compiled: bool = False
) -> Teachers | None:
    """The teachers on this worker, None where it has no logits to teach; ``answers`` is the folder of stored ones.

    The student is scored by the whole teacher, also where it learns from some draws of it, so that scores stay exact
    and can be compared; by a teacher that is elsewhere it is scored as it was taught. Raises TrainingError for answers
    that cannot be read, and for shapes that the mesh does not divide.
    """
    if not workers.is_last_stage:
        return None
    stored = StoredAnswers.open(answers) if answers is not None else None
    if stored is not None and job.teacher_logits.kind == "http":
        elsewhere = FromStore(stored, top)
        return Teachers(learnt_from=elsewhere, scored_by=elsewhere)
    refuse_shapes(job.mesh, "teacher", AutoConfig.from_pretrained(folder))
    teacher = load_teacher(folder, job.precision, workers.device)
    if compiled:
        compile_blocks(teacher)
    here = InProcess(spread(teacher, workers))
    return Teachers(learnt_from=here if stored is None else FromStore(stored, draws), scored_by=here)


def load_teacher(folder: Any, precision: str, device: torch.device) -> Any:
    """A teacher that only answers."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval().requires_grad_(False)


def passed(model: Any, batch: Batch, *, hidden: bool = False) -> Any:
    """A causal model's pass over packed rows."""
    return model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=batch.mask,
        use_cache=False,
        output_hidden_states=hidden,
    )

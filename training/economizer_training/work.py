"""What the workers of a distillation are given, and what none of them can go on after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from economizer_training.distillation import Distillation
from economizer_training.errors import TrainingError


class Stopped(TrainingError):
    """There is no going on, and would be none after a restart; all workers raise it."""


class LossNotFinite(Stopped):
    """A loss, gradient or score was NaN or infinite, before anything was learnt from it."""


class EnergyUnknown(Stopped):
    """A run that is to end by its joules has a worker whose joules are not known."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the workers need beside the settings: folders on a disk that all of them see."""

    job: Distillation
    teacher: Path
    student: Path
    data: Path
    run: Path
    answers: Path | None = None  # of the teacher, where it does not teach in process

    @property
    def checkpoints(self) -> Path:
        """Where they lie."""
        return self.run / "checkpoints"

"""What each worker of a distillation does, from the last checkpoint to the last step."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from economizer.energy.choose import meter_for
from economizer.energy.cpu_time import CpuTime
from economizer.energy.meter import Meter
from economizer.energy.meter_nvml import visible_devices

from economizer_training import checkpoints
from economizer_training.batches import PADDING, counted, read_batch
from economizer_training.distillation import Distillation
from economizer_training.errors import TrainingError
from economizer_training.learning import Learner, learner, load_fp32, load_teacher
from economizer_training.mesh import Workers, clip
from economizer_training.record import Cost, Metered, Record
from economizer_training.shards import Shards

_SAY_EVERY_S = 10.0

Say = Callable[[str], None]


class LossNotFinite(TrainingError):
    """A loss, gradient or score was NaN or infinite, before anything was learnt from it; all workers raise it."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the workers need beside the settings: folders on a disk that all of them see."""

    job: Distillation
    teacher: Path
    student: Path
    data: Path
    run: Path

    @property
    def checkpoints(self) -> Path:
        """Where they lie."""
        return self.run / "checkpoints"


class OwnCpuTime(CpuTime):
    """The CPU time of this very process, where CpuTime counts what is below it: a worker works itself."""

    def seconds(self) -> float:
        return time.process_time()


def worker_meter(work: Work, device: torch.device, here: int) -> Meter:
    """The meter of this worker's own cores, of ``here`` workers on this machine, or of its GPU."""
    gpus = visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return meter_for(
        work.job.meter,
        gpus=gpus[:1] if device.type == "cuda" else (),
        cores=len(os.sched_getaffinity(0)) / here,
        idle_w=None,
        cpu_time=OwnCpuTime(),
    )


def train(work: Work, workers: Workers, meter: Meter, say: Say) -> None:
    """Goes on from the last checkpoint to the last step; what comes of it is the checkpoints and the metrics.

    Raises LossNotFinite in all workers, and TrainingError in the one that cannot go on.
    """
    job, shards = work.job, Shards.open(work.data)
    student = load_fp32(work.student, job.freeze, workers.device)
    teacher = load_teacher(work.teacher, job.precision, workers.device)
    passes = learner(job, teacher, student, workers, shards.length)
    learning = [parameter for parameter in passes.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        learning,
        lr=job.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=job.weight_decay,
        foreach=job.mesh.tensor == 1,  # not for parameters of which some are on another mesh than the others
    )
    loop = _Loop(work, workers, shards, passes, learning, optimizer, Metered(meter, time.process_time), say)
    found = checkpoints.last(work.checkpoints)
    begin = 0
    if found is not None:
        begin = checkpoints.load(found[0], passes.module, optimizer).step
        loop.say_first(f"going on after step {begin} of {job.steps}")
    else:
        loop.score(0)
    for step in range(begin, job.steps):
        loop.step(step)
        if (step + 1) % job.checkpoints.every_steps == 0 or step + 1 == job.steps:
            state = checkpoints.State(step=step + 1, heldout_kl=loop.score(step + 1))
            keep_last = job.checkpoints.keep_last
            checkpoints.save(work.checkpoints, state, passes.module, optimizer, keep_last=keep_last)


class _Loop:
    def __init__(
        self,
        work: Work,
        workers: Workers,
        shards: Shards,
        passes: Learner,
        learning: list[Any],
        optimizer: Any,
        metered: Metered,
        say: Say,
    ) -> None:
        self._work, self._job, self._workers, self._shards = work, work.job, workers, shards
        self._passes, self._learning, self._optimizer, self._metered = passes, learning, optimizer, metered
        self._say = say
        self._record = Record(work.run) if workers.is_first else None
        self._tokens = shards.length * work.job.batch
        self._since = 0.0, 0
        self._said_s = -inf

    def say_first(self, line: str) -> None:
        """A line from one worker alone."""
        if self._workers.is_first:
            self._say(line)

    def step(self, step: int) -> None:
        """Learns from one batch. Raises LossNotFinite before it has any effect."""
        job, workers = self._job, self._workers
        rows = job.rows_of(step, self._shards.rows("train"))
        scored = max(1, int(counted(self._shards.read("train", rows)[1]).sum()))
        mine = workers.mine(rows)
        self._optimizer.zero_grad(set_to_none=True)
        sums = self._passes.learn(read_batch(self._shards, "train", mine, workers.device), scored)
        norm = clip(self._learning, job.clip, workers)
        bad = [row for row, value in zip(mine, sums.tolist(), strict=True) if not isfinite(value)]
        (loss, total_norm), cost = self._totals([float(sums.sum()) / scored, norm])
        if not (isfinite(loss) and isfinite(total_norm)):
            raise self._not_finite(step, rows, bad)
        rate = job.learning_rate_at(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        if self._record is not None:
            self._record.add(cost)
            self._record.write(
                "step",
                step=step + 1,
                tokens=(step + 1) * self._tokens,
                loss=loss,
                learning_rate=rate,
                gradient_norm=norm,
                tokens_per_s=round(self._tokens / cost.seconds, 1) if cost.seconds else None,
            )
            self._tell(step + 1, loss, cost)

    def score(self, step: int) -> float:
        """The mean held-out KL; the metrics have the agreement too."""
        job, workers = self._job, self._workers
        count = min(job.heldout_rows, self._shards.rows("heldout"))
        padded = [*range(count), *[PADDING] * (-count % job.batch)]
        sums = torch.zeros(2, device=workers.device)
        for start in range(0, len(padded), job.batch):
            mine = workers.mine(padded[start : start + job.batch])
            sums += self._passes.score(read_batch(self._shards, "heldout", mine, workers.device))
        (kl, same), cost = self._totals([float(value) for value in sums])
        positions = int(counted(self._shards.read("heldout", range(count))[1]).sum())
        kl, agreement = kl / positions, same / positions
        if not isfinite(kl):
            raise LossNotFinite(f"step {step}: the held-out KL is not finite: look at the teacher's weights")
        if self._record is not None:
            self._record.add(cost)
            tokens = step * self._tokens
            self._record.write(
                "heldout",
                step=step,
                tokens=tokens,
                kl=kl,
                agreement=agreement,
                rows=count,
                energy_method=self._metered.method,
            )
            self._say(f"step {step}: held-out KL {kl:.4f}, top-1 agreement {agreement:.3f}, {positions} tokens")
        return kl

    def _totals(self, figures: list[float]) -> tuple[list[float], Cost]:
        """The figures and the cost since the last time, summed over workers; seconds are this worker's."""
        cost = self._metered.lap()
        joules = [nan if value is None else value for value in (cost.energy_j, cost.active_j)]
        *summed, cpu_s, energy_j, active_j = self._workers.total([*figures, cost.cpu_s, *joules])
        return summed, Cost(
            seconds=cost.seconds,
            cpu_s=cpu_s,
            energy_j=energy_j if isfinite(energy_j) else None,
            active_j=active_j if isfinite(active_j) else None,
        )

    def _not_finite(self, step: int, rows: list[int], bad: list[int]) -> LossNotFinite:
        every: list[list[int] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(every, bad)
        found = sorted({row for theirs in every for row in theirs or []}) or rows
        places = ", ".join(self._shards.place("train", row) for row in found[:4])
        kept = checkpoints.last(self._work.checkpoints)
        left = f"the checkpoint {kept[0]} is as good as it was" if kept else "no checkpoint was saved before"
        return LossNotFinite(
            f"step {step + 1}: the loss or its gradient is not finite for {places}; nothing was learnt from it, and "
            f"{left}: lower learning_rate, or take precision fp32, or look at the text"
        )

    def _tell(self, step: int, loss: float, cost: Cost) -> None:
        assert self._record is not None
        seconds, steps = self._since
        self._since = seconds, steps = seconds + cost.seconds, steps + 1
        now_s = time.monotonic()
        if now_s - self._said_s < _SAY_EVERY_S and step < self._job.steps:
            return
        self._said_s = now_s
        joules = self._record.cost.energy_j
        spent = "energy unknown" if joules is None else f"{joules:.0f} J"
        left_s = seconds / steps * (self._job.steps - step)
        self._say(
            f"step {step} of {self._job.steps}: loss {loss:.4f}, {self._tokens * steps / seconds:.0f} tokens/s, "
            f"{spent}, about {left_s / 60:.1f} min left"
        )


def to_stderr(line: str) -> None:
    """One line of news, from a worker."""
    print(line, file=sys.stderr, flush=True)

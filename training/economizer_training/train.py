"""What each worker of a distillation does, from the last checkpoint to the last step."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from math import inf, isfinite, nan
from typing import Any

import torch
import torch.distributed as dist
from economizer.energy.meter import Meter
from transformers import AutoTokenizer

from economizer_training import checkpoints
from economizer_training.batches import PADDING, read_batch, scored
from economizer_training.compiling import compile_blocks, whether_to_compile
from economizer_training.learning import Learner, autocast, learner, load_fp32
from economizer_training.mesh import Workers, clip
from economizer_training.metered import Metered
from economizer_training.on_policy import OnPolicy, answer_opening, ends_of
from economizer_training.pacing import LOOK_EVERY_S, Clock, Lookout, Sight, SystemClock, gains
from economizer_training.record import Cost, Record, lines
from economizer_training.shards import Shards
from economizer_training.teachers import teachers_of
from economizer_training.work import EnergyUnknown, LossNotFinite, Work

_SAY_EVERY_S = 10.0

Say = Callable[[str], None]


def train(work: Work, workers: Workers, meter: Meter, say: Say, clock: Clock | None = None) -> None:
    """Goes on from the last checkpoint to the last step, or to where the settings end it early.

    What comes of it is the checkpoints and the metrics. ``clock`` is the one that pauses wait by. Raises Stopped in all
    workers, and TrainingError in the one that cannot go on.
    """
    job, shards = work.job, Shards.open(work.data)
    compiled = whether_to_compile(job, workers.device, say)
    student = load_fp32(work.student, job.freeze, workers.device)
    if compiled:
        compile_blocks(student)
    teachers = teachers_of(job, work.teacher, work.answers, workers, compiled)
    passes = learner(job, teachers, student, workers, shards.length)
    learning = [parameter for parameter in passes.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        learning,
        lr=job.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=job.weight_decay,
        # All at once, but not for parameters of which some are on another mesh than the others.
        foreach=job.mesh.tensor == 1 and workers.device.type != "cpu",
        fused=job.mesh.tensor == 1 and workers.device.type == "cpu",  # there a quarter of foreach's time
    )
    metered = Metered(meter, time.process_time)
    loop = _Loop(work, workers, shards, passes, learning, optimizer, metered, say, clock or SystemClock())
    step = loop.begin()
    ended = loop.ends_early(step)
    while step < job.steps and not ended:
        loop.pause(step)
        loop.step(step)
        step += 1
        if step % job.checkpoints.every_steps == 0 or step == job.steps:
            loop.save(step, loop.score(step))
            ended = loop.ends_early(step)


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
        clock: Clock,
    ) -> None:
        self._work, self._job, self._workers, self._shards = work, work.job, workers, shards
        self._passes, self._learning, self._optimizer, self._metered = passes, learning, optimizer, metered
        self._say, self._clock = say, clock
        self._record = Record(work.run) if workers.is_first else None
        pause = work.job.pause
        self._lookout = Lookout(pause.intensity(os.environ), clock) if pause and workers.is_first else None
        self._on_policy = _on_policy(work, workers, shards, passes.module) if work.job.loss.on_policy else None
        self._tokens = shards.length * work.job.batch
        self._since = 0.0, 0
        self._said_s = -inf
        self._saved = 0  # steps that the last checkpoint has behind it
        self._sight = Sight(g_per_kwh=None)

    def begin(self) -> int:
        """Takes up the last checkpoint, or scores what has learnt nothing yet; returns how many steps are done."""
        (), cost = self._totals([])
        if self._record is not None:
            self._record.add(cost)
        if self._job.early_stopping is not None and cost.energy_j is None:
            raise EnergyUnknown("early_stopping: joules are not known here: set meter, or leave early_stopping out")
        found = checkpoints.last(self._work.checkpoints)
        if found is None:
            self.score(0)
            return 0
        self._saved = checkpoints.load(found[0], self._passes.module, self._optimizer).step
        if self._record is not None:
            self._record.write("reloaded", step=self._saved)
            self._say(f"going on after step {self._saved} of {self._job.steps}")
        return self._saved

    def save(self, step: int, heldout_kl: float | None) -> None:
        """A checkpoint; without a KL it is one to go on from, not one to hand over."""
        state = checkpoints.State(step=step, heldout_kl=heldout_kl)
        keep_last = self._job.checkpoints.keep_last
        checkpoints.save(self._work.checkpoints, state, self._passes.module, self._optimizer, keep_last=keep_last)
        self._saved = step

    def ends_early(self, step: int) -> bool:
        """Whether the last scores gained too little for their joules: the first worker's record decides for all."""
        stopping = self._job.early_stopping
        if stopping is None or step == self._job.steps:
            return False
        gained = stopping.too_little(gains(lines(self._work.run))) if self._record is not None else []
        (ends,) = self._workers.total([len(gained)])
        if self._record is not None and gained:
            self._record.write("stopped_early", step=step, kl_per_kj=[round(gain, 6) for gain in gained])
            told = ", ".join(f"{gain:.4g}" for gain in gained)
            self._say(
                f"stopped early after step {step} of {self._job.steps}: the last scores gained {told} nats per kJ, "
                f"each under {stopping.kl_per_kj_min:g}"
            )
        return ends > 0

    def pause(self, step: int) -> None:
        """Waits while the first worker sees a grid that is too dirty; what was learnt is saved before."""
        if self._job.pause is None or not self._workers.total([self._dirty()])[0]:
            return
        if step > self._saved:
            self.save(step, None)
        (), cost = self._totals([])
        if self._record is not None:
            self._record.add(cost)  # until here it learnt
            self._record.write("paused", step=step, g_per_kwh=self._sight.g_per_kwh)
            told = f"{self._sight.g_per_kwh:g} g/kWh, above {self._job.pause.carbon_g_per_kwh_max:g}"
            self._say(f"paused after step {step}: the grid is at {told}")
        dirty = 1.0
        while dirty:
            self._clock.sleep(LOOK_EVERY_S)
            (dirty,), cost = self._totals([self._dirty()])
            if self._record is not None:
                self._record.add(cost.in_pause)
                self._record.write("paused" if dirty else "resumed", step=step, g_per_kwh=self._sight.g_per_kwh)
        if self._record is not None:
            waited = self._record.cost
            used = "energy unknown" if waited.paused_j is None else f"{waited.paused_j:.0f} J"
            self._say(f"going on after step {step}: pauses took {waited.paused_s / 60:.1f} min and {used} so far")

    def _dirty(self) -> float:
        """1 where this worker sees a grid that is too dirty; only the first one looks at it."""
        pause = self._job.pause
        if self._lookout is None or pause is None:
            return 0.0
        before, self._sight = self._sight, self._lookout.look()
        if self._sight.trouble not in (None, before.trouble):
            self._say(self._sight.trouble)
        return float(pause.is_above(self._sight.g_per_kwh))

    def step(self, step: int) -> None:
        """Learns from one batch. Raises LossNotFinite before it has any effect."""
        job, workers = self._job, self._workers
        rows = job.rows_of(step, self._shards.rows("train"))
        mine = workers.mine(rows)
        if self._on_policy is not None:
            batch = self._on_policy.read(step, mine)
            counts = max(1, round(workers.total([float(batch.counts.sum())])[0]))
        else:
            batch = read_batch(self._shards, "train", mine, workers.device)
            counts = max(1, int(scored(self._shards, "train", rows).sum()))
        self._optimizer.zero_grad(set_to_none=True)
        sums = self._passes.learn(batch, counts)
        norm = clip(self._learning, job.clip, workers)
        bad = [row for row, value in zip(mine, sums.tolist(), strict=True) if not isfinite(value)]
        (loss, total_norm), cost = self._totals([float(sums.sum()) / counts, norm])
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
        positions = int(scored(self._shards, "heldout", range(count)).sum())
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


def _on_policy(work: Work, workers: Workers, shards: Shards, student: Any) -> OnPolicy:
    tokenizer = AutoTokenizer.from_pretrained(work.teacher)
    return OnPolicy(
        shards,
        student,
        share=work.job.loss.on_policy,
        opening=answer_opening(tokenizer),
        ends=ends_of(student, tokenizer),
        device=workers.device,
        within=autocast(work.job, workers),
    )


def to_stderr(line: str) -> None:
    """One line of news, from a worker."""
    print(line, file=sys.stderr, flush=True)

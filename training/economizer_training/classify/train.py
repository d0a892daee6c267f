"""What each worker of a classifier does, and how well the classifier does then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from economizer_training.classify.model import Classifier, classifier, padded
from economizer_training.classify.order import batches, learning_rate_at
from economizer_training.classify.settings import Run
from economizer_training.errors import TrainingError

_SAY_EVERY_S = 20.0
_SCORED_AT_ONCE = 64

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the workers need: ids and class of each text, by number. ``out`` is the file that the classifier goes to."""

    run: Run
    seed: int
    encoder: Path
    ids: Sequence[Sequence[int]]
    targets: Sequence[int]
    classes: int
    out: Path


def learn(work: Work, *, rank: int, say: Say) -> None:
    """Learns as worker ``rank`` of the run's, which share each batch and the gradients; the first writes the weights.

    Raises TrainingError in all of them where a gradient is not finite.
    """
    run = work.run
    torch.manual_seed(work.seed)
    model = classifier(work.encoder, work.classes, run).train()
    torch.manual_seed(work.seed * run.workers + rank)  # what is dropped out is another on each worker
    module = DistributedDataParallel(model) if run.workers > 1 else model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=run.learning_rate, weight_decay=run.weight_decay, fused=True)
    steps = _steps(work)
    said_s = -inf
    for step, rows in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, len(steps), peak=run.learning_rate, warmup=run.warmup)
        loss = _loss(module, work, rows[rank :: run.workers])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, run.clip)
        if not norm.isfinite():
            raise TrainingError(f"step {step + 1}: the gradient is not finite: lower learning_rate, or take fp32")
        optimizer.step()
        if rank == 0 and (monotonic() - said_s > _SAY_EVERY_S or step + 1 == len(steps)):
            said_s = monotonic()
            say(f"step {step + 1} of {len(steps)}: loss {float(loss.detach()):.3f}")
    if rank == 0:
        torch.save(model.state_dict(), work.out)


def _steps(work: Work) -> list[list[int]]:
    run, lengths = work.run, [len(each) for each in work.ids]
    how: dict[str, Any] = {"batch": run.batch, "workers": run.workers, "by_length": run.by_length}
    return [
        rows for epoch in range(run.epochs) for rows in batches(lengths, seed=work.seed * run.epochs + epoch, **how)
    ]


def _loss(module: Any, work: Work, rows: Sequence[int]) -> Any:
    ids, mask = padded([work.ids[row] for row in rows])
    targets = torch.tensor([work.targets[row] for row in rows])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=work.run.precision == "bf16"):
        logits = module(ids, mask)
    return cross_entropy(logits.float(), targets)


@torch.no_grad()
def accuracy(work: Work, ids: Sequence[Sequence[int]], targets: Sequence[int]) -> float:
    """The share of texts whose class the written classifier finds, in single precision."""
    model: Classifier = classifier(work.encoder, work.classes, work.run).eval()
    model.load_state_dict(torch.load(work.out, weights_only=True))
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    right = 0
    for start in range(0, len(order), _SCORED_AT_ONCE):
        rows = order[start : start + _SCORED_AT_ONCE]
        found = model(*padded([ids[row] for row in rows])).argmax(-1)
        right += int((found == torch.tensor([targets[row] for row in rows])).sum())
    return right / len(ids)

"""One classifier from files to its accuracy, in a process of its own, which tells when each stage is done."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from economizer_compression.progress import say

from economizer_training.classify import text
from economizer_training.classify.model import tokenised
from economizer_training.classify.settings import Run
from economizer_training.classify.train import Work, accuracy, learn
from economizer_training.errors import TrainingError

STAGES = ("prepare", "train", "score")

Tell = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """What is made of what; ``folder`` is empty, and for this alone."""

    run: Run
    seed: int
    encoder: Path
    train: Path
    test: Path
    tokens_max: int
    folder: Path


def make_in_process(making: Making, connection: Connection) -> None:
    """``make`` at the other end of a connection: (stage, figures) for each, or ("failed", the reason)."""
    os.environ.pop("RAY_ADDRESS", None)  # the meter sees this machine alone
    try:
        make(making, lambda stage, figures: connection.send((stage, figures)))
    except TrainingError as error:
        connection.send(("failed", str(error)))
    finally:
        connection.close()


def make(making: Making, tell: Tell) -> None:
    """Prepares, learns and scores. Ray is imported only where it is used: no other run is to pay for it."""
    run = making.run
    train, test = text.read_pair(making.train, making.test)
    if run.preparation is not None:
        train, test = text.distinct(text.cleaned(train), run.preparation), text.cleaned(test)
    numbers = {name: number for number, name in enumerate(sorted(set(train.classes)))}
    work = Work(
        run=run,
        seed=making.seed,
        encoder=making.encoder,
        ids=tokenised(making.encoder, train.texts, making.tokens_max),
        targets=[numbers[name] for name in train.classes],
        classes=len(numbers),
        out=making.folder / "classifier.pt",
    )
    tell("prepare", {"texts": len(train.texts)})
    if run.workers > 1:
        from economizer_training.fit_ray import fit

        fit(_worker, work, workers=run.workers, gpu=False, restarts=0, storage=making.folder)
    else:
        learn(work, rank=0, say=say)
    tell("train", {})
    asked = tokenised(making.encoder, test.texts, making.tokens_max)
    tell("score", {"accuracy": accuracy(work, asked, [numbers[name] for name in test.classes])})


def _worker(config: dict[str, Any]) -> None:
    import ray.train

    context = ray.train.get_context()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
    learn(config["work"], rank=context.get_world_rank(), say=say)

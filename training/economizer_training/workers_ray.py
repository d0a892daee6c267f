"""The workers of a distillation on Ray Train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import get_device

from economizer_training.errors import TrainingError
from economizer_training.fit_ray import fit
from economizer_training.mesh import Workers
from economizer_training.metered import worker_meter
from economizer_training.train import to_stderr, train
from economizer_training.work import Stopped, Work

_STOPPED = "stopped.txt"  # why there is nothing to try again


def run_workers(work: Work) -> None:
    """Runs the job's workers to the last step, on the Ray that RAY_ADDRESS names or on one of its own.

    Workers that die are started again from the last checkpoint, ``restarts`` times. Raises TrainingError with the
    reason where they do not come to the end.
    """
    stopped = work.run / _STOPPED
    stopped.unlink(missing_ok=True)
    fit(
        _worker,
        work,
        workers=work.job.mesh.workers,
        gpu=work.job.gpu,
        restarts=work.job.restarts,
        storage=work.run,
    )
    if stopped.is_file():
        raise TrainingError(stopped.read_text(encoding="utf-8"))


def _worker(config: dict[str, Any]) -> None:
    work: Work = config["work"]
    device = get_device()
    here = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here))
    workers = Workers.join(work.job.mesh, device)
    meter = worker_meter(work.job.meter, device.type, here)
    try:
        train(work, workers, meter, to_stderr)
    except Stopped as error:
        # All workers stop with it, and would again: no failure, of which Ray would start them once more.
        if workers.is_first:
            Path(work.run / _STOPPED).write_text(str(error), encoding="utf-8")
    finally:
        meter.close()

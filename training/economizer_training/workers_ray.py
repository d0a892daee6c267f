"""The workers of a distillation on Ray Train: the one file that knows Ray."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from economizer_training.errors import TrainingError
from economizer_training.mesh import Workers
from economizer_training.train import LossNotFinite, Work, to_stderr, train, worker_meter

_STOPPED = "stopped.txt"  # why there is nothing to try again


def run_workers(work: Work) -> None:
    """Runs the job's workers to the last step, on the Ray that RAY_ADDRESS names or on one of its own.

    Workers that die are started again from the last checkpoint, ``restarts`` times. Raises TrainingError with the
    reason where they do not come to the end.
    """
    stopped = work.run / _STOPPED
    stopped.unlink(missing_ok=True)
    workers = work.job.mesh.workers
    if not ray.is_initialized():
        own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers + 1, "include_dashboard": False}
        ray.init(**own, log_to_driver=True, logging_level="warning")
    try:
        TorchTrainer(
            _worker,
            train_loop_config={"work": work},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=work.job.gpu, resources_per_worker={"CPU": 1}),
            torch_config=TorchConfig(backend="nccl" if work.job.gpu else "gloo"),
            run_config=RunConfig(
                name="ray",
                storage_path=str(work.run),
                failure_config=FailureConfig(max_failures=work.job.restarts),
            ),
        ).fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"the workers failed and are not started again: {reason(str(error))}") from None
    finally:
        ray.shutdown()
    if stopped.is_file():
        raise TrainingError(stopped.read_text(encoding="utf-8"))


def _worker(config: dict[str, Any]) -> None:
    work: Work = config["work"]
    device = get_device()
    here = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here))
    workers = Workers.join(work.job.mesh, device)
    meter = worker_meter(work, device, here)
    try:
        train(work, workers, meter, to_stderr)
    except LossNotFinite as error:
        # All workers stop with it, and would again: no failure, of which Ray would start them once more.
        if workers.is_first:
            Path(work.run / _STOPPED).write_text(str(error), encoding="utf-8")
    finally:
        meter.close()


def reason(text: str) -> str:
    """Of what Ray tells of all its workers: a TrainingError's message, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ours = [line.partition("TrainingError: ")[2] for line in lines if "TrainingError: " in line]
    return [*ours, *lines[-1:], "no message"][0][:500]

"""Workers started by Ray Train, as torch's processes: what a distillation and a classifier have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from economizer_training.errors import TrainingError

# glibc gives large blocks back to the system, and each step asks for the same ones again: on a CPU a tenth of it goes
# to faults of their pages. So one heap for all, that is kept: glibc reads this at a process's start (mallopt(3)).
KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}


def fit(
    loop: Callable[[dict[str, Any]], None], work: object, *, workers: int, gpu: bool, restarts: int, storage: Path
) -> None:
    """Runs ``loop({"work": work})`` in each worker, on the Ray that RAY_ADDRESS names or on one of its own.

    Workers that die are started again ``restarts`` times. Raises TrainingError with the reason where they do not come
    to the end.
    """
    if not ray.is_initialized():
        own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers + 1, "include_dashboard": False}
        ray.init(**own, log_to_driver=True, logging_level="warning")
    try:
        TorchTrainer(
            loop,
            train_loop_config={"work": work},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": 1}),
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            run_config=RunConfig(
                name="ray",
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=restarts),
                worker_runtime_env={"env_vars": _environment()},
            ),
        ).fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"the workers failed and are not started again: {reason(str(error))}") from None
    finally:
        ray.shutdown()


def _environment() -> dict[str, str]:
    """What workers' processes begin with; the user's own settings go before ours."""
    return {name: os.environ.get(name, value) for name, value in KEEP_FREED_MEMORY.items()}


def reason(text: str) -> str:
    """Of what Ray tells of all its workers: a TrainingError's message, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ours = [line.partition("TrainingError: ")[2] for line in lines if "TrainingError: " in line]
    return [*ours, *lines[-1:], "no message"][0][:500]

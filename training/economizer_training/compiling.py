"""Blocks of a model compiled by torch (Inductor), for fewer passes over memory. On a CPU that needs a C++ compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from economizer_training.distillation import Distillation
from economizer_training.errors import TrainingError

Say = Callable[[str], None]


def whether_to_compile(job: Distillation, device: torch.device, say: Say) -> bool:
    """What ``job.compile`` comes to on this machine. Raises TrainingError where it must compile and cannot."""
    wanted = job.compile if job.compile != "auto" else job.can_compile
    if not wanted:
        return False
    trouble = _trouble(device)
    if trouble is None:
        return True
    if job.compile is True:
        raise TrainingError(f"compile: true: torch cannot compile here, set it to auto or false: {trouble}")
    say(f"not compiled, which is slower: {trouble}")
    return False


def compile_blocks(model: Any) -> None:
    """Each of a transformers model's blocks when it is first called: seconds for the first, whose code others take."""
    blocks = set(model._no_split_modules)
    for module in model.modules():
        if type(module).__name__ in blocks:
            module.compile(dynamic=False)


def _trouble(device: torch.device) -> str | None:
    """Why torch does not compile here, None where it does: tried with a trifle, since compilers fail in many ways."""
    torch._inductor.config.compile_threads = 1  # else helpers of its own, which outlive a worker that is killed
    try:
        torch.compile(lambda values: values.exp() + 1)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001  # whatever the compiler fails with
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None

"""Which releases and which hardware a variant was made with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_NVIDIA = Path("/proc/driver/nvidia/gpus")
_PACKAGES = ("economizer", "llmcompressor", "compressed-tensors", "transformers", "torch", "gptqmodel")


def versions() -> dict[str, str]:
    """The releases that a manifest names."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """The machine in words: CPU model, the cores that this process may use, and the GPUs."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    words = [models[0] if models else os.uname().machine, f"{cores} core{'s' * (cores != 1)}", *gpu_names()]
    return ", ".join(words)


def gpu_names() -> list[str]:
    """The GPUs that torch sees, or where it is a build without CUDA those that the driver knows."""
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    informed = (line for file in sorted(_NVIDIA.glob("*/information")) for line in _lines(str(file)))
    return [line.partition(":")[2].strip() for line in informed if line.startswith("Model:")]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []

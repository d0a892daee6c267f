"""Builds the stand-in for NVIDIA's library. See nvml.c for what its file says."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_name("nvml.c")


def build(folder: Path) -> dict[str, str]:
    """Compile it into ``folder``; the environment in which a process loads it as NVML, with ``folder/machine`` as its
    machine. Skips the test where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc): the stand-in for NVML cannot be built")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, _SOURCE], check=True)
    return os.environ | {"LD_LIBRARY_PATH": str(folder), "NVML_STAND_IN": str(folder / "machine")}

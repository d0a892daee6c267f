"""Makes what Economizer runs in: three virtual environments below the checkout, and the embedded models.

python3 deploy/environment.py [gateway] [engine] [compression] [models] [peers]

Without a part it makes all but the peers, which `make bench-peers` alone needs. What is there already, and made from
the same lock, is left alone. It runs on the system's own Python with its standard library alone; the environments get
the Python that runs it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".economizer"
MODELS = STATE / "models"
STAMP = "economizer-stamp.txt"

DEFAULT_PARTS = ("gateway", "engine", "compression", "models")
PARTS = (*DEFAULT_PARTS, "peers")
PYTHONS = ((3, 11), (3, 12), (3, 13))
TORCH_INDEX_VARIABLE = "ECONOMIZER_TORCH_INDEX_URL"
GIB = 2**30

MODELS_DISK_GIB = 1
MODELS_MEMORY_GIB = 2
BASE_MODEL = "smollm2-135m-instruct"
INT8_MODEL = "smollm2-135m-instruct-w8a8"
FAMILY = "smollm2-135m"


class Environment(NamedTuple):
    """One virtual environment: where it lies, its lock, whether Economizer is in it, the disk that making it takes."""

    name: str
    folder: Path
    lock: Path
    imports_economizer: bool
    disk_gib: float


class SetupError(Exception):
    """Why the set-up cannot go on, and what to do about it."""


class Steps:
    """Says each step with the time since the start."""

    def __init__(self) -> None:
        self.started_s = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started_s:5.1f} s] {text}", flush=True)


def main(arguments: list[str]) -> int:
    unknown = sorted(set(arguments) - set(PARTS))
    if unknown:
        print(f"setup: unknown part {unknown[0]!r}; the parts are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    try:
        continue_on_supported_python(arguments)
        refuse_other_systems()
        steps = Steps()
        with only_one_at_a_time(steps):
            make_parts([part for part in PARTS if part in (arguments or DEFAULT_PARTS)], steps)
    except SetupError as failure:
        print(f"setup: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; the next call makes the unfinished part anew", file=sys.stderr)
        return 130
    return 0


def make_parts(parts: list[str], steps: Steps) -> None:
    for part in parts:
        if part == "models":
            make_models(steps)
        else:
            make_environment(environment_of(part), steps)


def environment_of(part: str) -> Environment:
    locks = ROOT / "deploy" / "locks"
    if part == "gateway":
        return Environment(part, ROOT / ".venv", locks / "gateway.txt", imports_economizer=True, disk_gib=1)
    if part == "compression":
        folder = ROOT / ".venvs" / "compression"
        return Environment(part, folder, locks / "compression.txt", imports_economizer=True, disk_gib=3)
    if part == "peers":
        folder = ROOT / ".venvs" / "peers"
        return Environment(part, folder, locks / "peers.txt", imports_economizer=False, disk_gib=1)
    folder = ROOT / ".venvs" / "engine"
    if has_nvidia_gpu():
        return Environment(part, folder, locks / "engine-gpu.txt", imports_economizer=False, disk_gib=25)
    return Environment(part, folder, locks / "engine-cpu.txt", imports_economizer=False, disk_gib=4)


def has_nvidia_gpu() -> bool:
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


# ---- environments


def make_environment(environment: Environment, steps: Steps) -> None:
    """Brings one environment to what its lock says.

    The stamp is removed before the first change and written after the last, so an environment without one was left
    unfinished, and is made anew. One with the stamp of another lock is changed in place.
    """
    stamp = environment.folder / STAMP
    wanted = stamp_text(environment)
    found = stamp.read_text() if stamp.exists() and python_of(environment).exists() else ""
    if found == wanted:
        return
    require_disk(environment.name, environment.disk_gib)
    in_place = found.startswith(f"{ROOT}\n")
    if in_place:
        stamp.unlink()
        remove_unlocked(environment, steps)
    else:
        create(environment, steps)
    install(environment, steps)
    stamp.write_text(wanted)
    steps.say(f"{environment.name} environment: ready")


def stamp_text(environment: Environment) -> str:
    """Where and from what an environment is made; the place counts, since its scripts hold absolute paths."""
    sources = [environment.lock]
    if environment.imports_economizer:
        sources.append(ROOT / "pyproject.toml")
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()
    return f"{ROOT}\n{digest}\n"


def python_of(environment: Environment) -> Path:
    return environment.folder / "bin" / "python"


def create(environment: Environment, steps: Steps) -> None:
    steps.say(f"{environment.name} environment: creating {environment.folder.relative_to(ROOT)}")
    shutil.rmtree(environment.folder, ignore_errors=True)
    run(environment.name, [sys.executable, "-m", "venv", str(environment.folder)])


def remove_unlocked(environment: Environment, steps: Steps) -> None:
    """Uninstalls what the lock no longer has, before its successor comes: two packages may own the same files."""
    listing = [str(python_of(environment)), "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    installed = package_names(subprocess.run(listing, check=True, capture_output=True, text=True).stdout)
    locked = package_names(environment.lock.read_text())
    surplus = sorted(installed - locked - {"pip", "setuptools", "economizer"})
    if surplus:
        steps.say(f"{environment.name} environment: removing {', '.join(surplus)}")
        run(environment.name, [str(python_of(environment)), "-m", "pip", "uninstall", "--yes", *surplus])


def install(environment: Environment, steps: Steps) -> None:
    """Installs the lock as it is: without dependencies, because the lock is complete and leaves some out on purpose."""
    count = len(package_names(environment.lock.read_text()))
    steps.say(f"{environment.name} environment: installing {count} packages")
    pip = [str(python_of(environment)), "-m", "pip", "install", "--no-deps", "--no-input", "--progress-bar", "off"]
    pip.append("--disable-pip-version-check")
    torch_index_url = os.environ.get(TORCH_INDEX_VARIABLE)
    index = ["--extra-index-url", torch_index_url] if torch_index_url else []
    run(environment.name, [*pip, *index, "--only-binary", ":all:", "--requirement", str(environment.lock)])
    if environment.imports_economizer:
        run(environment.name, [*pip, "--no-build-isolation", "--editable", str(ROOT)])


def package_names(pins: str) -> set[str]:
    """The normalised names in lines of `name==version`."""
    names = (line.partition("==")[0].strip() for line in pins.splitlines() if "==" in line and line[0] != "#")
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


# ---- models


def make_models(steps: Steps) -> None:
    base, int8 = MODELS / BASE_MODEL, MODELS / INT8_MODEL
    if base.exists() and int8.exists():
        return
    compression = environment_of("compression")
    if not (compression.folder / STAMP).exists():
        raise SetupError("the models are made in the compression environment: name the part `compression` too")
    require_disk("models", MODELS_DISK_GIB)
    require_memory("models", MODELS_MEMORY_GIB)
    python = str(python_of(compression))
    if not base.exists():
        steps.say(f"models: unpacking {BASE_MODEL}")
        run("models", [python, "-m", "economizer_compression.export", "--out", str(base)])
    if not int8.exists():
        steps.say(f"models: quantising {INT8_MODEL}")
        made = ["run", "int8-rtn", "--model", str(base), "--out", str(int8), "--family", FAMILY, "--variant", "int8"]
        run("models", [python, "-m", "economizer_compression.cli", *made])
    steps.say("models: ready")


# ---- commands and their failures


def run(part: str, command: list[str]) -> None:
    """Runs a command with its output in a log; raises SetupError with the log's end and advice when it fails."""
    log = STATE / "setup" / f"{part}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        # Models are small: more threads than cores, torch's default on some machines, only slow them down.
        settings = {"OMP_NUM_THREADS": str(min(4, os.cpu_count() or 1)), "HF_HUB_OFFLINE": "1"}
        env = {**os.environ, **settings}
        # close_fds=False: a command that outlives a killed set-up goes on holding the lock of only_one_at_a_time.
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=env, close_fds=False)
    if done.returncode == 0:
        return
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    print(tail, file=sys.stderr)
    raise SetupError(f"{part} failed (exit code {done.returncode}). {advice(tail)} The whole output is in {log}.")


def advice(output: str) -> str:
    """What to do about a failed command, by what its output says; the network first, since other errors follow it."""
    if re.search(r"NewConnectionError|ConnectTimeoutError|NameResolutionError|No route to host|ProxyError", output):
        return (
            "The package index cannot be reached: check the network, the proxy settings and pip's index settings, "
            "then run the same command again."
        )
    if re.search(r"CERTIFICATE_VERIFY_FAILED|SSLError", output):
        return "The package index's certificate is not trusted: give pip your certificate bundle in PIP_CERT."
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing:
        return no_wheel_advice(missing.group(1))
    if "No space left on device" in output:
        return "The disk is full: free some space, also where TMPDIR points, since pip unpacks there."
    if "ensurepip is not available" in output:
        return "Python's venv module is incomplete: install it (on Debian and Ubuntu the package python3-venv)."
    if re.search(r"MemoryError|Killed|Cannot allocate memory", output):
        return "The memory did not suffice: end other programs and run the same command again."
    return "Run the same command again; if it fails the same way, the lines above say where."


def no_wheel_advice(requirement: str) -> str:
    machine = f"{platform.system()} {platform.machine()} with Python {platform.python_version()}"
    sentence = f"pip's index has no build of {requirement} for {machine}."
    if requirement.startswith("torch==") and "+cpu" in requirement:
        return (
            f"{sentence} torch's CPU builds are in PyTorch's own wheel index: give its address in "
            f"{TORCH_INDEX_VARIABLE}, or as extra-index-url in pip's settings."
        )
    supported = ", ".join(f"{major}.{minor}" for major, minor in PYTHONS)
    return f"{sentence} The locks are made for Linux on x86_64 and aarch64 with Python {supported}."


# ---- what the machine must have


def continue_on_supported_python(arguments: list[str]) -> None:
    """Returns on a supported Python; elsewhere runs this again on the first supported one found on PATH."""
    if sys.version_info[:2] in PYTHONS:
        return
    for major, minor in PYTHONS:
        python = shutil.which(f"python{major}.{minor}")
        # A version manager may have the name on PATH without the interpreter.
        if python and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            os.execv(python, [python, str(Path(__file__).resolve()), *arguments])
    raise SetupError(
        f"Python {platform.python_version()} is not supported, and neither python3.11, python3.12 nor python3.13 is "
        "on PATH: install one of them."
    )


def refuse_other_systems() -> None:
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise SetupError(
            f"{platform.system()} on {platform.machine()} is not supported: vLLM and Ray's HAProxy are published for "
            "Linux on x86_64 and aarch64. Use such a machine or a container."
        )


def require_disk(part: str, needed_gib: float) -> None:
    free_gib = shutil.disk_usage(ROOT).free / GIB
    if free_gib < needed_gib:
        raise SetupError(f"{part} needs {needed_gib:g} GiB of disk below {ROOT}, and {free_gib:.1f} GiB are free.")


def require_memory(part: str, needed_gib: float) -> None:
    meminfo = Path("/proc/meminfo").read_text()
    available_gib = int(re.findall(r"MemAvailable:\s+(\d+) kB", meminfo)[0]) * 1024 / GIB
    if available_gib < needed_gib:
        raise SetupError(f"{part} needs {needed_gib:g} GiB of memory, and {available_gib:.1f} GiB are available.")


@contextmanager
def only_one_at_a_time(steps: Steps) -> Iterator[None]:
    """Waits for another set-up of this checkout, say of `make run` beside `make test`, to end."""
    STATE.mkdir(exist_ok=True)
    with (STATE / "setup.lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            steps.say("waiting for another set-up of this checkout to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

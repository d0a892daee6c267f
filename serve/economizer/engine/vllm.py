"""A spec, a name and an address -> the words and the environment that an engine is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from economizer.engine.types import EngineSpec

_GATE_FOLDER = Path(__file__).parent / "gate"

# A Ray worker's environment carries Ray's own settings, thread counts that follow Ray's bookkeeping, and an import
# path; none of them is meant for an engine, which often runs in another Python. VLLM_PORT is what Kubernetes sets
# beside a service named vllm, and is not a port. A spec's own ``env`` may set any of them again.
_DROPPED_PREFIXES = ("RAY_", "ECONOMIZER_", "SERVE_", "PYTHON")
_DROPPED = frozenset(
    {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VLLM_API_KEY", "VLLM_PORT", "VIRTUAL_ENV"}
)
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A command and its whole environment, which holds the secret; the command's words do not."""

    command: tuple[str, ...]
    env: Mapping[str, str]


def launch(spec: EngineSpec, *, name: str, host: str, port: int, secret: str, inherited: Mapping[str, str]) -> Launch:
    """How to start the engine of ``spec`` so that it serves ``name`` at ``host:port`` to those who know ``secret``.

    ``inherited`` is the environment of the process that starts it. CUDA_VISIBLE_DEVICES passes: Ray sets it to the
    GPUs that the replica was given.
    """
    env = {key: value for key, value in inherited.items() if _passes(key)}
    if spec.command:
        values = {"host": host, "port": str(port), "model": spec.model, "name": name}
        return Launch(
            command=tuple(_filled(word, values) for word in spec.command),
            env={**env, **_QUIET, **spec.env, "ECONOMIZER_ENGINE_SECRET": secret},
        )
    return Launch(
        command=_vllm_command(spec, name=name, host=host, port=port),
        env={**env, **_QUIET, **_vllm_env(spec, secret)},
    )


def _passes(key: str) -> bool:
    return key not in _DROPPED and not key.startswith(_DROPPED_PREFIXES) and not key.startswith("__RAY")


def _filled(word: str, values: Mapping[str, str]) -> str:
    # Not str.format: a word may hold other braces, a JSON argument's for example.
    for key, value in values.items():
        word = word.replace("{" + key + "}", value)
    return word


def _vllm_command(spec: EngineSpec, *, name: str, host: str, port: int) -> tuple[str, ...]:
    # vLLM logs no prompts unless --enable-log-requests asks for it.
    return (
        *(spec.python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", spec.model, "--served-model-name", name),
        *("--host", host, "--port", str(port)),
        *("--middleware", "economizer_gate.Gate"),
        "--enable-prompt-tokens-details",
        "--disable-uvicorn-access-log",
        *spec.args,
    )


def _vllm_env(spec: EngineSpec, secret: str) -> dict[str, str]:
    env = {"HF_HUB_OFFLINE": "1"} if Path(spec.model).is_dir() else {}
    # Without PYTHONSAFEPATH the working directory would come first on the import path, whatever lies in it.
    env |= {"PYTHONSAFEPATH": "1", **spec.env, "VLLM_API_KEY": secret}
    path = (str(_GATE_FOLDER), env["PYTHONPATH"]) if env.get("PYTHONPATH") else (str(_GATE_FOLDER),)
    return {**env, "PYTHONPATH": ":".join(path)}

"""Starts and ends the engine that serves a checkpoint, and says what it used.

The engine runs in its own environment with the arguments and variables that the gateway gives it. Two things differ:
it stands behind an API key alone, and its output goes to a file.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from economizer.energy.choose import MeterSettings

from economizer_compression import processes
from economizer_compression.errors import CompressionError
from economizer_compression.tether import tethered

Progress = Callable[[str], None]

_HOST = "127.0.0.1"
_GRACE_S = 5.0
_LINES_SHOWN = 30
_TOLD_EVERY_S = 10.0
_POLL_S = 0.1
_TAIL_BYTES = 1 << 18
# As the gateway does: what this environment sets for itself is not meant for the engine's.
_DROPPED_PREFIXES = ("RAY_", "ECONOMIZER_", "SERVE_", "PYTHON", "__RAY")
_DROPPED = frozenset(
    {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VLLM_API_KEY", "VLLM_PORT", "VIRTUAL_ENV"}
)
_OWN_ENV = {
    **{"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"},
    **{"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"},
}
_LOG_PREFIX = re.compile(r"^(\([^)]*\) )?([A-Z]+ [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
_ERROR = re.compile(r"^((\w+\.)*[A-Z]\w*(Error|Exception)|\S+\.py: error)\b: ")
_POINTS_ELSEWHERE = ("see root cause above", "see stack trace")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """How engines are started, variants and full model alike.

    ``python`` is the interpreter of the engine's environment, ``args`` and ``env`` are those that serve. ``meter``
    says how an engine's energy is measured, ``gpus`` how many GPUs it takes, and ``gpu_idle_w`` what these draw without
    work in watts; None is not known. Two engines run at the same time: on a GPU ``args`` must give each less than half
    of its memory.
    """

    python: Path
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 600.0
    gpus: int = 0
    gpu_idle_w: float | None = None
    meter: MeterSettings = field(default_factory=MeterSettings)

    def __post_init__(self) -> None:
        if self.start_timeout_s <= 0:
            raise ValueError(f"start_timeout_s is {self.start_timeout_s}: must be above 0")


class Engine:
    """An engine on a checkpoint folder, ready inside its ``with`` block and gone, with all its processes, after it.

    Entering raises CompressionError with the engine's own reason when it does not become ready. It also ends when this
    process does, SIGKILL included.
    """

    def __init__(
        self,
        folder: Path,
        settings: EngineSettings,
        *,
        name: str | None = None,
        log: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.name = name or folder.name
        self.cold_start_s = 0.0
        self.version = ""
        self.context_tokens = 0
        self._log = log
        self._progress = progress
        self._secret = secrets.token_urlsafe(32)
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._own_log = log is None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{_HOST}:{self._port}"

    @property
    def headers(self) -> dict[str, str]:
        """What a request must carry to be taken."""
        return {"authorization": f"Bearer {self._secret}"}

    @property
    def pid(self) -> int:
        """The process that the engine's tree hangs from, which is also the number of their process group."""
        if self._process is None:
            raise CompressionError(f"{self.name}: the engine is not running")
        return self._process.pid

    def memory_bytes(self) -> int:
        """The proportional set size of the engine's processes now."""
        return processes.memory_bytes(self.pid)

    def __enter__(self) -> Engine:
        if not self.folder.is_dir():
            raise CompressionError(f"{self.folder} is no folder: an engine serves a checkpoint's folder")
        try:
            self._start()
            self._wait_until_ready()
            self.version = f"vllm {self._get('/version')['version']}"
            self.context_tokens = int(self._get("/v1/models")["data"][0]["max_model_len"])
        except BaseException:
            self.close()
            raise
        self._tell(f"{self.name}: engine ready in {self.cold_start_s:.1f} s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process tree: SIGTERM, 5 s, SIGKILL. Does nothing where it has ended."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_GRACE_S + 5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if self._own_log and self._log is not None:
            self._log.unlink(missing_ok=True)
            self._log = None

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            self._port = probe.getsockname()[1]
        if self._log is None:
            handle, path = tempfile.mkstemp(prefix="engine-", suffix=".log")
            os.close(handle)
            self._log = Path(path)
        env = engine_env(self.settings.env, os.environ) | {"VLLM_API_KEY": self._secret}
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                tethered(self._command(), grace_s=_GRACE_S),
                env=env,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _command(self) -> list[str]:
        return [
            *(str(self.settings.python), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(self.folder), "--served-model-name", self.name),
            *("--host", _HOST, "--port", str(self._port)),
            *("--enable-prompt-tokens-details", "--disable-uvicorn-access-log"),
            *self.settings.args,
        ]

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        began_s = told_s = time.monotonic()
        with httpx.Client(timeout=2, verify=False, trust_env=False) as client:
            while not _is_healthy(client, f"{self.url}/health"):
                now_s = time.monotonic()
                if (code := self._process.poll()) is not None:
                    raise CompressionError(self.failure(f"it ended with code {code} before it was ready"))
                if now_s - began_s > self.settings.start_timeout_s:
                    raise CompressionError(self.failure(f"it was not ready in {self.settings.start_timeout_s:g} s"))
                if now_s - told_s >= _TOLD_EVERY_S:
                    told_s = now_s
                    last = (self._lines() or [""])[-1]
                    self._tell(f"{self.name}: engine starting for {now_s - began_s:.0f} s: {_LOG_PREFIX.sub('', last)}")
                time.sleep(_POLL_S)
        self.cold_start_s = time.monotonic() - began_s

    def failure(self, otherwise: str) -> str:
        """What to tell of an engine that failed: its own reason, else ``otherwise``, and its last lines."""
        lines = self._lines()
        reason = engine_reason(lines) or otherwise
        where = "" if self._own_log else f" ({self._log})"
        last = "\n".join(lines[-_LINES_SHOWN:])
        return f"the engine does not serve {self.folder}: {reason}\nIts last lines{where}:\n{last}"

    def _lines(self) -> list[str]:
        assert self._log is not None
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
        return [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]

    def _get(self, path: str) -> Any:
        with httpx.Client(timeout=30, verify=False, trust_env=False) as client:
            return client.get(self.url + path, headers=self.headers).raise_for_status().json()

    def _tell(self, text: str) -> None:
        if self._progress is not None:
            self._progress(text)


def engine_env(own: Mapping[str, str], inherited: Mapping[str, str]) -> dict[str, str]:
    """An engine's environment: what may pass of ``inherited``, then quiet and offline, then its ``own`` variables."""
    passed = {k: v for k, v in inherited.items() if k not in _DROPPED and not k.startswith(_DROPPED_PREFIXES)}
    return {**passed, **_OWN_ENV, **own}


def engine_reason(lines: Sequence[str]) -> str | None:
    """The error that made an engine give up, as its log names it, in one line.

    The last exception counts, since the earlier ones were caught, but not one that points to the cause above it. What
    pydantic found, and the first of several reasons, stand on the line after it.
    """
    texts = [_LOG_PREFIX.sub("", line) for line in lines]
    for at in reversed(range(len(texts))):
        text = texts[at].strip()
        if _ERROR.match(text) and not any(words in text.lower() for words in _POINTS_ELSEWHERE):
            more = texts[at + 1 : at + 2] if "validation error" in text or text.endswith(":") else []
            return " ".join([text, *(line.strip() for line in more)])
    return None


def _is_healthy(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).status_code == 200
    except httpx.HTTPError:
        return False

"""A fleet of fake engines on real Ray Serve, brought up and ended the way a user does it: ``economizer up FILE``."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from economizer.config import AUTOSCALING_POLICY, IMPORT_PATH
from economizer.engine.guard import descendants
from replies import Caller

HERE = Path(__file__).parent
START_S = 240.0
END_S = 60.0
PRICES = {
    "cpu": {"usd_per_hour": 0.1, "carbon_g_per_kwh": 400, "source": "assumed"},
    "spot": {"usd_per_hour": 0.01, "carbon_g_per_kwh": 400, "source": "assumed"},
    "gpu": {"usd_per_hour": 2.0, "carbon_g_per_kwh": 400, "source": "assumed"},
}


def variant(*arguments: str, engine: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A variant as it is written in YAML; ``arguments`` are words of its fake engine's command line."""
    command = [sys.executable, str(HERE / "fake_engine.py"), "--host", "{host}", "--port", "{port}", "--name", "{name}"]
    return {
        "hardware": "cpu",
        "context_tokens_max": 2048,
        "engine": {
            "command": [*command, *arguments],
            "drain_timeout_s": 60,
            "restart_backoff_s": 0.2,
            **(engine or {}),
        },
        "quality": {"score": 1.0, "source": "assumed"},
        "speed": {"prefill_tokens_per_s": 5000, "decode_tokens_per_s": {1: 200, 16: 1600}, "source": "assumed"},
        "power": {"active_w": 20, "source": "assumed"},
        "ray": {"num_cpus": 0.1},
        **fields,
    }


def configuration(families: Mapping[str, Any], **gateway: Any) -> dict[str, Any]:
    """A whole Serve config on a free port."""
    return {
        "http_options": {"host": "127.0.0.1", "port": free_port()},
        "applications": [
            {
                "name": "economizer",
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "autoscaling_policy": {"policy_function": AUTOSCALING_POLICY},
                "args": {"prices": PRICES, "gateway": gateway, "families": dict(families)},
            }
        ],
    }


def _ledger_of_its_own(file: Path, content: Mapping[str, Any]) -> Path:
    """Beside the file, where the configuration names no other; the path of its database."""
    settings = content["applications"][0]["args"].setdefault("ledger", {})
    folder = file.parent / f"{file.stem}-ledger"
    if settings is not None:
        settings.setdefault("url", f"sqlite:///{folder / 'ledger.db'}")
        settings.setdefault("spool", str(folder / "spool"))
    return folder / "ledger.db"


def free_port() -> int:
    """A port of loopback that nobody listens on, and that no connection gets before the fleet listens on it."""
    while True:
        port = random.randrange(32_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass(frozen=True)
class FakeEngine:
    """A fake engine's process, found by its command line."""

    pid: int
    name: str
    port: int

    def metrics(self) -> dict[str, float]:
        """The values on its metrics page, by name without labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    @property
    def requests(self) -> float:
        """How many requests have reached it."""
        return self.metrics()["fake:requests_total"]

    @property
    def aborted(self) -> float:
        """How many requests it stopped working on because their caller went away."""
        return self.metrics()["fake:aborted_total"]

    @property
    def secret(self) -> str:
        """What it asks for, read from its environment."""
        return _environment(self.pid)["ECONOMIZER_ENGINE_SECRET"]


class Fleet:
    """A running ``economizer up FILE``, or another command that comes to the same."""

    def __init__(self, file: Path, content: Mapping[str, Any], command: Sequence[str] | None = None) -> None:
        self.file = file
        self.content = content
        self.ledger = _ledger_of_its_own(file, content)
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        self.url = f"http://127.0.0.1:{content['http_options']['port']}"
        self.families: Mapping[str, Any] = content["applications"][0]["args"]["families"]
        self._output: list[str] = []
        self._up = subprocess.Popen(
            command or [sys.executable, "-m", "economizer.cli", "up", str(file)],
            cwd=HERE.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._up.stdout is not None
        self._output += iter(self._up.stdout)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return "".join(self._output)

    def wait_until_ready(self) -> None:
        """Until it says so."""
        until(lambda: "ready at " in self.output or self._up.poll() is not None, START_S, lambda: self.output)
        assert self._up.poll() is None, self.output

    @property
    def folder(self) -> Path:
        """Where Ray's logs and sockets are."""
        return Path(self._said(r"its logs are in (\S+)"))

    @property
    def dashboard(self) -> str:
        """The URL that ``serve deploy`` and ``serve status`` talk to."""
        return self._said(r"dashboard is at (http://\S+),")

    def _said(self, pattern: str) -> str:
        found = re.search(pattern, self.output)
        assert found is not None, self.output
        return found.group(1)

    def rewrite(self, families: Mapping[str, Any]) -> None:
        """Write other families into the file, for ``serve deploy``."""
        (application,) = self.content["applications"]
        application = {**application, "args": {**application["args"], "families": dict(families)}}
        self.content = {**self.content, "applications": [application]}
        self.families = families
        self.file.write_text(yaml.safe_dump(self.content, sort_keys=False))

    def end(self) -> tuple[int, list[str]]:
        """SIGINT, as Ctrl-C sends it; returns the exit code and the command lines of processes that are left."""
        mine = {pid: _command_line(pid) for pid in self.processes()}
        folder = self.folder
        os.killpg(self._up.pid, signal.SIGINT)
        code = self._up.wait(END_S)
        self._reader.join(5)
        for _ in range(50):  # a killed process takes the kernel a moment
            left = [line for pid, line in mine.items() if _command_line(pid) == line]
            left += [_command_line(pid) for pid in _all_processes() if str(folder) in _command_line(pid)]
            if not left:
                break
            time.sleep(0.2)
        return code, left

    def kill(self) -> None:
        """End it at once, where a test could not wait for the end."""
        if self._up.poll() is None:
            self._up.kill()

    def processes(self) -> list[int]:
        """Every process that it has started."""
        return list(descendants(self._up.pid))

    def engines(self, name: str = "") -> list[FakeEngine]:
        """The fake engines that run now, of one variant or of all, by port."""
        found = []
        for pid in self.processes():
            words = _command_line(pid).split("\0")
            if len(words) > 2 and words[1].endswith("fake_engine.py"):
                engine = FakeEngine(pid, words[words.index("--name") + 1], int(words[words.index("--port") + 1]))
                if name in ("", engine.name):
                    found.append(engine)
        return sorted(found, key=lambda engine: engine.port)

    def replica_process(self, engine: FakeEngine) -> int:
        """The Serve replica that an engine runs below: the first ancestor that is a Ray worker."""
        pid = engine.pid
        while "ray::" not in _command_line(pid):
            pid = _parent(pid)
            assert pid > 1, f"{engine} has no Ray worker above it"
        return pid

    def serve(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``serve ...`` against this fleet's Ray."""
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = [sys.executable, "-m", "ray.serve.scripts", *words, "--address", self.dashboard]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    def economizer(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``economizer ...``."""
        command = [sys.executable, "-m", "economizer.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def logs(self) -> Iterator[tuple[Path, bytes]]:
        """Every file that Ray, Serve and HAProxy keep below the folder, logs above all."""
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                yield path, path.read_bytes()

    @asynccontextmanager
    async def caller(self, key: str = "sk-canary-key") -> AsyncIterator[Caller]:
        """Someone who calls it."""
        session = aiohttp.ClientSession(
            self.url,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=120),
            auto_decompress=False,
        )
        async with session:
            yield Caller(session, key)


def until(
    holds: Callable[[], object], timeout_s: float = 30.0, why: Callable[[], object] = lambda: "it never came true"
) -> None:
    """Poll until something holds; fails saying why it should have."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, why()
        time.sleep(0.1)


def exists(pid: int) -> bool:
    """The process has not ended."""
    return bool(_command_line(pid))


def _all_processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])

"""What is measured: Economizer with and without books, and the bare pass-through, on one Ray Serve, engines behind
them, and an engine alone.

``economizer up`` starts it, the way that a user would; the others are further applications in its file. So all stand
behind one HAProxy and have one Serve controller, and only the replica that answers differs.
"""

from __future__ import annotations

import http.client
import os
import random
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bare_passthrough
import yaml
from client import Load
from economizer.autoscaling.planner import GATEWAY, LEDGER
from economizer.config import IMPORT_PATH
from economizer.engine.guard import guarded
from processes import ProcessTree

FAMILIES = ("boiler-8b", "boiler-70b")
VARIANTS, REPLICAS = ("bf16", "fp8"), 2
APPLICATION = "economizer"
HAPROXY, ENGINES, REST = "HAProxy", "engines", "rest of Ray"
_HERE = Path(__file__).resolve().parent
_PATH = "/v1/chat/completions"
_BARE_PREFIX = "/bare"
_UNBOOKED, _UNBOOKED_PREFIX = "unbooked", "/unbooked"
BOOKKEEPER = f"ray::ServeReplica:{APPLICATION}:{LEDGER}"
_READY_TIMEOUT_S = 240.0
_END_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where requests go, and the group of processes that answers them there (None: the engine alone)."""

    name: str
    port: int
    path: str
    key: str
    ingress: str | None

    def load(self, **how: Any) -> Load:
        """A load on this target."""
        return Load(host="127.0.0.1", port=self.port, path=self.path, key=self.key, models=FAMILIES, **how)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stand:
    """The four targets, and the processes of Economizer and Ray. ``unbooked`` is ``ours`` without a ledger."""

    ours: Target
    unbooked: Target
    bare: Target
    straight: Target
    tree: ProcessTree


@contextmanager
def running(folder: Path) -> Iterator[Stand]:
    """Everything started and ready; on the way out all of it is gone."""
    secret = secrets.token_hex(16)
    ports = free_ports(1 + len(FAMILIES) * REPLICAS)  # as many engines as Economizer's requests go to
    with ExitStack() as stack:
        for port in ports[1:]:
            stack.enter_context(_engine(port, secret))
        file = folder / "bench.yaml"
        urls = [f"http://127.0.0.1:{port}{_PATH}" for port in ports[1:]]
        file.write_text(yaml.safe_dump(_serve_config(ports[0], urls, secret, folder)))
        root = stack.enter_context(economizer(file))
        yield Stand(
            ours=Target(name="ours", port=ports[0], path=_PATH, key="sk-bench", ingress=_replica(APPLICATION, GATEWAY)),
            unbooked=Target(
                name="unbooked",
                port=ports[0],
                path=_UNBOOKED_PREFIX + _PATH,
                key="sk-bench",
                ingress=_replica(_UNBOOKED, GATEWAY),
            ),
            bare=Target(
                name="bare",
                port=ports[0],
                path=_BARE_PREFIX + _PATH,
                key="sk-bench",
                ingress=_replica(bare_passthrough.APPLICATION, bare_passthrough.DEPLOYMENT),
            ),
            straight=Target(name="straight", port=ports[1], path=_PATH, key=secret, ingress=None),
            tree=ProcessTree(root, _group),
        )


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nothing listens on, and that no connection gets before they are listened on."""
    return random.sample([port for port in range(32_000, 32_768) if _is_free(port)], count)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _replica(application: str, deployment: str) -> str:
    return f"ray::ServeReplica:{application}:{deployment}"


def _group(command_line: str) -> str:
    if "fast_engine.py" in command_line:
        return ENGINES
    if "/haproxy " in command_line:
        return HAPROXY
    if command_line.startswith("ray::ServeReplica:"):
        return command_line.split()[0].partition(".")[0]
    return REST


@contextmanager
def _engine(port: int, secret: str) -> Iterator[None]:
    """A fast engine outside of Serve."""
    command = [sys.executable, str(_HERE / "fast_engine.py"), "--port", str(port)]
    environment = {**os.environ, "ECONOMIZER_ENGINE_SECRET": secret}
    with subprocess.Popen(guarded(command), stdin=subprocess.PIPE, env=environment, start_new_session=True) as process:
        try:
            _wait_for_engine(port)
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(_END_S)


def _wait_for_engine(port: int) -> None:
    deadline_s = time.monotonic() + _READY_TIMEOUT_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
            return
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
        finally:
            connection.close()


@contextmanager
def economizer(file: Path) -> Iterator[int]:
    """``economizer up``, ready; yields the id of the process that everything hangs below."""
    command = [sys.executable, "-m", "economizer.cli", "up", str(file)]
    with subprocess.Popen(
        guarded(command, grace_s=_END_S),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(f"  {line.rstrip()}", file=sys.stderr, flush=True)
                if "] ready at " in line:
                    break
            else:
                raise RuntimeError("economizer up ended before it was ready")
            yield process.pid
        finally:
            process.stdin.close()
            process.stdout.read()
            process.wait()


def _serve_config(port: int, engine_urls: Sequence[str], secret: str, folder: Path) -> dict[str, Any]:
    args = {
        "prices": {"gpu": {"usd_per_hour": 2.0, "carbon_g_per_kwh": 400.0, "source": "benchmark"}},
        "families": {name: _family() for name in FAMILIES},
    }
    books = {"url": f"sqlite:///{folder / 'ledger.db'}", "spool": str(folder / "spool")}
    ours = {"name": APPLICATION, "route_prefix": "/", "import_path": IMPORT_PATH, "args": {**args, "ledger": books}}
    unbooked = {
        "name": _UNBOOKED,
        "route_prefix": _UNBOOKED_PREFIX,
        "import_path": IMPORT_PATH,
        "args": {**args, "ledger": None},
    }
    bare = {
        "name": bare_passthrough.APPLICATION,
        "route_prefix": _BARE_PREFIX,
        "import_path": bare_passthrough.IMPORT_PATH,
        "runtime_env": {"env_vars": {"PYTHONPATH": str(_HERE)}},
        "args": {"urls": list(engine_urls), "secret": secret},
    }
    return {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [ours, unbooked, bare]}


def _family() -> dict[str, Any]:
    return {
        "full": VARIANTS[0],
        "policy": "balanced",
        "variants": {name: _variant(index) for index, name in enumerate(VARIANTS)},
    }


def _variant(index: int) -> dict[str, Any]:
    engine = [sys.executable, str(_HERE / "fast_engine.py"), "--host", "{host}", "--port", "{port}"]
    return {
        "hardware": "gpu",
        "context_tokens_max": 8192,
        "concurrency_max": 64,
        "engine": {"command": engine},
        "replicas": {"min": REPLICAS, "max": REPLICAS},
        "ray": {"num_cpus": 0.1},
        "quality": {"score": 1.0 - 0.05 * index, "source": "benchmark"},
        "speed": {
            "prefill_tokens_per_s": 5000.0,
            "decode_tokens_per_s": {1: 50.0 + 20 * index, 64: 1000.0 + 400 * index},
            "overhead_s": 0.01,
            "source": "benchmark",
        },
        "power": {"active_w": 300.0, "idle_w": 60.0, "source": "benchmark"},
    }

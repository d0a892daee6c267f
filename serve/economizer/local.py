"""``economizer up``: Ray, Serve and a configuration on this machine, from nothing to ready, and back to nothing.

It goes the way that a cluster goes: a Ray head node, then ``serve deploy`` of the same file. Everything that it starts
hangs below one guard (``engine/guard.py``), so that nothing is left when it ends, however it ends.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import IO, Any

from economizer.config import Configuration, ServeFile, home, located
from economizer.engine.guard import guarded
from economizer.errors import EconomizerError

_GIB = 2**30
_POLL_S = 0.5
_END_S = 30.0
_STREAM_MAX_S = 3600
_DEPLOY_TRIES = 4
_DEPLOY_PAUSE_S = 5.0
_OBJECT_STORE_BYTES = 100_000_000  # nothing large goes through Ray's object store here
_RAY_MEMORY_GIB = 1.5
_BLOCK_PORTS = 100
_BLOCKS = range(20_000, 32_000, _BLOCK_PORTS)
_FOLDER = "/tmp"  # Unix sockets lie below it, whose paths may have 97 characters


class CannotStart(EconomizerError):
    """``economizer up`` cannot do its work; the message says what to do about it."""


@dataclass(frozen=True, slots=True)
class _Ports:
    """A block of ports for one Ray head, from ``first`` on; all on loopback where Ray lets them be.

    Serve gives gateway replicas ports from a range that is the same for every Ray on a machine, and lets two share one
    (SO_REUSEPORT): two fleets would answer each other's requests. Some are bound only half a minute after they were
    chosen, so none is among those that any connection may get meanwhile (from 32,768 on, as Linux has it), nor among
    those of Ray's workers (10,002 to 19,999).
    """

    first: int

    @classmethod
    def free(cls) -> _Ports:
        """A block that nobody listens in."""
        while True:
            first = secrets.choice(_BLOCKS)
            if all(_is_free(port) for port in range(first, first + _BLOCK_PORTS)):
                return cls(first)

    @property
    def gcs(self) -> int:
        return self.first

    @property
    def dashboard(self) -> int:
        return self.first + 1

    @property
    def client(self) -> int:
        return self.first + 2

    @property
    def haproxy_metrics(self) -> int:
        return self.first + 3

    @property
    def haproxy_stats(self) -> int:
        return self.first + 4

    @property
    def fallback(self) -> int:
        """Where HAProxy sends requests while Serve builds a newly deployed application."""
        return self.first + 5

    @property
    def ingress(self) -> range:
        """Of gateway replicas: all that are left."""
        return range(self.first + 6, self.first + _BLOCK_PORTS)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))  # where Serve's will listen
        except OSError:
            return False
        return True


def up(file: ServeFile, *, out: IO[str] = sys.stdout) -> int:
    """Bring the configuration up, wait until it is ready, stay until SIGINT or SIGTERM; returns the exit code.

    Raises CannotStart, saying what to do, when it cannot be brought up.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    say = _Progress(out)
    free_gib = _memory_free_gib()
    _check(file, free_gib)
    folder = Path(tempfile.mkdtemp(prefix="eco-", dir=_FOLDER))
    ports = _Ports.free()
    token = secrets.token_hex(32)
    environment = _environment(folder, ports, token)
    try:
        say(f"starting Ray; its logs are in {folder}")
        with _ray(file.configuration, folder, ports, environment, free_gib) as ray:
            _wait_for_dashboard(ray, ports.dashboard, token, folder)
            say("deploying")
            _deploy(file, ports.dashboard, environment)
            _wait_until_ready(file, ray, ports.dashboard, token, say)
            say.ready(file, ports.dashboard, folder)
            code = ray.wait()
            raise CannotStart(f"Ray ended by itself with exit code {code}: see the logs in {folder}.")
    except _Stopped:
        shutil.rmtree(folder, ignore_errors=True)
        say("stopped; every process is gone")
        return 0


class _Stopped(BaseException):
    """The user asked for the end."""


def _stop(number: int, frame: object) -> None:
    raise _Stopped


class _Progress:
    """Lines with the seconds since the start."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._started_s = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"[{time.monotonic() - self._started_s:6.1f} s] {line}", file=self._out, flush=True)

    def ready(self, file: ServeFile, dashboard: int, folder: Path) -> None:
        family = min(file.configuration.families)
        url = f"http://{file.connect_host}:{file.port}"
        request = {"model": family, "messages": [{"role": "user", "content": "What is an economizer?"}]}
        self(f"ready at {url}/v1, documented at {url}/docs")
        self(f"Ray's dashboard is at http://127.0.0.1:{dashboard}, its token in {folder / 'token'}")
        body = json.dumps(request)
        print(
            f"\nTry it:\n\n  curl -i {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'\n\n"
            "Ctrl-C ends every process.\n",
            file=self._out,
            flush=True,
        )


def _check(file: ServeFile, free_gib: float | None) -> None:
    """What would fail later, said now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((file.host, file.port))
        except OSError as error:
            raise CannotStart(
                f"Port {file.port} on {file.host} cannot be used ({error.strerror}). End what listens there, or set "
                f"another http_options.port in {file.path}."
            ) from None
    needed_gib = _RAY_MEMORY_GIB
    for family, name, config in file.configuration.variant_configs():
        spec = located(config.engine, home())
        if not spec.command and not Path(spec.python).exists() and shutil.which(spec.python) is None:
            raise CannotStart(f"{family}@{name}: there is no {spec.python}: run `make setup`, or set engine.python.")
        if spec.model.startswith("/") and not Path(spec.model).exists():
            raise CannotStart(
                f"{family}@{name}: there is no model in {spec.model}: run `make setup`, or, where a catalogue names "
                "it, `economizer-compress publish` it again."
            )
        needed_gib += config.ray.memory_gib * max(config.replicas.min, config.replicas.initial or 0)
    if free_gib is not None and free_gib < needed_gib:
        raise CannotStart(
            f"The configuration needs {needed_gib:.1f} GiB of memory and {free_gib:.1f} GiB are free. End other "
            f"programs, or lower replicas.min or the engines' KV cache in {file.path}."
        )


def _memory_free_gib() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable:"))


def _environment(folder: Path, ports: _Ports, token: str) -> dict[str, str]:
    """Ray's and Serve's settings. Every start has its own token, since Ray listens beyond loopback in places."""
    haproxy = folder / "ha"
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    temporary = folder / "tmp"
    temporary.mkdir()
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "ECONOMIZER_HOME": str(home()),
        "TMPDIR": str(temporary),  # engines that are killed leave files behind
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.ingress[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.ingress[-1]),
        # After a change of gateways, the old HAProxy process stays for the streams that it passes on.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(_STREAM_MAX_S),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
    }


@contextmanager
def _ray(
    configuration: Configuration,
    folder: Path,
    ports: _Ports,
    environment: Mapping[str, str],
    free_gib: float | None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A Ray head node below a guard; on the way out the whole tree is gone."""
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address", "127.0.0.1", "--port", str(ports.gcs), "--temp-dir", str(folder)),
        *("--include-dashboard", "true", "--dashboard-host", "127.0.0.1", "--dashboard-port", str(ports.dashboard)),
        *("--ray-client-server-port", str(ports.client), "--object-store-memory", str(_OBJECT_STORE_BYTES)),
        *("--num-cpus", str(_logical_cpus(configuration))),
        *_memory(free_gib),
    ]
    with (folder / "ray-start.log").open("wb") as log:
        ray = subprocess.Popen(
            guarded(command),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    try:
        yield ray
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the end is under way already
        assert ray.stdin is not None
        ray.stdin.close()
        ray.wait(_END_S)


def _logical_cpus(configuration: Configuration) -> int:
    """Room in Ray's books for every replica twice (a rolling update starts new ones first). It is no limit."""
    wanted = sum(config.ray.num_cpus * config.replicas.max for _, _, config in configuration.variant_configs())
    gateways = configuration.gateway.num_cpus * configuration.gateway.replicas
    return max(os.cpu_count() or 1, 2 + ceil(2 * (wanted + gateways)))


def _memory(free_gib: float | None) -> tuple[str, ...]:
    """What Ray may book for engines: what was free before Ray itself took its share. A start beyond it waits."""
    if free_gib is None:
        return ()
    return ("--memory", str(max(1, int((free_gib - _RAY_MEMORY_GIB) * _GIB))))


def _wait_for_dashboard(ray: subprocess.Popen[bytes], port: int, token: str, folder: Path) -> None:
    while True:
        if (code := ray.poll()) is not None:
            tail = "".join((folder / "ray-start.log").read_text(errors="replace").splitlines(keepends=True)[-20:])
            raise CannotStart(f"Ray did not start (exit code {code}):\n{tail}")
        if _get("127.0.0.1", port, "/api/version", token) is not None:
            return
        time.sleep(_POLL_S)


def _deploy(file: ServeFile, dashboard: int, environment: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "ray.serve.scripts", "deploy", str(file.path)]
    command += ["--address", f"http://127.0.0.1:{dashboard}"]
    for attempt in range(_DEPLOY_TRIES):
        done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        # On a machine that is short of CPU, Ray's dashboard restarts its own parts while they start: it answers 500, or
        # hangs up. To deploy the same file twice does nothing more than once; what it refuses, it refuses again.
        if "status code 4" in done.stderr or attempt == _DEPLOY_TRIES - 1:
            raise CannotStart(f"serve deploy failed:\n{done.stdout}{done.stderr}")
        time.sleep(_DEPLOY_PAUSE_S)


def _wait_until_ready(
    file: ServeFile, ray: subprocess.Popen[bytes], dashboard: int, token: str, say: _Progress
) -> None:
    """Until every family can answer; says meanwhile what each deployment is at."""
    said: dict[str, str] = {}
    while True:
        if ray.poll() is not None:
            raise CannotStart(f"Ray ended by itself with exit code {ray.returncode}.")
        applications = _get("127.0.0.1", dashboard, "/api/serve/applications/", token) or {}
        for name, line in _deployments(applications):
            if said.get(name) != line:
                said[name] = line
                say(f"{name}: {line}")
        ready = _get(file.connect_host, file.port, "/readyz")
        if ready is not None and ready.get("ready") and not _pending(applications):
            return
        time.sleep(_POLL_S)


def _deployments(applications: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(deployment, what it is at); raises CannotStart for an application that failed."""
    for application in applications.get("applications", {}).values():
        if application["status"] == "DEPLOY_FAILED":
            messages = [application["message"]]
            messages += [f"{name}: {d['message']}" for name, d in application["deployments"].items() if d["message"]]
            raise CannotStart("The deployment failed.\n" + "\n".join(messages))
        for name, deployment in sorted(application["deployments"].items()):
            states = [replica["state"].lower() for replica in deployment["replicas"]]
            yield name, ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states))) or "no replica yet"


def _pending(applications: Mapping[str, Any]) -> bool:
    found = applications.get("applications", {}).values()
    return not found or any(application["status"] != "RUNNING" for application in found)


def _get(host: str, port: int, path: str, token: str = "") -> dict[str, Any] | None:
    """The JSON object that a server answers, or None while it does not."""
    connection = http.client.HTTPConnection(host, port, timeout=5.0)
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {token}"} if token else {})
        answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return answer if isinstance(answer, dict) else None

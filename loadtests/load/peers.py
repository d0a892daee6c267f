"""Other people's servers in front of the same engines: how each is told where the engines are, and started.

Each is as its own documentation starts it, with one process of its own for requests and no log of them. How it chooses
an engine is its default: nginx takes turns, vllm-router looks for the prompt's beginning, LiteLLM draws one.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from economizer.engine.guard import guarded

HOST = "127.0.0.1"
_READY_S = 180.0
_END_S = 30.0
_LINES_SHOWN = 5


class NotStarted(Exception):
    """A peer that cannot take part; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A server to be started: its command, the files that it reads (by path), and where it says that it is ready."""

    name: str
    command: tuple[str, ...]
    ready_path: str
    files: Mapping[Path, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


def nginx(program: str, *, port: int, engines: Sequence[int], folder: Path) -> Peer:
    """nginx with connections to the engines kept open, and streams passed on as they come."""
    file = folder / "nginx.conf"
    temporary = "\n".join(
        f"  {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    servers = " ".join(f"server {HOST}:{engine};" for engine in engines)
    user = "user root;\n" if os.geteuid() == 0 else ""  # else its worker may not write below the folder
    text = f"""{user}daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx-errors.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_max_body_size 32m;
{temporary}
  upstream engines {{ {servers} keepalive 64; }}
  server {{
    listen {HOST}:{port};
    location / {{
      proxy_pass http://engines;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""
    return Peer(name="nginx", command=(program, "-c", str(file)), ready_path="/health", files={file: text})


def vllm_router(program: str, *, port: int, metrics_port: int, engines: Sequence[int]) -> Peer:
    """vLLM's own router, in Rust."""
    urls = [f"http://{HOST}:{engine}" for engine in engines]
    command = [program, "--host", HOST, "--port", str(port), "--worker-urls", *urls]
    command += ["--prometheus-host", HOST, "--prometheus-port", str(metrics_port)]
    command += ["--worker-startup-check-interval", "1", "--log-level", "warning"]
    return Peer(name="vllm-router", command=tuple(command), ready_path="/health")


def litellm(program: str, *, port: int, engines: Sequence[int], model: str, key: str, folder: Path) -> Peer:
    """LiteLLM's proxy, without a database; it starts with a key alone, and lets nobody in without it."""
    file = folder / "litellm.yaml"
    deployments = [
        {
            "model_name": model,
            "litellm_params": {
                "model": f"hosted_vllm/{model}",
                "api_base": f"http://{HOST}:{engine}/v1",
                "api_key": "none",
            },
        }
        for engine in engines
    ]
    return Peer(
        name="litellm",
        command=(program, "--config", str(file), "--host", HOST, "--port", str(port), "--num_workers", "1"),
        ready_path="/health/liveliness",
        files={file: yaml.safe_dump({"model_list": deployments, "litellm_settings": {"telemetry": False}})},
        env={"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
    )


def found(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The programs of peers, by name, and why others are left out; ``folder`` is the environment that has them."""
    programs, left_out = {}, {}
    if path := shutil.which("nginx"):
        programs["nginx"] = path
    else:
        left_out["nginx"] = "no nginx is on PATH (Debian and Ubuntu: the package nginx, in /usr/sbin)"
    for name in ("vllm-router", "litellm"):
        program = folder / "bin" / name
        if program.exists():
            programs[name] = str(program)
        else:
            left_out[name] = f"there is no {program}: `make bench-peers` makes it"
    return programs, left_out


@contextmanager
def started(peer: Peer, *, port: int, folder: Path) -> Iterator[int]:
    """The peer, ready; yields the process that all of it hangs below. Raises NotStarted with its last lines."""
    for path, text in peer.files.items():
        path.write_text(text)
    log = folder / f"{peer.name}.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            guarded(peer.command),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **peer.env},
            cwd=folder,
            start_new_session=True,
        ) as process,
    ):
        try:
            _wait_until_ready(peer, process, port, log)
            yield process.pid
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(_END_S)


def _wait_until_ready(peer: Peer, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + _READY_S
    while not _is_ready(port, peer.ready_path):
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline_s:
            what = f"ended with code {process.returncode}" if ended else f"was not ready within {_READY_S:g} s"
            last = " | ".join(log.read_text(errors="replace").splitlines()[-_LINES_SHOWN:])
            raise NotStarted(f"{what}: {last}")
        time.sleep(0.2)


def _is_ready(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

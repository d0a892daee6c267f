"""The fleets that are compared, each alone on the machine: bare engines, and Economizer in front of such engines.

Bare engines are started by the command and in the environment that a replica of the gateway starts them with.
"""

from __future__ import annotations

import http.client
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from urllib.parse import urlsplit

from economizer.config import home, located
from economizer.engine.guard import guarded
from economizer.engine.types import EngineSpec
from economizer.engine.vllm import launch
from economizer.errors import EngineFailed
from stand import economizer, free_ports

HOST = "127.0.0.1"
_POLL_S = 0.25
_END_S = 30.0
_LINES_SHOWN = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """Where requests go (in turns, where there are several urls), with which key, and below which processes it all is.

    ``engine`` is what an engine's command line has in it. ``ledger`` is the URL of its books, None where it keeps none.
    """

    urls: tuple[str, ...]
    key: str
    roots: tuple[int, ...]
    engine: str
    ledger: str | None = None


@contextmanager
def bare(spec: EngineSpec, *, model: str, count: int, folder: Path) -> Iterator[Fleet]:
    """``count`` engines of one spec that answer to ``model``, ready; on the way out they are gone.

    Their output is written to ``folder``. Raises EngineFailed, with an engine's last lines, where it is not ready in
    time.
    """
    secret = secrets.token_urlsafe(32)
    with ExitStack() as stack:
        started = []
        for number, port in enumerate(free_ports(count)):
            log = folder / f"engine-{number}.log"
            process = stack.enter_context(_engine(spec, model=model, port=port, secret=secret, log=log))
            started.append((process, f"http://{HOST}:{port}", log))
        for process, url, log in started:
            _wait_until_ready(process, url, log, spec.start_timeout_s)
        yield Fleet(
            urls=tuple(f"{url}/v1" for _, url, _ in started),
            key=secret,
            roots=tuple(process.pid for process, _, _ in started),
            engine=engine_words(spec),
        )


@contextmanager
def gateway(file: Path, *, port: int, engine: str, ledger: str) -> Iterator[Fleet]:
    """``economizer up FILE``, ready; on the way out all of it is gone."""
    with economizer(file) as root:
        yield Fleet(urls=(f"http://{HOST}:{port}/v1",), key="any", roots=(root,), engine=engine, ledger=ledger)


def engine_words(spec: EngineSpec) -> str:
    """What the command line of every engine of a spec has in it, and no other process's."""
    fixed = takewhile(lambda word: "{" not in word, spec.command)
    return " ".join(fixed) or "vllm.entrypoints.openai.api_server"


@contextmanager
def _engine(spec: EngineSpec, *, model: str, port: int, secret: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    start = launch(located(spec, home()), name=model, host=HOST, port=port, secret=secret, inherited=os.environ)
    with (
        log.open("wb") as out,
        subprocess.Popen(
            guarded(start.command),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=dict(start.env),
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(_END_S)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not _healthy(url):
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline_s:
            what = f"exited with code {process.returncode}" if ended else f"was not ready within {timeout_s:g} s"
            last = "\n".join(log.read_text(errors="replace").splitlines()[-_LINES_SHOWN:])
            raise EngineFailed(f"An engine {what}. Its last lines:\n{last}")
        time.sleep(_POLL_S)


def _healthy(url: str) -> bool:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

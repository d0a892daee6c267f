"""One start of an engine: its port, its secret, its guarded process tree, and its last words."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import socket
from collections import deque
from dataclasses import dataclass

from economizer.engine.guard import guarded
from economizer.engine.types import EngineSpec
from economizer.engine.vllm import Launch, launch

LINES_SHOWN = 40
_LINES_KEPT = 400
_ERRORS_SHOWN = 8
_ERROR = re.compile(r"\b[A-Z]\w*(Error|Exception)\b: ")
_GRACE_S = 5.0
_END_S = _GRACE_S + 5.0  # the guard needs the grace and a little more; what outlasts SIGKILL is the kernel's
_LINE_CHARS_MAX = 2000
_log = logging.getLogger("economizer.engine")


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where an engine listens, and the bearer token that it asks for."""

    url: str
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        """What a request must carry to be taken."""
        return {"authorization": f"Bearer {self.secret}"}


class EngineRun:
    """A started engine process; ``await end()`` when done with it, always."""

    def __init__(self, process: asyncio.subprocess.Process, endpoint: Endpoint, tail: Tail) -> None:
        self.endpoint = endpoint
        self._process = process
        self._tail = tail
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def begin(cls, spec: EngineSpec, *, name: str, host: str, tail: Tail) -> EngineRun:
        """Start the command of ``spec``; raises OSError when not even its guard can be started."""
        port, secret = _free_port(host), secrets.token_urlsafe(32)
        start = launch(spec, name=name, host=host, port=port, secret=secret, inherited=os.environ)
        tail.clear()
        process = await _spawn(start)
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        return cls(process, Endpoint(url=url, secret=secret), tail)

    @property
    def pid(self) -> int:
        """The outer guard's process id; the engine is below it."""
        return self._process.pid

    async def ended(self) -> str:
        """Wait until the process tree is gone; returns how it ended."""
        code = await self._process.wait()
        await asyncio.wait({self._reader}, timeout=1.0)
        if code > 128:
            return f"was ended by signal {code - 128}"
        return f"was ended by signal {-code}" if code < 0 else f"exited with code {code}"

    async def end(self) -> None:
        """End the process tree: SIGTERM, a grace, SIGKILL."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_END_S):
                await self.ended()
        except TimeoutError:
            _log.error("engine process tree %d outlasts SIGKILL", self._process.pid)
        finally:
            self._reader.cancel()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while chunk := await self._process.stdout.read(65536):
            self._tail.feed(chunk)
        self._tail.feed(b"\n")


class Tail:
    """An engine's last lines of output; every line also goes to the log."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._open = b""

    @property
    def lines(self) -> tuple[str, ...]:
        """The last lines, oldest first, after the earlier ones that name an error.

        What vLLM ends with says "see root cause above", and a long traceback lies between.
        """
        kept = list(self._lines)
        errors = [line for line in kept[:-LINES_SHOWN] if _ERROR.search(line)]
        return (*dict.fromkeys(errors[-_ERRORS_SHOWN:]), *kept[-LINES_SHOWN:])

    def clear(self) -> None:
        """Forget the lines of an earlier run."""
        self._lines.clear()
        self._open = b""

    def feed(self, chunk: bytes) -> None:
        """Take in output as it comes; a progress bar's carriage returns end lines too."""
        *whole, self._open = (self._open + chunk).replace(b"\r", b"\n").split(b"\n")
        if len(self._open) > _LINE_CHARS_MAX:
            whole.append(self._open)
            self._open = b""
        for line in whole:
            if text := line.decode(errors="replace").rstrip()[:_LINE_CHARS_MAX]:
                self._lines.append(text)
                _log.info("%s: %s", self._name, text)


async def _spawn(start: Launch) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *guarded(start.command, grace_s=_GRACE_S),
        env=dict(start.env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port

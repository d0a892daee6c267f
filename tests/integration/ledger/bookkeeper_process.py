"""A Bookkeeper in a process of its own, which tests kill, starve of disk and lie to about the time.

``python bookkeeper_process.py URL SPOOL SPOOL_BYTES_MAX`` prints the port on which it takes calls, and ends with its
standard input. A call is a pickled (method, arguments), its answer the pickled result or exception.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__)
_TRUE_TIME = time.time
_TRUE_MONOTONIC = time.monotonic
_AHEAD_S = [0.0]
_PASSED_S = [0.0]
if __name__ == "__main__":  # before the bookkeeper takes hold of the clocks
    time.time = lambda: _TRUE_TIME() + _AHEAD_S[0] + _PASSED_S[0]
    time.monotonic = lambda: _TRUE_MONOTONIC() + _PASSED_S[0]

from economizer.admission.limits import Ask, Verdict  # noqa: E402
from economizer.energy.types import Window  # noqa: E402
from economizer.ledger.bookkeeper import Bookkeeper, Reply, Seen  # noqa: E402
from economizer.ledger.types import Report  # noqa: E402
from economizer.variants.types import Price, Variant  # noqa: E402

VARIANT = Variant(
    family="boiler",
    name="int8",
    context_tokens_max=4096,
    concurrency_max=16,
    hardware="cpu",
    price=Price(usd_per_hour=3600.0, carbon_g_per_kwh=360.0, source="made up"),
)


class BookkeeperProcess:
    """Starts it, calls it and kills it. What is asked of a dead one raises ConnectionError or EOFError, as Ray would
    raise something."""

    def __init__(self, url: str, folder: Path, spool_bytes_max: int) -> None:
        self.spool = folder / "spool"
        self._command = [sys.executable, str(HERE), url, str(self.spool), str(spool_bytes_max)]
        self._log = folder / "bookkeeper.log"
        self._process: subprocess.Popen[str] | None = None
        self._port = 0

    def start(self) -> None:
        """Start one more, and wait until it takes calls."""
        with self._log.open("a") as log:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=log, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self.log
        self._port = int(line)

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.communicate()
            self._process = None

    @property
    def log(self) -> str:
        """What all of them have logged."""
        return self._log.read_text()

    @property
    def spooled(self) -> int:
        """How many files are in the spool."""
        return len(list(self.spool.iterdir()))

    async def report(self, report: Report, seen: Seen) -> Reply:
        reply: Reply = await self._call("report", report, seen)
        return reply

    async def windows(self, engine: str, windows: Sequence[Window]) -> int:
        number: int = await self._call("windows", engine, windows)
        return number

    async def admit(self, ask: Ask) -> Verdict:
        verdict: Verdict = await self._call("admit", ask)
        return verdict

    async def write(self) -> None:
        """Settle and write now."""
        await self._call("write")

    async def step_clock(self, seconds: float) -> None:
        """Its wall clock jumps."""
        await self._call("step_clock", seconds)

    async def pass_time(self, seconds: float) -> None:
        """So much time passes for it at once."""
        await self._call("pass_time", seconds)

    async def limit_files(self, bytes_max: int | None) -> None:
        """No file of it may grow beyond: a full disk, as it sees it. None is no limit."""
        await self._call("limit_files", bytes_max)

    async def resident_bytes(self) -> int:
        """The memory that it takes."""
        pages: int = await self._call("resident_pages")
        return pages * resource.getpagesize()

    async def _call(self, method: str, *arguments: Any) -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(pickle.dumps((method, arguments)))
            writer.write_eof()
            answer = pickle.loads(await reader.read())
        finally:
            writer.close()
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def running_bookkeeper(url: str, folder: Path, *, spool_bytes_max: int = 10**8) -> Iterator[BookkeeperProcess]:
    """A started one, which does not outlive the test."""
    process = BookkeeperProcess(url, folder, spool_bytes_max)
    process.start()
    try:
        yield process
    finally:
        process.kill()


class _Called:
    """What can be called besides the bookkeeper's own methods."""

    def __init__(self, bookkeeper: Bookkeeper) -> None:
        self._bookkeeper = bookkeeper

    async def step_clock(self, seconds: float) -> None:
        _AHEAD_S[0] += seconds

    async def pass_time(self, seconds: float) -> None:
        _PASSED_S[0] += seconds
        self._bookkeeper._looked_s += seconds  # it was awake all the while

    async def limit_files(self, bytes_max: int | None) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard if bytes_max is None else bytes_max, hard))

    async def resident_pages(self) -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])  # noqa: ASYNC240 - no disk is behind it


async def _serve(url: str, spool: Path, spool_bytes_max: int) -> None:
    bookkeeper = Bookkeeper(url=url, spool=spool, spool_bytes_max=spool_bytes_max, keep_days=35.0, variants=(VARIANT,))
    called = _Called(bookkeeper)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, arguments = pickle.loads(await reader.read())
        owner = called if hasattr(called, method) else bookkeeper
        try:
            result = await getattr(owner, method)(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is told
            result = error
        writer.write(pickle.dumps(result))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await bookkeeper.run()


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, daemon=True).start()
    asyncio.run(_serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))

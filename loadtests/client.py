"""A closed loop of chat requests over keep-alive connections, as cheap as plain asyncio allows; a process of its own.

    client.py '{"host": "127.0.0.1", "port": 8000, ...}'

The argument is a :class:`Load` as JSON, the last line of output a :class:`Outcome`. Any answer that is not complete and
right ends the run: a number from half-failed requests would be worse than none.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

_END_OF_HEAD = b"\r\n\r\n"
_CONTENT_LENGTH = b"\r\ncontent-length:"
_LAST_CHUNK = b"0\r\n\r\n"
_SENTENCE = "What would a boiler without an economizer lose of its heat, and up which chimney would it go? "
_PROMPT_CHARS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Which requests go where. ``first`` numbers them: every number is another user, session and prompt.

    ``chunks`` 0 asks for a whole answer, else for a stream of so many chunks, one every ``interval_s``.
    """

    host: str
    port: int
    path: str
    key: str
    models: tuple[str, ...]
    connections: int
    requests: int
    first: int = 0
    chunks: int = 0
    interval_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a load: seconds from its first request to its last answer, and of each request.

    ``reads`` is how often something came: chunks over reads tells how many chunks came together.
    """

    wall_s: float
    latency_s: list[float]
    reads: int


class _Callers:
    """What all connections share: the requests still to be sent, and what became of those that were."""

    def __init__(self, load: Load, finished: asyncio.Future[None]) -> None:
        self._load = load
        self._next = load.first
        self._end = load.first + load.requests
        self._finished = finished
        self.latency_s: list[float] = []
        self.reads = 0

    def take(self) -> bytes | None:
        """The next request's bytes, or None when all are sent."""
        if self._next >= self._end:
            return None
        self._next += 1
        return request(self._load, self._next - 1)

    def answered(self, latency_s: float) -> None:
        self.latency_s.append(latency_s)
        if len(self.latency_s) == self._load.requests and not self._finished.done():
            self._finished.set_result(None)

    def failed(self, reason: str) -> None:
        if not self._finished.done():
            self._finished.set_exception(ConnectionError(reason))


class _Caller(asyncio.Protocol):
    """One connection: the next request goes out as the last answer has come."""

    def __init__(self, callers: _Callers) -> None:
        self._callers = callers
        self._head = b""
        self._tail = b""
        self._head_done = False
        self._left: int | None = None
        self._sent_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._callers.failed(f"the server closed a connection: {exc}")

    def _ask(self) -> None:
        ask = self._callers.take()
        if ask is not None:
            self._head, self._tail, self._head_done = b"", b"", False
            self._sent_s = perf_counter()
            self._transport.write(ask)

    def data_received(self, data: bytes) -> None:
        self._callers.reads += 1
        if not self._head_done:
            self._head += data
            head, end, data = self._head.partition(_END_OF_HEAD)
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 200 "):
                self._callers.failed(self._head.decode("latin-1"))
                return
            self._head_done = True
            self._left = _content_length(head)
        if self._left is None:
            self._tail = (self._tail + data)[-256:]
            whole = self._tail.endswith(_LAST_CHUNK)
            if whole and b"[DONE]" not in self._tail:
                self._callers.failed("a stream ended early")
        else:
            self._left -= len(data)
            whole = self._left == 0
        if whole:
            self._callers.answered(perf_counter() - self._sent_s)
            self._ask()


def _content_length(head: bytes) -> int | None:
    """The length that an answer's head states; None for a chunked body, which is a stream here."""
    place = head.lower().find(_CONTENT_LENGTH)
    return int(head[place + len(_CONTENT_LENGTH) :].split(b"\r", 1)[0]) if place >= 0 else None


def request(load: Load, number: int) -> bytes:
    """A chat request as an agent framework would send it: about 1 kB of prompt, terms, fields that no gateway knows."""
    content = f"{number:08d} {_SENTENCE * (_PROMPT_CHARS // len(_SENTENCE) + 1)}"[:_PROMPT_CHARS]
    body: dict[str, Any] = {
        "model": load.models[number % len(load.models)],
        "messages": [{"role": "system", "content": "Answer in one line."}, {"role": "user", "content": content}],
        "max_tokens": 256,
        "temperature": 0.2,
        "user": f"user-{number:08d}",
        "metadata": {"trace": f"{number:08d}", "team": "boilers"},
        "cache_salt": "a vendor's own",
        "fast_engine": {"chunks": load.chunks, "interval_s": load.interval_s},
    }
    if load.chunks:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    raw = json.dumps(body).encode()
    head = (
        f"POST {load.path} HTTP/1.1\r\nHost: {load.host}:{load.port}\r\nAuthorization: Bearer {load.key}\r\n"
        f"Content-Type: application/json\r\nAccept: application/json\r\nX-Quality-Min: 0.5\r\nX-Slo-Ttft-Ms: 60000\r\n"
        f"X-Session-Id: session-{number:08d}\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


async def run(load: Load) -> Outcome:
    """Send the load; raises ConnectionError, with what came instead, at the first answer that is not as it must be."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()
    callers = _Callers(load, finished)
    started_s = perf_counter()
    for _ in range(min(load.connections, load.requests)):
        await loop.create_connection(lambda: _Caller(callers), load.host, load.port)
    await finished
    return Outcome(wall_s=perf_counter() - started_s, latency_s=callers.latency_s, reads=callers.reads)


def main() -> None:
    print(json.dumps(asdict(asyncio.run(run(Load(**json.loads(sys.argv[1])))))))


if __name__ == "__main__":
    main()

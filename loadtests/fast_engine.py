"""An OpenAI-compatible engine that costs next to nothing: what is measured in front of it is not the engine.

It answers ``POST /v1/chat/completions`` with the same few bytes each time, whole or as a stream. The body says how, in
a field that no gateway knows and every gateway must pass on: ``"fast_engine": {"chunks": 200, "interval_s": 0.02}``. At
an interval of 0 each chunk is still a write and a turn of the event loop of its own. Without that field a stream has
``max_tokens`` chunks, one every 10 ms. ``/health`` and ``/metrics`` are what ``economizer.engine`` asks for; the secret
is asked for when ``ECONOMIZER_ENGINE_SECRET`` is set.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from typing import Any

_PROMPT_TOKENS = 256
_WHOLE_TOKENS = 16
_INTERVAL_S = 0.01
_END_OF_HEAD = b"\r\n\r\n"
_CONTENT_LENGTH = b"\r\ncontent-length:"
_AUTHORIZATION = b"\r\nauthorization: bearer "


def _completion(kind: str, choices: list[dict[str, Any]], tokens: int | None) -> bytes:
    answer: dict[str, Any] = {"id": "chatcmpl-fast", "object": kind, "created": 0, "model": "fast", "choices": choices}
    if tokens is not None:
        total = _PROMPT_TOKENS + tokens
        answer["usage"] = {"prompt_tokens": _PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": total}
    return json.dumps(answer).encode()


def _answer(status: bytes, body: bytes, content_type: bytes = b"application/json") -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
    return head % (status, content_type, len(body)) + body


def _event(data: bytes) -> bytes:
    """One server-sent event, as one chunk of a chunked body."""
    return b"%x\r\ndata: %b\n\n\r\n" % (len(data) + 8, data)


_CHUNK = "chat.completion.chunk"
_MESSAGE = {"role": "assistant", "content": "An economizer wins back the heat that would have gone up the chimney."}
_WHOLE = _answer(
    b"200 OK",
    _completion(
        "chat.completion",
        [{"index": 0, "message": _MESSAGE, "logprobs": None, "finish_reason": "stop"}],
        _WHOLE_TOKENS,
    ),
)
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_TOKEN = _event(
    _completion(_CHUNK, [{"index": 0, "delta": {"content": " heat"}, "logprobs": None, "finish_reason": None}], None)
)
_REFUSED = _answer(b"401 Unauthorized", b'{"error": {"message": "no secret"}}')
_HEALTHY = _answer(b"200 OK", b"")
_METRICS = "vllm:num_requests_running {running}\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.0\n"


class Engine:
    """What all connections share."""

    def __init__(self, secret: str) -> None:
        self.secret = secret.lower().encode()
        self.running = 0


class Connection(asyncio.Protocol):
    """One keep-alive connection: one request at a time, no pipelining."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._tokens = self._left = 0
        self._interval_s = 0.0
        self._streaming = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(_END_OF_HEAD)
        if end < 0:
            return
        head = self._received[:end].lower()
        body_start = end + len(_END_OF_HEAD)
        body = self._received[body_start:]
        if len(body) >= _content_length(head):
            self._received = b""
            self._answer(head, body)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._streaming:
            self._end_stream()

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get /metrics "):
            page = _METRICS.format(running=self._engine.running).encode()
            self._transport.write(_answer(b"200 OK", page, b"text/plain"))
        elif head.startswith(b"get "):
            self._transport.write(_HEALTHY)
        elif self._engine.secret and _AUTHORIZATION + self._engine.secret not in head:
            self._transport.write(_REFUSED)
        else:
            self._complete(json.loads(body))

    def _complete(self, request: dict[str, Any]) -> None:
        if not request.get("stream"):
            self._transport.write(_WHOLE)
            return
        how = request.get("fast_engine") or {"chunks": request.get("max_tokens") or 1, "interval_s": _INTERVAL_S}
        self._tokens = self._left = how["chunks"]
        self._interval_s = how["interval_s"]
        self._streaming = True
        self._engine.running += 1
        self._transport.write(_STREAM_HEAD)
        self._next()

    def _next(self) -> None:
        if not self._streaming:
            return
        if self._left == 0:
            usage = _completion(_CHUNK, [], self._tokens)
            self._transport.write(_event(usage) + _event(b"[DONE]") + b"0\r\n\r\n")
            self._end_stream()
            return
        self._left -= 1
        self._transport.write(_TOKEN)
        if self._interval_s:
            self._loop.call_later(self._interval_s, self._next)
        else:
            self._loop.call_soon(self._next)

    def _end_stream(self) -> None:
        self._streaming = False
        self._engine.running -= 1


def _content_length(head: bytes) -> int:
    place = head.find(_CONTENT_LENGTH)
    return int(head[place + len(_CONTENT_LENGTH) :].split(b"\r", 1)[0]) if place >= 0 else 0


async def serve(host: str, port: int, secret: str) -> None:
    """Answer until the process ends."""
    engine = Engine(secret)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(engine), host, port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    asyncio.run(serve(args.host, args.port, os.environ.get("ECONOMIZER_ENGINE_SECRET", "")))


if __name__ == "__main__":
    main()

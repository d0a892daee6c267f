"""Times an engine as a client that only counts: requests of random token ids over HTTP, on the same machine.

The client shares the machine with the engine, so that it must cost little. It does not parse the stream: the number of
tokens is read from the usage that the engine appends to each part, with a search for bytes. Prompts are token ids, each
request has a cache salt of its own (no prefix is ever found in the cache), output is greedy and does not stop at an
end-of-text token. The timed seconds include HTTP and the engine's API server, as a gateway sees them.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from random import Random
from statistics import median
from typing import Any

import httpx

from economizer_compression.errors import CompressionError
from economizer_compression.rates import DecodeWindow, PrefillWindow, Sample, decode_window
from economizer_compression.serving import Engine

_PATH = "/v1/completions"
_REQUEST_TIMEOUT_S = 300.0
_POLL_S = 0.01
_PARTS_MIN = 3
_TOKENS_KEY = b'"completion_tokens":'


class Timed:
    """An engine to be timed. Every method is a window: it returns when the engine is idle again."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.vocabulary = vocabulary_size(engine)

    def prompt(self, seed: str, tokens: int) -> list[int]:
        """Random token ids, the same for the same seed and vocabulary.

        Neither from the first tenth of the vocabulary nor from the last: special tokens and padding lie there.
        """
        draw = Random(seed)
        return [draw.randrange(self.vocabulary // 10, self.vocabulary * 9 // 10) for _ in range(tokens)]

    def ttft_s(self, prompts: Sequence[Sequence[int]]) -> float:
        """Median time from a request to the first part of its stream; one request at a time."""
        times = []
        with self._client() as client:
            for prompt in prompts:
                body = _body(self.engine, prompt, 1, stream=True)
                began_s = time.monotonic()
                with client.stream("POST", _PATH, json=body) as reply:
                    _check(self.engine, reply, b"" if reply.is_success else reply.read())
                    for _ in reply.iter_raw():
                        times.append(time.monotonic() - began_s)
                        break
                    for _ in reply.iter_raw():
                        pass
        return median(times)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> PrefillWindow:
        """Reads prompts one after the other, with one output token each."""
        bodies = [_body(self.engine, prompt, 1) for prompt in prompts]
        with self._client() as client:
            cpu_s, began_s = self.engine.cpu_seconds(), time.monotonic()
            for body in bodies:
                reply = client.post(_PATH, json=body)
                _check(self.engine, reply, reply.content)
            wall_s = time.monotonic() - began_s
            cpu_s = self.engine.cpu_seconds() - cpu_s
        return PrefillWindow(tokens=sum(map(len, prompts)), wall_s=wall_s, cpu_s=cpu_s)

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int, limit_s: float) -> DecodeWindow:
        """Decodes all prompts at the same time, until the first has ``tokens`` or ``limit_s`` is over.

        The limit counts from the last request's first token, and waits until each request has three parts.
        """
        return asyncio.run(self._decode([_body(self.engine, prompt, tokens, stream=True) for prompt in prompts], limit_s))

    async def _decode(self, bodies: Sequence[Mapping[str, Any]], limit_s: float) -> DecodeWindow:
        streams: list[list[Sample]] = [[] for _ in bodies]
        options = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(**self._options(), limits=options) as client:
            tasks = [
                asyncio.create_task(self._follow(client, body, stream))
                for body, stream in zip(bodies, streams, strict=True)
            ]
            try:
                await _until(lambda: all(streams), tasks)
                if any(task.done() for task in tasks) and not all(streams):
                    await asyncio.gather(*(task for task in tasks if task.done()))
                    raise CompressionError(
                        f"{self.engine.name}: the engine does not run {len(bodies)} requests at a time: "
                        f"raise its --max-num-seqs or measure smaller batches"
                    )
                cpu_s, began_s = self.engine.cpu_seconds(), time.monotonic()
                deadline_s = began_s + limit_s
                await _until(lambda: time.monotonic() > deadline_s and min(map(len, streams)) >= _PARTS_MIN, tasks)
                cores = (self.engine.cpu_seconds() - cpu_s) / (time.monotonic() - began_s)
                await asyncio.gather(*(task for task in tasks if task.done()))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        try:
            return decode_window(streams, cores)
        except ValueError as error:
            raise CompressionError(f"{self.engine.name}: {error}") from error

    async def _follow(self, client: httpx.AsyncClient, body: Mapping[str, Any], samples: list[Sample]) -> None:
        """Notes when each part of a stream came and how many tokens there were by then."""
        seen, carried = 0, b""
        async with client.stream("POST", _PATH, json=body) as reply:
            _check(self.engine, reply, b"" if reply.is_success else await reply.aread())
            async for chunk in reply.aiter_raw():
                now_s = time.monotonic()
                whole, _, carried = (carried + chunk).rpartition(b"\n\n")
                if (tokens := _tokens(whole)) > seen:
                    seen = tokens
                    samples.append((now_s, seen))

    def _client(self) -> httpx.Client:
        return httpx.Client(**self._options())

    def _options(self) -> dict[str, Any]:
        return {
            **{"base_url": self.engine.url, "headers": self.engine.headers, "timeout": _REQUEST_TIMEOUT_S},
            **{"verify": False, "trust_env": False},
        }

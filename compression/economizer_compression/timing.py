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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random
from statistics import median
from typing import Any

import httpx
from economizer.energy.meter import Meter
from economizer.energy.types import UJ_PER_J, Measurement

from economizer_compression.errors import CompressionError
from economizer_compression.rates import DecodeWindow, PrefillWindow, Sample, decode_window
from economizer_compression.serving import Engine

_PATH = "/v1/completions"
_REQUEST_TIMEOUT_S = 300.0
_POLL_S = 0.01
_PARTS_MIN = 3
_ATTEMPTS = 3
_SPAN = "window"
_TOKENS_KEY = b'"completion_tokens":'


class Timed:
    """An engine to be timed and metered. Every method is a window: it returns when the engine is idle again."""

    def __init__(self, engine: Engine, meter: Meter) -> None:
        self.engine = engine
        self._meter = meter
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
        with _failures_told(self.engine), self._client() as client:
            for prompt in prompts:
                body, first_s = _body(self.engine, prompt, 1, stream=True), None
                began_s = time.monotonic()
                with client.stream("POST", _PATH, json=body) as reply:
                    _check(self.engine, reply, b"" if reply.is_success else reply.read())
                    for _ in reply.iter_raw():
                        first_s = first_s or time.monotonic() - began_s
                if first_s is None:
                    raise CompressionError(f"{self.engine.name}: the engine ended a stream without a token")
                times.append(first_s)
        return median(times)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> PrefillWindow:
        """Reads prompts one after the other, with one output token each."""
        bodies = [_body(self.engine, prompt, 1) for prompt in prompts]
        with _failures_told(self.engine), self._client() as client:
            self._meter.begin(_SPAN)
            began_s = time.monotonic()
            for body in bodies:
                reply = client.post(_PATH, json=body)
                _check(self.engine, reply, reply.content)
            wall_s = time.monotonic() - began_s
            active_j = _joules(self._meter.end(_SPAN))
        return PrefillWindow(tokens=sum(map(len, prompts)), wall_s=wall_s, active_j=active_j)

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int, limit_s: float) -> DecodeWindow:
        """Decodes all prompts at the same time, until each has ``tokens`` or ``limit_s`` is over, and then aborts them.

        No request ends by itself as long as the context has room, however late another one's first token comes. The
        limit counts from the last request's first token, and waits until each has three more parts. Where the
        machine kept the client waiting until a request was over, the window is timed again.
        """
        rooms = [self.engine.context_tokens - len(prompt) for prompt in prompts]
        bodies = [_body(self.engine, *both, stream=True) for both in zip(prompts, rooms, strict=True)]
        disturbed = ""
        for _ in range(_ATTEMPTS):
            with _failures_told(self.engine):
                streams, active_w = asyncio.run(self._decode(bodies, tokens, limit_s))
            self.prefill([prompts[0][:1]])  # the step that the aborted requests were in is over when this is answered
            try:
                return decode_window(streams, active_w)
            except ValueError as error:
                disturbed = str(error)
        raise CompressionError(
            f"{self.engine.name}: {len(prompts)} requests do not decode together ({disturbed}): raise the engine's "
            "--max-num-seqs, or measure smaller batches, or on a machine with less other work"
        )

    async def _decode(
        self, bodies: Sequence[Mapping[str, Any]], tokens: int, limit_s: float
    ) -> tuple[list[list[Sample]], float | None]:
        """(each request's samples, the active power in watts while all ran)."""
        streams: list[list[Sample]] = [[] for _ in bodies]

        def is_over() -> bool:
            new_parts = min(len(stream) - old for stream, old in zip(streams, before, strict=True))
            late = time.monotonic() > began_s + limit_s and new_parts >= _PARTS_MIN
            return late or min(stream[-1][1] for stream in streams) >= tokens

        async with httpx.AsyncClient(**self._options(), limits=httpx.Limits()) as client:
            followed = [self._follow(client, body, stream) for body, stream in zip(bodies, streams, strict=True)]
            tasks = [asyncio.create_task(one) for one in followed]
            try:
                await _until(lambda: all(streams), tasks)
                before = [len(stream) for stream in streams]
                self._meter.begin(_SPAN)
                began_s = time.monotonic()
                await _until(lambda: all(streams) and is_over(), tasks)
                measured = self._meter.end(_SPAN)
                await asyncio.gather(*(task for task in tasks if task.done()))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        active_j = _joules(measured)
        return streams, None if active_j is None else active_j / measured.seconds

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


def served_logprobs(engine: Engine, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
    """The engine's log probability of each token given those before it; none for a text's first token.

    They are vLLM's ``prompt_logprobs`` of the raw logits, before any temperature.
    """
    found = []
    with _failures_told(engine), httpx.Client(timeout=_REQUEST_TIMEOUT_S, verify=False, trust_env=False) as client:
        for ids in token_ids:
            body = _body(engine, ids, 1) | {"prompt_logprobs": 0}
            reply = client.post(engine.url + _PATH, headers=engine.headers, json=body)
            _check(engine, reply, reply.content)
            at_each = reply.json()["choices"][0]["prompt_logprobs"][1:]
            found.append([float(at[str(id_)]["logprob"]) for at, id_ in zip(at_each, ids[1:], strict=True)])
    return found


def vocabulary_size(engine: Engine) -> int:
    """How many token ids the engine's model knows, by the checkpoint's ``config.json``."""
    path = engine.folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    if not isinstance(size, int):
        raise CompressionError(f"{path} has no vocab_size")
    return size


def _joules(measured: Measurement) -> float | None:
    return None if measured.active_uj is None else measured.active_uj / UJ_PER_J


def _body(engine: Engine, prompt: Sequence[int], tokens: int, *, stream: bool = False) -> dict[str, Any]:
    body = {
        **{"model": engine.name, "prompt": list(prompt), "max_tokens": tokens, "temperature": 0, "ignore_eos": True},
        "cache_salt": uuid.uuid4().hex,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    return body


def _tokens(events: bytes) -> int:
    """The token count in the last of some server-sent events, 0 where there is none."""
    at = events.rfind(_TOKENS_KEY)
    digits = events[at + len(_TOKENS_KEY) : at + len(_TOKENS_KEY) + 12].split(b",")[0].split(b"}")[0]
    return int(digits) if at >= 0 else 0


async def _until(holds: Callable[[], bool], tasks: Sequence[asyncio.Task[None]]) -> None:
    """Until the condition holds or a task has ended. A look every 10 ms costs less than waking at every token."""
    ended: set[asyncio.Task[None]] = set()
    while not holds() and not ended:
        ended, _ = await asyncio.wait(tasks, timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED)


def _check(engine: Engine, reply: httpx.Response, content: bytes) -> None:
    if not reply.is_success:
        said = content[:500].decode(errors="replace")
        raise CompressionError(f"{engine.name}: the engine answered {reply.status_code}: {said}")


@contextmanager
def _failures_told(engine: Engine) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise CompressionError(engine.failure(f"{type(error).__name__} on a request: {error}")) from error

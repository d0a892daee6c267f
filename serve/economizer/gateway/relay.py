"""Bytes and server-sent events between a caller and an engine: passed on as they come, measured as they pass."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeGuard

import aiohttp
from msgspec import Struct

from economizer.errors import EconomizerError, EngineFailed, EngineTimeout
from economizer.gateway.body import add_to_usage

# Hop-by-hop fields, and those that the relay or its server writes anew.
_NOT_FORWARDED = frozenset(
    {
        "accept-encoding",
        "api-key",
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "expect",
        "host",
        "keep-alive",
    }
    | {"proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
    | {"x-api-key", "x-data-parallel-rank"}
)
_NOT_RETURNED = frozenset(
    {b"connection", b"content-length", b"date", b"keep-alive", b"server", b"trailer", b"transfer-encoding", b"upgrade"}
)
_TOKENS_MAX = 2**31 - 1


class Usage(Struct, frozen=True, kw_only=True, gc=False):
    """Tokens of one answer. ``counted`` says that the engine gave no usage, so that answer tokens were counted from
    the events of the stream and the prompt's were guessed."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None = None
    counted: bool = False


def read_usage(usage: Mapping[str, Any]) -> Usage | None:
    """OpenAI's usage object in either spelling, or None when it is not one."""
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    output = usage.get("completion_tokens", usage.get("output_tokens", 0))
    if not _is_count(prompt) or not _is_count(output):
        return None
    details = usage.get("prompt_tokens_details", usage.get("input_tokens_details"))
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(prompt_tokens=prompt, output_tokens=output, cached_tokens=cached if _is_count(cached) else None)


def _is_count(tokens: object) -> TypeGuard[int]:
    """A number of tokens that the books can hold; whatever else an engine says is not stated."""
    return type(tokens) is int and 0 <= tokens <= _TOKENS_MAX


class EngineNotReached(EngineFailed):
    """There was no connection to the engine, so that it never got the request."""


class EngineAnswer:
    """An engine's answer whose head and first bytes have come. Close it, always: that also stops the engine's work."""

    def __init__(self, response: aiohttp.ClientResponse, first: bytes, idle_timeout_s: float) -> None:
        self.status = response.status
        headers = [(name.lower(), value) for name, value in response.raw_headers]
        self.headers = [(name, value) for name, value in headers if name not in _NOT_RETURNED]
        self.is_stream = response.content_type == "text/event-stream"
        self.is_json = response.content_type == "application/json"
        self.first = first
        self._response = response
        self._idle_timeout_s = idle_timeout_s

    async def rest(self) -> bytes:
        """The whole body; raises EngineFailed when the engine cuts it short."""
        content = self._response.content
        if content.at_eof() and content.exception() is None:
            return self.first
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                return self.first + await content.read()
        except TimeoutError:
            raise self._idle() from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise EngineFailed(f"The engine broke off its answer: {type(error).__name__}.") from error

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; raises EngineFailed or EngineTimeout when it breaks off or stops."""
        content = self._response.content
        watch = _IdleWatch(self._idle_timeout_s, self._response.close)
        try:
            watch.pause()  # a caller that reads slowly is not an engine that is silent
            yield self.first
            watch.resume()
            while chunk := await content.readany():
                watch.pause()
                yield chunk
                watch.resume()
        except (aiohttp.ClientError, ConnectionError) as error:
            if watch.expired:
                raise self._idle() from error
            raise EngineFailed(f"The engine broke off its answer: {type(error).__name__}.") from error
        finally:
            watch.cancel()

    def _idle(self) -> EngineTimeout:
        return EngineTimeout(f"The engine sent nothing for {self._idle_timeout_s:g} s.")

    def close(self) -> None:
        """Drop the connection unless the answer came whole; an engine then stops generating."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


class _IdleWatch:
    """Closes something when nothing was seen for a while; one timer a stream, not one a chunk."""

    __slots__ = ("_close", "_handle", "_last", "_loop", "_paused", "_timeout_s", "expired")

    def __init__(self, timeout_s: float, close: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._close = close
        self._last = self._loop.time()
        self.expired = False
        self._paused = False
        self._handle = self._loop.call_at(self._last + timeout_s, self._check)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._last = self._loop.time()

    def _check(self) -> None:
        due = (self._loop.time() if self._paused else self._last) + self._timeout_s
        if self._loop.time() >= due:
            self.expired = True
            self._close()
        else:
            self._handle = self._loop.call_at(due, self._check)

    def cancel(self) -> None:
        self._handle.cancel()


class Relay:
    """The gateway's HTTP client towards engines."""

    def __init__(self, *, connect_timeout_s: float, first_byte_timeout_s: float, idle_timeout_s: float) -> None:
        self._first_byte_timeout_s = first_byte_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding", "User-Agent", "Content-Type", "Accept"),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def send(
        self, url: str, body: bytes, headers: Mapping[str, str], *, deadline_s: float | None = None
    ) -> EngineAnswer:
        """Send a request; returns when the answer's first bytes are there.

        ``deadline_s`` shortens the wait for the first byte. Raises EngineNotReached when there is no connection to the
        engine, EngineFailed when it breaks off, EngineTimeout when it does not answer in time.
        """
        wait_s = self._first_byte_timeout_s if deadline_s is None else min(deadline_s, self._first_byte_timeout_s)
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(wait_s):
                response = await self._session.post(url, data=body, headers=headers, allow_redirects=False)
                first = await response.content.readany()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise EngineNotReached(f"The engine could not be reached: {type(error).__name__}.") from error
        except TimeoutError as error:
            _drop(response)
            raise EngineTimeout(f"The engine gave no first byte within {wait_s:g} s.") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            _drop(response)
            raise EngineFailed(f"The engine could not be reached: {type(error).__name__}.") from error
        except BaseException:
            _drop(response)
            raise
        return EngineAnswer(response, first, self._idle_timeout_s)


def _drop(response: aiohttp.ClientResponse | None) -> None:
    if response is not None:
        response.close()


def forwarded_headers(headers: Mapping[str, str], secret: str) -> dict[str, str]:
    """The caller's headers as the engine gets them: its own secret in place of the caller's key."""
    kept = {name: value for name, value in headers.items() if name not in _NOT_FORWARDED}
    kept["authorization"] = f"Bearer {secret}"
    kept["accept-encoding"] = "identity"
    return kept


_TAIL_BYTES = 64  # of a stream, kept to see its end however it was cut into chunks
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_RESPONSE_ENDS = re.compile(rb'"type": ?"response\.(?:completed|incomplete|failed)"')


def _end_of_events(chunk: bytes) -> int:
    """Where the last complete event of a chunk ends; 0 when it holds none."""
    return max(
        (place + len(blank) for blank in (b"\n\n", b"\r\n\r\n") if (place := chunk.rfind(blank)) >= 0), default=0
    )


class StreamMeter:
    """Watches a stream of server-sent events as it passes: counts, finds the usage, and lets a receipt be added.

    Chunks pass as they are. Only where a receipt is wanted (``receipt`` given) are they cut at the ends of events,
    and the one event that carries the final usage gets ``economizer`` added to its usage object: ``receipt`` is given
    that usage, and says what to add.
    """

    def __init__(self, receipt: Callable[[Mapping[str, Any]], str | None] | None) -> None:
        self.events = 0
        self._receipt = receipt
        self._held = b""
        self._tail = b""
        self._response_ended = False

    def feed(self, chunk: bytes) -> bytes:
        """What to pass on now for a chunk that came."""
        self.events += chunk.count(b"data:")
        if not chunk.startswith(b"data:"):
            self.events += (self._tail[-4:] + chunk[:4]).count(b"data:")
        self._tail = chunk[-_TAIL_BYTES:] if len(chunk) >= _TAIL_BYTES else (self._tail + chunk)[-_TAIL_BYTES:]
        if self._receipt is None:
            return chunk
        whole = chunk
        if self._held or not chunk.endswith(b"\n\n"):
            chunk = self._held + chunk
            end = _end_of_events(chunk)
            whole, self._held = chunk[:end], chunk[end:]
        if b'"response.' in whole and _RESPONSE_ENDS.search(whole):
            self._response_ended = True
        return self._with_receipt(whole, self._receipt) if b'usage"' in whole else whole

    def rest(self) -> bytes:
        """What was held back, once the stream has ended."""
        held, self._held = self._held, b""
        return held

    @property
    def done(self) -> bool:
        """The stream said that it was complete."""
        return self._response_ended or b"[DONE]" in self._tail

    @property
    def clean(self) -> bool:
        """The last bytes that came ended an event."""
        return not self._tail or self._tail.endswith((b"\n\n", b"\r\n\r\n"))

    def _with_receipt(self, events: bytes, receipt: Callable[[Mapping[str, Any]], str | None]) -> bytes:
        lines = events.split(b"\n")
        for index, line in enumerate(lines):
            if line.startswith(b"data:") and b'usage"' in line and not _has_choices(line):
                data = line[5:].strip()
                added = add_to_usage(data, receipt)
                if added is not data:
                    lines[index] = b"data: " + added + line[len(line.rstrip(b"\r")) :]
        return b"\n".join(lines)


def _has_choices(event: bytes) -> bool:
    """A chunk with choices may have usage so far; only the last chunk, the one without, carries the receipt."""
    return b'"choices"' in event and not _NO_CHOICES.search(event)


def error_event(error: EconomizerError, *, clean: bool) -> bytes:
    """A failure after the first byte, as a server-sent event; ``clean`` says that the last event was complete."""
    lead = b"" if clean else b"\n\n"
    return lead + b"data: " + json.dumps(error.body()).encode() + b"\n\n"

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from economizer.errors import EngineFailed, EngineTimeout
from economizer.gateway.relay import (
    EngineAnswer,
    EngineNotReached,
    Relay,
    StreamMeter,
    Usage,
    error_event,
    forwarded_headers,
    read_usage,
)
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("given", "usage"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 5}, Usage(prompt_tokens=3, output_tokens=5)),
        ({"input_tokens": 3, "output_tokens": 5}, Usage(prompt_tokens=3, output_tokens=5)),
        ({"prompt_tokens": 3}, Usage(prompt_tokens=3, output_tokens=0)),  # an embedding
        (
            {"prompt_tokens": 3, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}},
            Usage(prompt_tokens=3, output_tokens=5, cached_tokens=2),
        ),
        (
            {"input_tokens": 3, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 2}},
            Usage(prompt_tokens=3, output_tokens=5, cached_tokens=2),
        ),
        (
            {"prompt_tokens": 3, "completion_tokens": 5, "prompt_tokens_details": None},
            Usage(prompt_tokens=3, output_tokens=5),
        ),
        ({}, None),
        ({"completion_tokens": 5}, None),
        ({"prompt_tokens": "3", "completion_tokens": 5}, None),
        ({"prompt_tokens": 3, "completion_tokens": 2**31 - 1}, Usage(prompt_tokens=3, output_tokens=2**31 - 1)),
    ],
)
def test_usage_is_read_in_either_of_openais_spellings(given: dict[str, Any], usage: Usage | None) -> None:
    assert read_usage(given) == usage


@pytest.mark.parametrize("count", [-1, 2**31, 10**25, True, 5.0, "5", None])
def test_a_count_that_is_no_number_of_tokens_is_not_stated(count: object) -> None:
    assert read_usage({"prompt_tokens": count, "completion_tokens": 5}) is None
    assert read_usage({"prompt_tokens": 3, "completion_tokens": count}) is None
    well = {"prompt_tokens": 3, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": count}}
    assert read_usage(well) == Usage(prompt_tokens=3, output_tokens=5)


def test_the_engine_gets_its_own_secret_and_none_of_the_callers() -> None:
    headers = {
        "authorization": "Bearer caller",
        "cookie": "session",
        "host": "gateway",
        "content-length": "7",
        "transfer-encoding": "chunked",
        "accept-encoding": "gzip",
        "connection": "keep-alive",
        "content-type": "application/json",
        "x-session-id": "ann",
    }
    assert forwarded_headers(headers, "s3cret") == {
        "authorization": "Bearer s3cret",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "x-session-id": "ann",
    }


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
RECEIPTED = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"economizer":{"v":"int8"}}}'
STREAM = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n' * 2 + USAGE + b"\n\ndata: [DONE]\n\n"


def receipted(chunks: list[bytes]) -> tuple[bytes, StreamMeter, list[Mapping[str, Any]]]:
    """What a meter passes on of chunks, to the end; the meter; and the events that a receipt was asked for."""
    asked: list[Mapping[str, Any]] = []

    def receipt(event: Mapping[str, Any]) -> str:
        asked.append(event)
        return '{"v":"int8"}'

    meter = StreamMeter(receipt)
    passed = b"".join([meter.feed(chunk) for chunk in chunks])
    return passed + meter.rest(), meter, asked


def test_the_usage_event_alone_gets_the_receipt() -> None:
    passed, meter, asked = receipted([STREAM])
    assert passed == STREAM.replace(USAGE, RECEIPTED)
    assert (meter.done, meter.clean, meter.events) == (True, True, 4)
    assert asked == [{"prompt_tokens": 3, "completion_tokens": 2}]


def test_with_continuous_usage_only_the_last_event_gets_the_receipt() -> None:
    running = b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
    passed, _, asked = receipted([running * 3 + STREAM])
    assert passed == running * 3 + STREAM.replace(USAGE, RECEIPTED)
    assert len(asked) == 1


def test_a_response_gets_its_receipt_in_its_last_event() -> None:
    created = b'event: response.created\ndata: {"type":"response.created","response":{"usage":null}}\n\n'
    usage = b'"usage":{"input_tokens":3,"output_tokens":2}'
    added = b'"usage":{"input_tokens":3,"output_tokens":2,"economizer":{"v":"int8"}}'
    end = b'event: response.completed\ndata: {"type":"response.completed","response":{%s}}\n\n'
    passed, meter, asked = receipted([created, end % usage])
    assert passed == created + end % added
    assert (meter.done, len(asked)) == (True, 1)


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
def test_a_response_says_by_its_last_event_that_it_is_complete(kind: str) -> None:
    event = b'data: {"type":"response.%s","response":{}}\n\n' % kind.encode()
    assert receipted([event])[1].done
    assert not receipted([b'data: {"type":"response.created","response":{}}\n\n'])[1].done


def test_events_that_are_not_complete_are_held_back_until_the_rest() -> None:
    meter = StreamMeter(lambda event: None)
    assert meter.feed(b"data: 1\n\ndata: 2") == b"data: 1\n\n"
    assert meter.feed(b"\n") == b""
    assert not meter.clean
    assert meter.feed(b"\ndata: 3") == b"data: 2\n\n"
    assert (meter.rest(), meter.rest()) == (b"data: 3", b"")


def test_without_a_receipt_chunks_pass_as_they_come() -> None:
    meter = StreamMeter(None)
    for chunk in (b"data: 1\n\nda", b"ta: 2", b"\n\n", b""):
        assert meter.feed(chunk) is chunk
    assert meter.rest() == b""


def test_a_stream_that_broke_off_is_not_done() -> None:
    meter = StreamMeter(None)
    meter.feed(STREAM.removesuffix(b"data: [DONE]\n\n"))
    assert (meter.done, meter.clean) == (False, True)
    meter.feed(b"data: [DO")
    assert (meter.done, meter.clean) == (False, False)


blank = st.sampled_from([b"\n\n", b"\r\n\r\n"])
events = st.one_of(
    st.sampled_from(
        [
            b"data: {}",
            b'data: {"choices":[{"delta":{"content":"\\n\\n usage\\" [DONE"}}]}',
            b": a comment",
            b"event: x\ndata: {}",
            "data: {}é".encode(),
        ]
    ),
    st.just(USAGE),
    st.just(b"data: [DONE]"),
)
tails = st.sampled_from([b"", b"data: [DON", USAGE, b"data: {}\n", b"\r\n\r"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """A stream cut into chunks anywhere, and what it is with its receipts."""
    parts = draw(st.lists(st.tuples(events, blank), max_size=5))
    tail = draw(tails)
    whole = b"".join(event + end for event, end in parts) + tail
    wanted = b"".join((RECEIPTED if event == USAGE else event) + end for event, end in parts) + tail
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    chunks = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    return chunks, wanted


@given(streams())
def test_however_a_stream_is_cut_the_caller_gets_it_whole_with_its_receipt(stream: tuple[list[bytes], bytes]) -> None:
    chunks, wanted = stream
    one, other = receipted(chunks), receipted([b"".join(chunks)])
    assert one[0] == other[0] == wanted
    assert one[2] == other[2]


@given(streams(), st.booleans())
def test_however_a_stream_is_cut_its_end_is_seen(stream: tuple[list[bytes], bytes], wants_receipt: bool) -> None:
    chunks, _ = stream
    cut, whole = (StreamMeter((lambda event: None) if wants_receipt else None) for _ in range(2))
    for chunk in chunks:
        cut.feed(chunk)
    whole.feed(b"".join(chunks))
    assert (cut.done, cut.clean, cut.events) == (whole.done, whole.clean, whole.events)


def test_a_stream_that_comes_byte_by_byte_is_understood() -> None:
    passed, meter, _ = receipted([bytes([byte]) for byte in STREAM])
    assert passed == STREAM.replace(USAGE, RECEIPTED)
    assert (meter.done, meter.clean, meter.events) == (True, True, 4)


def test_a_failure_after_the_first_byte_is_an_event_of_its_own() -> None:
    error = EngineFailed("It broke off.")
    event = b"data: " + json.dumps(error.body()).encode() + b"\n\n"
    assert error_event(error, clean=True) == event
    assert error_event(error, clean=False) == b"\n\n" + event


# The relay itself, against a server on a local socket.


@asynccontextmanager
async def engine(answer: Any) -> AsyncIterator[str]:
    """An engine that answers every request so; its address."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1/chat/completions"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def relay(*, first_byte_timeout_s: float = 5.0, idle_timeout_s: float = 5.0) -> AsyncIterator[Relay]:
    made = Relay(connect_timeout_s=1.0, first_byte_timeout_s=first_byte_timeout_s, idle_timeout_s=idle_timeout_s)
    try:
        yield made
    finally:
        await made.close()


async def test_the_engine_gets_the_body_and_the_headers_as_they_are_and_no_others() -> None:
    seen: list[tuple[bytes, dict[str, str]]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((await request.read(), {name.lower(): value for name, value in request.headers.items()}))
        return web.json_response({"ok": True}, headers={"x-engine": "1", "Keep-Alive": "timeout=5"})

    async with engine(answer) as url, relay() as to:
        found = await to.send(url, b'{"model": "m"}', {"authorization": "Bearer s", "x-session-id": "ann"})
        assert (found.status, await found.rest(), found.is_stream) == (200, b'{"ok": true}', False)
        assert found.headers == [(b"x-engine", b"1"), (b"content-type", b"application/json; charset=utf-8")]
        found.close()
        body, headers = seen[0]
        assert body == b'{"model": "m"}'
        assert headers == {
            "host": url.split("/")[2],
            "authorization": "Bearer s",
            "x-session-id": "ann",
            "content-length": "14",
        }


async def test_an_engines_own_error_comes_back_with_its_status() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"error": "no"}, status=400)

    async with engine(answer) as url, relay() as to:
        found = await to.send(url, b"{}", {})
        assert (found.status, await found.rest()) == (400, b'{"error": "no"}')
        found.close()


async def test_a_redirect_is_not_followed() -> None:
    async def answer(request: web.Request) -> web.Response:
        raise web.HTTPFound("/elsewhere")

    async with engine(answer) as url, relay() as to:
        found = await to.send(url, b"{}", {})
        assert found.status == 302
        found.close()


def streaming(*chunks: bytes, gate: asyncio.Event | None = None, then: str = "end") -> Any:
    """A handler that streams events, waiting at the gate after the first one."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for index, chunk in enumerate(chunks):
            await response.write(chunk)
            if index == 0 and gate is not None:
                await gate.wait()
        if then == "break":
            assert request.transport is not None
            request.transport.abort()
        elif then == "hang":
            await asyncio.sleep(60)
        return response

    return answer


async def collect(answer: EngineAnswer, passed: list[bytes]) -> None:
    async for chunk in answer.chunks():
        passed.append(chunk)  # noqa: PERF401  # what came before a failure is wanted too


async def test_a_stream_is_passed_on_as_it_comes() -> None:
    gate = asyncio.Event()
    async with engine(streaming(b"data: 1\n\n", b"data: 2\n\n", gate=gate)) as url, relay() as to:
        found = await to.send(url, b"{}", {})
        assert found.is_stream
        chunks = found.chunks()
        assert await anext(chunks) == b"data: 1\n\n"  # while the engine still waits
        gate.set()
        assert b"".join([chunk async for chunk in chunks]) == b"data: 2\n\n"
        found.close()


async def test_an_engine_that_breaks_off_its_stream_has_failed() -> None:
    async with engine(streaming(b"data: 1\n\n", b"data: 2\n\n", then="break")) as url, relay() as to:
        found = await to.send(url, b"{}", {})
        passed: list[bytes] = []
        with pytest.raises(EngineFailed, match=r"^The engine broke off its answer: \w+\.$"):
            await collect(found, passed)
        assert b"".join(passed) == b"data: 1\n\ndata: 2\n\n"
        found.close()


async def test_an_engine_that_breaks_off_a_whole_answer_has_failed() -> None:
    async with engine(streaming(b"{", b'"a":', then="break")) as url, relay() as to:
        found = await to.send(url, b"{}", {})
        with pytest.raises(EngineFailed, match=r"^The engine broke off its answer: \w+\.$"):
            await found.rest()
        found.close()


async def test_an_engine_that_stops_sending_is_given_up_after_the_idle_time() -> None:
    async with engine(streaming(b"data: 1\n\n", then="hang")) as url, relay(idle_timeout_s=0.1) as to:
        found = await to.send(url, b"{}", {})
        with pytest.raises(EngineTimeout, match=r"^The engine sent nothing for 0\.1 s\.$"):
            await collect(found, [])
        found.close()
        found = await to.send(url, b"{}", {})
        with pytest.raises(EngineTimeout, match=r"^The engine sent nothing for 0\.1 s\.$"):
            await found.rest()
        found.close()


async def test_a_stream_that_goes_on_may_last_longer_than_the_idle_time() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(8):
            await response.write(b".")
            await asyncio.sleep(0.05)
        return response

    async with engine(answer) as url, relay(idle_timeout_s=0.3) as to:
        found = await to.send(url, b"{}", {})
        assert b"".join([chunk async for chunk in found.chunks()]) == b"........"
        found.close()


async def test_an_engine_that_gives_no_first_byte_is_given_up() -> None:
    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async with engine(answer) as url, relay(first_byte_timeout_s=0.2) as to:
        with pytest.raises(EngineTimeout, match=r"^The engine gave no first byte within 0\.2 s\.$"):
            await to.send(url, b"{}", {})
        with pytest.raises(EngineTimeout, match=r"^The engine gave no first byte within 0\.05 s\.$"):
            await to.send(url, b"{}", {}, deadline_s=0.05)
        with pytest.raises(EngineTimeout, match=r"^The engine gave no first byte within 0\.2 s\.$"):
            await to.send(url, b"{}", {}, deadline_s=9.0)


async def test_an_engine_that_is_not_there_never_got_the_request() -> None:
    async with relay() as to:
        with pytest.raises(EngineNotReached, match=r"^The engine could not be reached: \w+\.$"):
            await to.send("http://127.0.0.1:9/v1/chat/completions", b"{}", {})


async def test_an_engine_that_takes_no_connection_in_time_never_got_the_request() -> None:
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # the kernel takes one or two, and leaves the others without an answer
            other = waiting.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        async with relay() as to:
            with pytest.raises(EngineNotReached, match=r"^The engine could not be reached: ConnectionTimeoutError\.$"):
                await to.send(f"http://127.0.0.1:{full.getsockname()[1]}/v1/chat/completions", b"{}", {})


async def test_an_engine_that_answers_nothing_has_failed() -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with engine(answer) as url, relay() as to:
        with pytest.raises(EngineFailed, match=r"^The engine could not be reached: \w+\.$") as failed:
            await to.send(url, b"{}", {})
    assert not isinstance(failed.value, EngineNotReached), "it may have begun"


async def test_closing_an_answer_that_goes_on_stops_the_engines_work() -> None:
    stopped = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()
        return response

    async with engine(answer) as url, relay() as to:
        found = await to.send(url, b"{}", {})
        found.close()
        await asyncio.wait_for(stopped.wait(), 5)

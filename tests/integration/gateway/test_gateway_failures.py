"""What goes wrong: at the caller's end, at the gateway, and at the engine. Whoever called is always told."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet
from replies import CHAT, Caller, chat_body, soon


def failure(event: str) -> dict[str, Any]:
    """The error object of a stream's last event."""
    error: dict[str, Any] = json.loads(event)["error"]
    assert list(error) == ["message", "type", "param", "code"]
    return error


# The caller goes away.


async def test_an_engine_stops_within_a_second_when_the_caller_of_a_stream_goes_away(
    caller: Caller, fleet: Fleet
) -> None:
    (engine,) = fleet.engines("plain@one")
    aborted = engine.aborted
    async with caller.streamed("plain", fake={"tpot_s": 0.1, "tokens": 500}) as stream:
        async for _ in stream.events():
            if len(stream.arrived_s) == 3:
                break
        stream.response.close()
        left_s = time.monotonic()
    while engine.aborted == aborted:
        assert time.monotonic() - left_s < 1.0
        await asyncio.sleep(0.02)
    receipt = await caller.receipt(stream.receipt_id)
    assert (receipt["outcome"], receipt["status"]) == ("client_closed", 499)
    assert 2 <= receipt["actual"]["usage"]["output_tokens"] <= 15


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
async def test_an_engine_stops_when_the_caller_goes_away_before_the_first_byte(
    caller: Caller, fleet: Fleet, fields: dict[str, Any]
) -> None:
    (engine,) = fleet.engines("plain@one")
    aborted = engine.aborted
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await caller.chat("plain", fake={"hang": True}, **fields)
    await soon(lambda: engine.aborted == aborted + 1, 3.0)


# The gateway refuses, and no engine sees it.

LARGE = chat_body("plain", content="x" * 200_000)
REFUSED: list[tuple[str, bytes | dict[str, Any], int, str | None, str | None]] = [
    ("empty", b"", 400, None, "body"),
    ("not JSON", b"{model: plain}", 400, None, "body"),
    ("cut short", b'{"model": "plain", "messages": [', 400, None, "body"),
    ("two objects", b'{"model": "plain"}{}', 400, None, "body"),
    ("an array", b"[]", 400, None, "body"),
    ("not UTF-8", b'{"model": "\xff"}', 400, None, "body"),
    ("nested too deeply", b'{"model": "plain", "messages": ' + b"[" * 90_000, 400, None, "body"),
    ("too large", LARGE, 413, "body_too_large", "body"),
    ("no model", {"messages": [{"role": "user", "content": "x"}]}, 400, None, "model"),
    ("a model that is no string", chat_body(5), 400, None, "model"),  # type: ignore[arg-type]
    ("an unknown model", chat_body("nobody"), 404, "model_not_found", "model"),
    ("an unknown variant", chat_body("plain@nobody"), 404, "model_not_found", "model"),
    ("no messages", {"model": "plain"}, 400, None, "messages"),
    ("empty messages", {"model": "plain", "messages": []}, 400, None, "messages"),
    ("messages of text", {"model": "plain", "messages": ["hello"]}, 400, None, "messages[0]"),
    ("content of a number", {"model": "plain", "messages": [{"role": "user", "content": 1}]}, 400, None, None),
    ("stream of text", chat_body("plain", stream="yes"), 400, None, "stream"),
    ("max_tokens of text", chat_body("plain", max_tokens="many"), 400, None, "max_tokens"),
    ("negative max_tokens", chat_body("plain", max_tokens=-1), 400, None, "max_tokens"),
    ("temperature of text", chat_body("plain", temperature="hot"), 400, None, "temperature"),
    ("too long for the context", chat_body("plain", content="x " * 40_000), 400, "context_length_exceeded", None),
    ("too long an answer", chat_body("plain", max_tokens=4000), 400, "context_length_exceeded", None),
]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
async def test_a_request_that_cannot_be_served_is_refused_before_any_engine_sees_it(
    caller: Caller, fleet: Fleet, body: bytes | dict[str, Any], status: int, code: str | None, param: str | None
) -> None:
    (engine,) = fleet.engines("plain@one")
    before = engine.requests
    reply = await caller.post(CHAT, body)
    assert (reply.status, reply.error["type"]) == (status, "invalid_request_error")
    assert reply.error["code"] == code
    assert param in (None, reply.error["param"])
    assert engine.requests == before


async def test_a_body_without_a_declared_length_is_refused_once_it_is_too_large(caller: Caller) -> None:
    async def body() -> Any:
        for _ in range(30):
            yield b"x" * 10_000

    async with caller.session.post(CHAT, data=body()) as answer:
        assert answer.status == 413
        assert (await answer.json())["error"]["code"] == "body_too_large"
    assert (await caller.chat("plain")).status == 200


async def test_what_is_not_served_is_an_error_object_too(caller: Caller) -> None:
    for reply in (
        await caller.get("/v1/nothing"),
        await caller.post("/v1/audio/speech", {"model": "plain"}),
        await caller.get("/v1/chat/completions"),
        await caller.get("/v1/receipts/ecr-unknown"),
    ):
        assert reply.status in (404, 405)
        assert reply.error["type"] == "invalid_request_error"


async def test_more_requests_than_may_wait_are_told_when_to_come_back(caller: Caller, fleet: Fleet) -> None:
    (engine,) = fleet.engines("narrow@one")
    before = engine.requests
    body = chat_body("narrow", fake={"hang": True})
    held = [asyncio.create_task(caller.post(CHAT, body)) for _ in range(13)]  # one runs and twelve wait
    await soon(lambda: engine.requests == before + 13)
    reply = await caller.chat("narrow")
    assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
    assert int(reply.headers["retry-after"]) >= 1
    assert "12 requests wait" in reply.error["message"]
    assert engine.requests == before + 13
    for one in held:
        one.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    assert (await caller.until_served("narrow")).status == 200


# The engine fails.


async def test_a_request_whose_engine_dies_before_the_first_byte_is_answered_once_by_another_variant(
    caller: Caller, fleet: Fleet, tmp_path: Path
) -> None:
    (other,) = fleet.engines("pair@b")
    before = other.requests
    await caller.until_served("pair@a")
    reply = await caller.chat("pair", fake={"die": "before", "once": str(tmp_path / "died")})
    assert (reply.status, reply.variant) == (200, "b")
    assert other.requests == before + 1
    receipt = await caller.receipt(reply.receipt_id)
    assert receipt["outcome"] == "ok"
    assert [attempt["variant"] for attempt in receipt["attempts"]] == ["a", "b"]
    assert "could not be reached" in receipt["attempts"][0]["error"]
    assert receipt["attempts"][1]["error"] is None
    await caller.until_served("pair@a")


@pytest.mark.parametrize("fake", [{"die": "before"}, {"cut": 1}, {"status": 503}, {"garbage": True}, {"raw": "SSH-2"}])
async def test_a_request_whose_engine_fails_before_the_first_byte_is_answered_by_another_replica(
    caller: Caller, fleet: Fleet, tmp_path: Path, fake: dict[str, Any]
) -> None:
    await soon(lambda: len(fleet.engines("twins@one")) == 2)
    await caller.until_served("twins")
    await asyncio.sleep(3.5)  # a replica that broke a connection is left out for a moment
    reply = await caller.chat("twins", fake={**fake, "once": str(tmp_path / "failed")})
    assert reply.status == 200
    receipt = await caller.receipt(reply.receipt_id)
    first, second = receipt["attempts"]
    assert first["replica"] != second["replica"]
    assert first["error"] is not None
    assert second["error"] is None


@pytest.mark.parametrize("fake", [{"die": "after_chunks:3"}, {"cut": 3}])
async def test_a_stream_whose_engine_dies_ends_in_an_error_event_and_an_honest_receipt(
    caller: Caller, tmp_path: Path, fake: dict[str, Any]
) -> None:
    await caller.until_served("pair@a")
    script = {**fake, "once": str(tmp_path / "died"), "tokens": 50, "tpot_s": 0.05}
    async with caller.streamed("pair@a", fake=script) as stream:
        events = await stream.all()
    assert len(events) == 4
    assert failure(events[-1])["code"] == "engine_failed"
    receipt = await caller.receipt(stream.receipt_id)
    assert (receipt["outcome"], receipt["error"], receipt["status"]) == ("failed", "engine_failed", 200)
    assert len(receipt["attempts"]) == 1
    assert receipt["actual"]["usage"]["output_tokens"] == 2
    await caller.until_served("pair@a")


async def test_a_request_is_told_when_to_come_back_while_no_engine_is_ready(caller: Caller, fleet: Fleet) -> None:
    await caller.until_served("narrow")
    first = await caller.chat("narrow", fake={"die": "before"})
    second = await caller.chat("narrow")
    for reply in (first, second):
        assert (reply.status, reply.error["code"]) == (503, "not_ready")
        assert int(reply.headers["retry-after"]) >= 1
    receipt = await caller.receipt(first.receipt_id)
    assert (receipt["outcome"], len(receipt["attempts"])) == ("failed", 1)
    assert (await caller.until_served("narrow")).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_gives_no_first_byte_is_given_up(caller: Caller, fleet: Fleet, stream: bool) -> None:
    (engine,) = fleet.engines("plain@one")
    aborted = engine.aborted
    reply = await caller.chat("plain", stream=stream, fake={"hang": True})
    assert (reply.status, reply.error["code"]) == (504, "engine_timeout")
    assert "no first byte within 6 s" in reply.error["message"]
    await soon(lambda: engine.aborted == aborted + 1, 3.0)
    receipt = await caller.receipt(reply.receipt_id)
    assert (receipt["outcome"], receipt["error"], len(receipt["attempts"])) == ("failed", "engine_timeout", 1)


async def test_a_stream_that_stops_is_given_up_and_says_so(caller: Caller, fleet: Fleet) -> None:
    (engine,) = fleet.engines("plain@one")
    aborted = engine.aborted
    async with caller.streamed("plain", fake={"tpot_s": 60}) as stream:
        events = await stream.all()
    assert failure(events[-1])["code"] == "engine_timeout"
    await soon(lambda: engine.aborted == aborted + 1, 3.0)
    assert (await caller.receipt(stream.receipt_id))["error"] == "engine_timeout"


@pytest.mark.parametrize("fake", [{"garbage": True}, {"raw": "SSH-2.0-OpenSSH_9.6\r\n"}, {"raw": ""}])
async def test_an_engine_that_answers_nonsense_is_a_failed_engine(
    caller: Caller, fleet: Fleet, fake: dict[str, Any]
) -> None:
    await caller.until_served("plain")
    reply = await caller.chat("plain", fake=fake)
    assert (reply.status, reply.error["code"]) in ((502, "engine_failed"), (503, "not_ready"))
    await caller.until_served("plain")


# HTTP itself.

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
MALFORMED = {
    "not HTTP": b"what is this?\r\n\r\n",
    "a bad length": HEAD + b"content-length: many\r\n\r\n{}",
    "a negative length": HEAD + b"content-length: -5\r\n\r\n{}",
    "two lengths": HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "a bad chunk": HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "an endless header": b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: " + b"x" * 200_000 + b"\r\n\r\n",
    "a header with a line break": b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-a: b\r\n c\r\nbad header\r\n\r\n",
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_http_is_refused_and_harms_nobody(caller: Caller, fleet: Fleet, raw: bytes) -> None:
    (engine,) = fleet.engines("plain@one")
    before = engine.requests
    reader, writer = await asyncio.open_connection("127.0.0.1", int(fleet.url.rpartition(":")[2]))
    writer.write(raw)
    async with asyncio.timeout(20):
        try:
            answer = await reader.read(65536)
        except ConnectionResetError:
            answer = b""
    writer.close()
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    assert engine.requests == before
    assert (await caller.chat("plain")).status == 200


async def test_a_body_that_never_comes_whole_reaches_no_engine(caller: Caller, fleet: Fleet) -> None:
    (engine,) = fleet.engines("plain@one")
    before = engine.requests
    _, writer = await asyncio.open_connection("127.0.0.1", int(fleet.url.rpartition(":")[2]))
    writer.write(HEAD + b'content-length: 200\r\n\r\n{"model": "plain", "messages"')
    await writer.drain()
    await asyncio.sleep(0.5)
    writer.close()
    await asyncio.sleep(0.5)
    assert engine.requests == before
    page = (await caller.get("/metrics")).body.decode()
    assert "economizer_in_flight 0.0" in page

"""An engine's answer on its way to the caller: passed on as it comes, timed, counted, receipted."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import Send

from economizer.errors import BadEngineAnswer, EconomizerError, EngineFailed, EngineTimeout
from economizer.gateway.body import add_to_usage
from economizer.gateway.openai import WireRequest
from economizer.gateway.receipts import Receipt
from economizer.gateway.relay import EngineAnswer, StreamMeter, Usage, error_event, read_usage
from economizer.gateway.state import Gateway


class Delivery:
    """Delivers one request's answer. ``started`` says that the caller has seen the head of it.

    An answer that is complete may be held back for ``wait_s`` until it is measured; ``on_answered`` is called before.
    """

    def __init__(
        self, gateway: Gateway, wire: WireRequest, receipt: Receipt, send: Send, arrived_s: float, wait_s: float
    ) -> None:
        self._gateway = gateway
        self._wire = wire
        self._receipt = receipt
        self._send = send
        self._arrived_s = arrived_s
        self._wait_s = wait_s
        self._place = f'"{secrets.token_hex(8)}"' if wait_s > 0 else ""
        self._waited_s = 0.0
        self.started = False
        self.on_answered: Callable[[], None] = _nothing

    async def pass_on(self, answer: EngineAnswer) -> None:
        """Pass the answer on. Raises EngineFailed or EngineTimeout when it breaks off; a stream has told the caller."""
        receipt = self._receipt
        receipt.status = answer.status
        if answer.is_stream and answer.status < 400:
            receipt.ttft_s = self._elapsed_s()
            await self._stream(answer)
        else:
            await self._whole(answer)
        receipt.outcome = "ok" if answer.status < 400 else "engine_error"

    async def pass_on_failure(self, answer: EngineAnswer, body: bytes) -> None:
        """Pass on an engine's own failure, whose body was read already."""
        self._receipt.ended("engine_error", status=answer.status)
        await self._head_and_body(answer, body)

    def _elapsed_s(self) -> float:
        return self._gateway.now_s() - self._arrived_s

    async def _whole(self, answer: EngineAnswer) -> None:
        body = await answer.rest()
        if answer.status < 400:
            receipted = add_to_usage(body, self._settle)
            if receipted is body and answer.is_json and not _is_json(body):
                raise BadEngineAnswer("The engine's answer is not JSON.")
            body = await self._measured(receipted)
        await self._head_and_body(answer, body)

    async def _head_and_body(self, answer: EngineAnswer, body: bytes) -> None:
        await self._start(answer.status, [*answer.headers, (b"content-length", str(len(body)).encode())])
        await self._send({"type": "http.response.body", "body": body})

    def _settle(self, usage: Mapping[str, Any]) -> str | None:
        """Put the answer's usage into the receipt; what to add to it, as JSON."""
        read = read_usage(usage)
        if read is None:
            return None
        self._receipt.settle(read)
        return self._place or self._receipt.short_json()

    async def _measured(self, passed: bytes) -> bytes:
        """With the receipt in the place that was kept for it, measured where that comes within the wait."""
        if not self._place or self._receipt.usage is None or self._place.encode() not in passed:
            return passed
        self.on_answered()
        answered_s = self._gateway.now_s()
        await self._receipt.until_settled(self._wait_s)
        self._waited_s = self._gateway.now_s() - answered_s
        return passed.replace(self._place.encode(), self._receipt.short_json().encode())

    async def _stream(self, answer: EngineAnswer) -> None:
        meter = StreamMeter(self._settle if self._wire.wants_usage else None)
        if self._receipt.work is not None:
            self._receipt.work.stream = meter
        await self._start(answer.status, answer.headers)
        send = self._send
        failure: EconomizerError | None = None
        try:
            async for chunk in answer.chunks():
                if passed := meter.feed(chunk):
                    if self._place and (early := self._before_receipt(passed)):
                        await send({"type": "http.response.body", "body": early, "more_body": True})
                        passed = passed[len(early) :]
                    if self._place and self._receipt.usage is not None:
                        passed = await self._measured(passed)
                    await send({"type": "http.response.body", "body": passed, "more_body": True})
            if not meter.done:
                failure = EngineFailed("The engine ended its answer early.")
        except (EngineFailed, EngineTimeout) as error:
            failure = error
        finally:
            self._count(meter)
        tail = meter.rest()
        if failure is not None:
            tail += error_event(failure, clean=meter.clean)
        await send({"type": "http.response.body", "body": tail})
        if failure is not None:
            raise failure

    def _before_receipt(self, passed: bytes) -> bytes:
        """The events that came together with the one that the receipt goes into, and need not wait for it."""
        before, place, _ = passed.partition(self._place.encode())
        events, end, _ = before.rpartition(b"\n\n")
        return events + end if place else b""

    def _count(self, meter: StreamMeter) -> None:
        """Without usage from the engine, count the answer's events: a role, one a token, and the end are expected."""
        receipt, wire = self._receipt, self._wire
        if receipt.usage is None:
            overhead = (wire.endpoint == "chat") + meter.done
            guessed = self._gateway.fleet.prompt_tokens(receipt.decision.family, len(wire.prompt_text))
            receipt.settle(Usage(prompt_tokens=guessed, output_tokens=max(0, meter.events - overhead), counted=True))
        assert receipt.usage is not None
        if receipt.ttft_s is not None and receipt.usage.output_tokens > 1 and wire.sequences == 1:
            decoding_s = self._elapsed_s() - self._waited_s - receipt.ttft_s
            receipt.tpot_s = decoding_s / (receipt.usage.output_tokens - 1)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        headers = [*headers, *self._receipt.headers()]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


def _nothing() -> None:
    """Nobody wants to know."""


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


async def send_error(send: Send, error: EconomizerError, headers: list[tuple[bytes, bytes]]) -> None:
    """An error as OpenAI's object, with Retry-After where it says when to come back."""
    body = json.dumps(error.body()).encode()
    all_headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    if error.retry_after_s is not None:
        all_headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})

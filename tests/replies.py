"""Who calls a gateway in the tests, and what comes back."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, EMBEDDINGS = "/v1/responses", "/v1/embeddings"
CANARY_PROMPT = "canary-prompt-b5e1"  # no log may hold it


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object, which must have its four keys and no others."""
        error: dict[str, Any] = self.json["error"]
        assert list(error) == ["message", "type", "param", "code"]
        return error

    @property
    def variant(self) -> str:
        return self.headers["x-economizer-variant"]

    @property
    def receipt_id(self) -> str:
        return self.headers["x-economizer-request-id"]

    @property
    def short(self) -> dict[str, Any]:
        """The short receipt, in the answer's usage."""
        short: dict[str, Any] = self.json["usage"]["economizer"]
        return short

    @property
    def text(self) -> str:
        """The answer's text in a chat."""
        text: str = self.json["choices"][0]["message"]["content"]
        return text

    @property
    def received(self) -> tuple[bytes, dict[str, str]]:
        """What reached the engine, which was asked to echo it: the body, and the headers in lower case."""
        return received(self.text)


def received(text: str) -> tuple[bytes, dict[str, str]]:
    """The body and the headers in an echo."""
    echo = json.loads(text)
    return base64.b64decode(echo["body"]), {name.lower(): value for name, value in echo["headers"]}


@dataclass
class Stream:
    """A streamed answer as it comes."""

    response: aiohttp.ClientResponse
    raw: bytes = b""
    arrived_s: list[float] = field(default_factory=list)

    @property
    def receipt_id(self) -> str:
        return self.response.headers["x-economizer-request-id"]

    async def events(self) -> AsyncIterator[str]:
        """The data of each server-sent event; ``arrived_s`` holds when each came."""
        seen = 0
        async for chunk in self.response.content.iter_any():
            self.raw += chunk
            while (end := self.raw.find(b"\n\n", seen)) >= 0:
                event, seen = self.raw[seen:end].decode(), end + 2
                self.arrived_s.append(time.monotonic())
                yield next(line[6:] for line in event.split("\n") if line.startswith("data: "))
        assert seen == len(self.raw), "the stream ended inside an event"

    async def all(self) -> list[str]:
        """Every event's data."""
        return [event async for event in self.events()]


class Caller:
    """Someone with a key who calls the gateway."""

    def __init__(self, session: aiohttp.ClientSession, key: str) -> None:
        self.session = session
        self._authorization = {"authorization": f"Bearer {key}"} if key else {}

    async def get(self, path: str) -> Reply:
        async with self.session.get(path, headers=self._authorization) as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    async def post(self, path: str, body: Mapping[str, Any] | bytes, headers: Mapping[str, str] | None = None) -> Reply:
        async with self.posted(path, body, headers) as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    async def delete(self, path: str) -> Reply:
        async with self.session.delete(path, headers=self._authorization) as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    def posted(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Any:
        """An answer that is still on its way, as aiohttp has it."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        all_headers = {"content-type": "application/json", **self._authorization, **(headers or {})}
        return self.session.post(path, data=raw, headers=all_headers)

    async def chat(self, model: str, headers: Mapping[str, str] | None = None, **fields: Any) -> Reply:
        """A chat, not streamed."""
        return await self.post(CHAT, chat_body(model, **fields), headers)

    @asynccontextmanager
    async def streamed(
        self, model: str, headers: Mapping[str, str] | None = None, path: str = CHAT, **fields: Any
    ) -> AsyncIterator[Stream]:
        """A chat, streamed."""
        body = chat_body(model, stream=True, **fields)
        if path != CHAT:
            body["prompt" if path == COMPLETIONS else "input"] = body.pop("messages")[0]["content"]
        async with self.posted(path, body, headers) as answer:
            yield Stream(answer)

    async def receipt(self, receipt_id: str) -> dict[str, Any]:
        """A receipt, which is kept a moment after the answer's last byte has left."""
        reply = await self.get(f"/v1/receipts/{receipt_id}")
        for _ in range(50):
            if reply.status == 200:
                break
            await asyncio.sleep(0.1)
            reply = await self.get(f"/v1/receipts/{receipt_id}")
        found: dict[str, Any] = reply.json
        assert reply.status == 200, found
        return found

    async def until_served(self, model: str, timeout_s: float = 60.0) -> Reply:
        """Ask until it is answered, as after a failure that was provoked."""
        deadline_s = time.monotonic() + timeout_s
        while (reply := await self.chat(model)).status != 200:
            assert time.monotonic() < deadline_s, reply
            await asyncio.sleep(0.2)
        return reply


def chat_body(model: str, *, content: str = CANARY_PROMPT, **fields: Any) -> dict[str, Any]:
    """A chat's body; ``fake`` scripts the engine's answer."""
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}


async def soon(holds: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Poll until something holds."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it never came true"
        await asyncio.sleep(0.1)


class Load:
    """Callers that ask again and again, half of them for streams, and note whatever is not a whole answer.

    ``patient`` callers come back after a 429, as it says; one is then not a failure.
    """

    def __init__(
        self, caller: Caller, models: Sequence[str], workers: int, fake: Mapping[str, Any], *, patient: bool = False
    ) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._caller = caller
        self._fake = fake
        self._patient = patient
        self._going = True
        self._workers = [
            asyncio.create_task(self._work(models[index % len(models)], stream=index % 4 < 2))
            for index in range(workers)
        ]

    async def stop(self) -> None:
        """Let every caller finish its last request."""
        self._going = False
        await asyncio.gather(*self._workers)

    async def _work(self, model: str, *, stream: bool) -> None:
        while self._going:
            began_s = time.time()
            try:
                async with asyncio.timeout(60):
                    problem = await (self._stream(model) if stream else self._whole(model))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is noted, and the test fails by it
                problem = repr(error)
            if problem == "busy":
                await asyncio.sleep(0.5)
            elif problem:
                self.failures.append(f"{began_s:.2f}-{time.time():.2f} {model} stream={stream}: {problem}")
            else:
                self.answered += 1

    async def _whole(self, model: str) -> str:
        reply = await self._caller.chat(model, fake=self._fake)
        return self._problem(reply.status, reply.body)

    async def _stream(self, model: str) -> str:
        async with self._caller.streamed(model, fake=self._fake) as stream:
            if stream.response.status != 200:
                return self._problem(stream.response.status, await stream.response.read())
            events = await stream.all()
            return "" if events[-1:] == ["[DONE]"] else f"the stream ended with {events[-1:]}"

    def _problem(self, status: int, body: bytes) -> str:
        if status == 429 and self._patient:
            return "busy"
        return "" if status == 200 else f"{status} {body[:500]!r}"

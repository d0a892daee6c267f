"""A small OpenAI-compatible engine that generates nothing of worth, quickly, and misbehaves on request.

Run as ``python tests/fake_engine.py --host H --port P --name NAME``; below ``/v1`` it wants the bearer token that
``ECONOMIZER_ENGINE_SECRET`` holds. A request's body may script its own answer by a field ``fake``::

    ttft_s, tpot_s, tokens   timing and length of this answer
    status                   answer with this status and an error object
    die                      "before" any byte, or "after_chunks:N": end the whole process
    cut                      drop the connection after N chunks, without [DONE]
    garbage                  answer with bytes that are not JSON
    raw                      answer with this text in place of HTTP, and drop the connection
    hang                     never answer
    echo                     the answer's text is JSON: the received body (base64) and headers
    once                     a file: whoever can create it does all of the above, the others answer plainly

Its process hardly needs any CPU time; ``--burn-s-per-token`` makes it compute for so long for each token of a prompt
that it has not seen before, and for each token of an answer. ``--usage-too`` is JSON that stands in each ``usage``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Engine:
    """What the process was told on its command line, and what it has counted since."""

    name: str
    secret: str
    ttft_s: float
    tpot_s: float
    tokens: int
    burn_s_per_token: float = 0.0
    usage_too: dict[str, Any] = field(default_factory=dict)
    running: int = 0
    prompted: int = 0
    cached: int = 0
    generated: int = 0
    steps: int = 0
    aborted: int = 0
    requests: int = 0
    prompts_seen: set[str] = field(default_factory=set)
    health: int = 200

    def prefill(self, tokens: int, cached: int) -> None:
        """Read a prompt, in one step."""
        self._burn(tokens - cached)
        self.prompted += tokens
        self.cached += cached
        self.steps += 1

    def decode(self, tokens: int) -> None:
        """Generate tokens, one a step."""
        self._burn(tokens)
        self.generated += tokens
        self.steps += tokens

    def _burn(self, tokens: int) -> None:
        until_s = time.process_time() + tokens * self.burn_s_per_token
        while time.process_time() < until_s:
            pass


class Script:
    """How one request is to be answered."""

    def __init__(self, engine: Engine, body: dict[str, Any]) -> None:
        fake = body.get("fake") or {}
        if "once" in fake and not _first_to_create(fake["once"]):
            fake = {}
        limits = [body.get(key) for key in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
        own = int(fake.get("tokens", engine.tokens))
        self.ttft_s = float(fake.get("ttft_s", engine.ttft_s))
        self.tpot_s = float(fake.get("tpot_s", engine.tpot_s))
        self.tokens = min([own, *(limit for limit in limits if limit)])
        self.finish_reason = "length" if self.tokens < own else "stop"
        self.status: int | None = fake.get("status")
        self.die: str | None = fake.get("die")
        self.cut: int | None = fake.get("cut")
        self.garbage = bool(fake.get("garbage"))
        self.raw: str | None = fake.get("raw")
        self.hang = bool(fake.get("hang"))
        self.echo = bool(fake.get("echo"))

    def die_after(self) -> int | None:
        """The number of chunks after which the process ends, if it does."""
        return int(self.die.partition(":")[2]) if self.die and self.die.startswith("after_chunks:") else None


def _first_to_create(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@dataclass
class Answer:
    """The parts of an answer that every endpoint's shape is filled from."""

    id: str
    created: int
    model: str
    prompt_tokens: int
    cached_tokens: int
    words: list[str]
    finish_reason: str
    usage_too: dict[str, Any]

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.words),
            "total_tokens": self.prompt_tokens + len(self.words),
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            **self.usage_too,
        }

    @property
    def response_usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": len(self.words),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt_tokens + len(self.words),
        }


def error_body(message: str, status: int) -> dict[str, Any]:
    """An error as OpenAI words it."""
    return {"error": {"message": message, "type": "fake_error", "param": None, "code": str(status)}}


# Shapes: (whole answer, stream of events) per endpoint.


def chat_whole(answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    return _completion(answer, "chat.completion", [choice], answer.usage)


def chat_events(answer: Answer, include_usage: bool) -> list[dict[str, Any]]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _completion(answer, "chat.completion.chunk", [choice], None)

    events = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": word}) for word in answer.words)]
    events.append(chunk({}, answer.finish_reason))
    if include_usage:
        events.append(_completion(answer, "chat.completion.chunk", [], answer.usage))
    return events


def text_whole(answer: Answer) -> dict[str, Any]:
    choice = {"index": 0, "text": answer.text, "logprobs": None, "finish_reason": answer.finish_reason}
    return _completion(answer, "text_completion", [choice], answer.usage)


def text_events(answer: Answer, include_usage: bool) -> list[dict[str, Any]]:
    def chunk(text: str, finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        return _completion(answer, "text_completion", [choice], None)

    events = [chunk(word, None) for word in answer.words] + [chunk("", answer.finish_reason)]
    if include_usage:
        events.append(_completion(answer, "text_completion", [], answer.usage))
    return events


def _completion(answer: Answer, kind: str, choices: list[Any], usage: dict[str, Any] | None) -> dict[str, Any]:
    whole = {"id": answer.id, "object": kind, "created": answer.created, "model": answer.model, "choices": choices}
    return whole if usage is None else {**whole, "usage": usage}


def response_whole(answer: Answer, status: str = "completed") -> dict[str, Any]:
    content = {"type": "output_text", "text": answer.text, "annotations": []}
    message = {"type": "message", "id": "msg_fake", "status": status, "role": "assistant", "content": [content]}
    done = status == "completed"
    return {
        "id": answer.id,
        "object": "response",
        "created_at": answer.created,
        "status": status,
        "model": answer.model,
        "output": [message] if done else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": answer.response_usage if done else None,
    }


def response_events(answer: Answer, include_usage: bool) -> list[dict[str, Any]]:
    place = {"item_id": "msg_fake", "output_index": 0, "content_index": 0}
    deltas: list[dict[str, Any]] = [
        {"type": "response.output_text.delta", **place, "delta": word} for word in answer.words
    ]
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response_whole(answer, "in_progress")},
        *deltas,
        {"type": "response.output_text.done", **place, "text": answer.text},
        {"type": "response.completed", "response": response_whole(answer)},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


SHAPES: dict[str, tuple[Any, Any]] = {
    "/v1/chat/completions": (chat_whole, chat_events),
    "/v1/completions": (text_whole, text_events),
    "/v1/responses": (response_whole, response_events),
}


class Server:
    """The routes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self.ask_for_secret], client_max_size=64 * 2**20)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/embeddings", self.embeddings)
        app.router.add_post("/fake/health/{status}", self.set_health)
        for path in SHAPES:
            app.router.add_post(path, self.generate)
        return app

    @web.middleware
    async def ask_for_secret(self, request: web.Request, handler: Any) -> web.StreamResponse:
        wanted = f"Bearer {self.engine.secret}"
        if request.path.startswith("/v1") and request.headers.get("authorization") != wanted:
            return web.json_response(error_body("no secret", 401), status=401)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def health(self, request: web.Request) -> web.Response:
        if self.engine.health == 0:
            await asyncio.sleep(3600)
        return web.Response(status=self.engine.health)

    async def set_health(self, request: web.Request) -> web.Response:
        """From now on /health has this status; 0 hangs."""
        self.engine.health = int(request.match_info["status"])
        return web.Response()

    async def metrics(self, request: web.Request) -> web.Response:
        engine, labels = self.engine, f'{{engine="0",model_name="{self.engine.name}"}}'
        lines = [
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{labels} {float(engine.running)}",
            "# TYPE vllm:num_requests_waiting gauge",
            f"vllm:num_requests_waiting{labels} 0.0",
            "# TYPE vllm:kv_cache_usage_perc gauge",
            f"vllm:kv_cache_usage_perc{labels} {min(1.0, engine.running / 16)}",
            "# TYPE vllm:prompt_tokens counter",
            f"vllm:prompt_tokens_total{labels} {float(engine.prompted)}",
            "# TYPE vllm:prefix_cache_hits counter",
            f"vllm:prefix_cache_hits_total{labels} {float(engine.cached)}",
            "# TYPE vllm:iteration_tokens_total histogram",
            f"vllm:iteration_tokens_total_count{labels} {float(engine.steps)}",
            "# TYPE vllm:generation_tokens counter",
            f"vllm:generation_tokens_total{labels} {float(engine.generated)}",
            "# TYPE fake:requests counter",
            f"fake:requests_total{labels} {float(engine.requests)}",
            "# TYPE fake:aborted counter",
            f"fake:aborted_total{labels} {float(engine.aborted)}",
        ]
        return web.Response(text="\n".join(lines) + "\n")

    async def models(self, request: web.Request) -> web.Response:
        model = {"id": self.engine.name, "object": "model", "created": int(time.time()), "owned_by": "fake"}
        return web.json_response({"object": "list", "data": [model]})

    async def embeddings(self, request: web.Request) -> web.Response:
        self.engine.requests += 1
        body = await request.json()
        inputs = body.get("input") if isinstance(body.get("input"), list) else [body.get("input")]
        data = [{"object": "embedding", "index": i, "embedding": [0.6, 0.8]} for i in range(len(inputs))]
        tokens = sum(len(str(text).split()) for text in inputs)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return web.json_response({"object": "list", "data": data, "model": self.engine.name, "usage": usage})

    async def generate(self, request: web.Request) -> web.StreamResponse:
        self.engine.requests += 1
        raw = await request.read()
        try:
            body = json.loads(raw)
        except ValueError:
            return web.json_response(error_body("the body is not JSON", 400), status=400)
        script = Script(self.engine, body)
        if script.status is not None:
            return web.json_response(error_body("as told", script.status), status=script.status)
        answer = self.answer(body, script, request, raw)
        self.engine.running += 1
        try:
            return await self.play(request, body, script, answer)
        except (asyncio.CancelledError, ConnectionError):
            self.engine.aborted += 1
            raise
        finally:
            self.engine.running -= 1

    def answer(self, body: dict[str, Any], script: Script, request: web.Request, raw: bytes) -> Answer:
        prompt = json.dumps(body.get("messages") or body.get("prompt") or body.get("input"))
        cached = prompt in self.engine.prompts_seen
        self.engine.prompts_seen.add(prompt)
        prompt_tokens = len(prompt) // 4 + 1
        words = [f"word{number} " for number in range(script.tokens)]
        if script.echo:
            received = {"body": base64.b64encode(raw).decode(), "headers": list(map(list, request.headers.items()))}
            words = [json.dumps(received)]
        return Answer(
            id=f"fake-{time.monotonic_ns()}",
            created=int(time.time()),
            model=self.engine.name,
            prompt_tokens=prompt_tokens,
            cached_tokens=prompt_tokens - 1 if cached else 0,
            words=words,
            finish_reason=script.finish_reason,
            usage_too=self.engine.usage_too,
        )

    async def play(
        self, request: web.Request, body: dict[str, Any], script: Script, answer: Answer
    ) -> web.StreamResponse:
        whole, events = SHAPES[request.path]
        if script.hang:
            await asyncio.sleep(3600)
        if script.die == "before":
            os._exit(9)
        if script.raw is not None:
            assert request.transport is not None
            request.transport.write(script.raw.encode())
            request.transport.close()
            raise ConnectionResetError("as told")
        self.engine.prefill(answer.prompt_tokens, answer.cached_tokens)
        if body.get("stream") and not script.garbage:
            include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return await self.stream(request, script, events(answer, include_usage), len(answer.words))
        await asyncio.sleep(script.ttft_s)
        if script.garbage:
            return web.Response(body=b"\xff\xfe{not json", content_type="application/json")
        await asyncio.sleep(script.tpot_s * max(0, len(answer.words) - 1))
        self.engine.decode(len(answer.words))
        if script.cut is not None:
            return await self.half(request, json.dumps(whole(answer)).encode())
        return web.json_response(whole(answer))

    async def half(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """Promise the whole body, send half of it, and drop the connection."""
        response = web.StreamResponse(headers={"content-type": "application/json", "content-length": str(len(body))})
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        assert request.transport is not None
        request.transport.abort()
        return response

    async def stream(
        self, request: web.Request, script: Script, events: list[dict[str, Any]], tokens: int
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
        await response.prepare(request)  # as vLLM does, the head goes out before the first token is there
        await asyncio.sleep(script.ttft_s)
        sent = 0
        async for frame in self.frames(request, script, events):
            await response.write(frame)
            sent += 1
            if sent <= tokens:  # the other events say who speaks, why it ends, and what was used
                self.engine.decode(1)
            if sent == script.die_after():
                await asyncio.sleep(0.05)  # what was written must leave before the process does
                os._exit(9)
            if sent == script.cut:
                await asyncio.sleep(0.05)
                assert request.transport is not None
                request.transport.abort()
                return response
        await response.write_eof()
        return response

    async def frames(self, request: web.Request, script: Script, events: list[dict[str, Any]]) -> AsyncIterator[bytes]:
        """Server-sent events, paced."""
        named = request.path == "/v1/responses"
        for number, event in enumerate(events):
            if number and script.tpot_s:
                await asyncio.sleep(script.tpot_s)
            head = f"event: {event['type']}\n" if named else ""
            yield f"{head}data: {json.dumps(event)}\n\n".encode()
        if not named:
            yield b"data: [DONE]\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--start-delay-s", type=float, default=0.0)
    parser.add_argument("--ttft-s", type=float, default=0.0)
    parser.add_argument("--tpot-s", type=float, default=0.0)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--burn-s-per-token", type=float, default=0.0)
    parser.add_argument("--usage-too", type=json.loads, default={})
    parser.add_argument("--crash-at-start", action="store_true")
    parser.add_argument("--child", action="store_true", help="start a child of another session that ignores SIGTERM")
    args = parser.parse_args()
    print(f"fake engine {args.name} starts", flush=True)
    if args.child:
        _start_child()
    time.sleep(args.start_delay_s)
    if args.crash_at_start:
        print("out of memory, says the fake", file=sys.stderr, flush=True)
        sys.exit(3)
    engine = Engine(
        name=args.name,
        secret=os.environ["ECONOMIZER_ENGINE_SECRET"],
        ttft_s=args.ttft_s,
        tpot_s=args.tpot_s,
        tokens=args.tokens,
        burn_s_per_token=args.burn_s_per_token,
        usage_too=args.usage_too,
    )
    web.run_app(
        Server(engine).app(),
        host=args.host,
        port=args.port,
        print=None,
        handler_cancellation=True,
        shutdown_timeout=1.0,
    )


def _start_child() -> None:
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.execvp("sh", ["sh", "-c", "trap '' TERM; echo grandchild $$; sleep 1000 & wait; wait"])


if __name__ == "__main__":
    main()

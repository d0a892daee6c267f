"""An OpenAI-compatible server whose answers go well or wrong as the request's ``model`` says.

Run as ``python scripted_server.py``; it prints the port that it took. ``GET /held`` counts the requests that wait for
an answer that does not come, ``GET /requests`` shows what was asked.

======================  ============================================================================
``quick``, ``paced``    a stream of four words, at once or one every 50 ms, with usage
``whole``               an answer in one piece whether or not a stream was asked for
``hangs``               nothing, ever; ``stalls`` sends a word first
``breaks``              two words of a stream, then the connection is dropped
``stops``               two words of a stream, then an end without ``[DONE]``
``fails``               two words of a stream, then an error as an event
``full``                503 with OpenAI's error object; ``proxy`` the same status with a page of HTML
``closes``              the connection is dropped without an answer
``nonsense``            200 with what is not JSON
======================  ============================================================================
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

_WORDS = ("An", " economizer", " wins", " heat")
_USAGE = {"prompt_tokens": 33, "completion_tokens": len(_WORDS), "total_tokens": 37}
_SPENT = {
    "request_id": "r-1",
    "variant": "int8",
    "method": "estimate",
    "energy_j": 2.0,
    "cost_usd": 0.5,
    "carbon_g": 1.0,
}
_HEAD = {"x-economizer-variant": "int8", "x-economizer-request-id": "r-1"}
_MEASURED = {"method": "rapl", "energy_j": 1.5, "cost_usd": 0.25, "carbon_g": 0.75}
_PREDICTED = {
    "ttft_s": {"p50": 0.125},
    "tpot_s": {"p50": 0.25},
    "costs": {"energy_j": 3.0, "cost_usd": 0.75},
    "quality": 0.9,
}
_RECEIPT = {
    "actual": _MEASURED,
    "decision": {"variant": "int8", "candidates": [{"variant": "int8", "prediction": _PREDICTED}]},
}
_MODELS = (
    "quick",
    "paced",
    "whole",
    "hangs",
    "stalls",
    "breaks",
    "stops",
    "fails",
    "full",
    "proxy",
    "closes",
    "nonsense",
)


class Server:
    """The routes. ``requests`` are bodies and headers of what was asked, for tests to look at."""

    def __init__(self) -> None:
        self._held = 0
        self._requests: list[dict[str, Any]] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/receipts/{id}", self._receipt)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/held", self._count)
        app.router.add_get("/requests", self._asked)
        return app

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in _MODELS]})

    async def _receipt(self, _request: web.Request) -> web.Response:
        return web.json_response(_RECEIPT)

    async def _count(self, _request: web.Request) -> web.Response:
        return web.json_response(self._held)

    async def _asked(self, _request: web.Request) -> web.Response:
        return web.json_response(self._requests)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self._requests.append({"body": body, "headers": {name.lower(): of for name, of in request.headers.items()}})
        match body["model"]:
            case "hangs":
                await self._hold()
            case "closes":
                _drop(request)
                return web.Response()
            case "full":
                error = {"message": "no engine is ready", "type": "server_error", "param": None, "code": "not_ready"}
                return web.json_response({"error": error}, status=503)
            case "proxy":
                return web.Response(text="<html>Service Unavailable</html>", content_type="text/html", status=503)
            case "nonsense":
                return web.Response(text="well", content_type="application/json")
            case "whole":
                message = {"role": "assistant", "content": "".join(_WORDS)}
                head = {**_HEAD, "x-energy-joules": "2", "x-cost-usd": "0.5", "x-economizer-method": "estimate"}
                return web.json_response({"choices": [{"message": message}], "usage": _USAGE}, headers=head)
        return await self._stream(request, body)

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        model = body["model"]
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **_HEAD})
        await response.prepare(request)
        await _event(response, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for number, word in enumerate(_WORDS):
            if number == 1 and model == "stalls":
                await self._hold()
            if number == 2 and model in ("breaks", "stops", "fails"):
                if model == "breaks":
                    _drop(request)
                if model == "fails":
                    await _event(
                        response, {"error": {"message": "gone", "type": "server_error", "code": "engine_failed"}}
                    )
                return response
            if model == "paced":
                await asyncio.sleep(0.05)
            await _event(response, {"choices": [{"delta": {"content": word}}], "usage": None})
        if body.get("stream_options", {}).get("include_usage"):
            await _event(response, {"choices": [], "usage": {**_USAGE, "economizer": _SPENT}})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _hold(self) -> None:
        """Until the client is gone."""
        self._held += 1
        try:
            await asyncio.Event().wait()
        finally:
            self._held -= 1


async def _event(response: web.StreamResponse, content: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(content).encode() + b"\n\n")


def _drop(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


async def serve() -> None:
    """Answer until the process ends."""
    runner = web.AppRunner(Server().app(), handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())

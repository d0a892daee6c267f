"""The control: what anybody would write to pass a request on, on Ray Serve. FastAPI and aiohttp; it decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import cycle
from typing import Any

import aiohttp
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from ray import serve
from ray.serve.schema import LoggingConfig

APPLICATION = "bare"
DEPLOYMENT = "passthrough"
IMPORT_PATH = "bare_passthrough:build"
_KEPT = ("content-type", "content-length")


def relay(urls: list[str], secret: str) -> FastAPI:
    """An application that passes every chat request on to one of these engines, in turn."""
    engines = cycle(urls)
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    session: aiohttp.ClientSession

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal session
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )
        yield
        await session.close()

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        answer = await session.post(next(engines), data=await request.body(), headers=headers)

        async def chunks() -> AsyncIterator[bytes]:
            async with answer:
                async for chunk in answer.content.iter_any():
                    yield chunk

        kept = {name: answer.headers[name] for name in _KEPT if name in answer.headers}
        return StreamingResponse(chunks(), answer.status, headers=kept)

    return app


def build(args: Mapping[str, Any]) -> serve.Application:
    """The Serve application; its options are those of Economizer's gateway."""
    deployment = serve.deployment(
        serve.ingress(lambda: relay(list(args["urls"]), str(args["secret"])))(),
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=1088,
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return deployment.bind()

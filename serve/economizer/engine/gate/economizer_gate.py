"""Lets nothing into a vLLM server but requests with its secret, its health and its metrics.

vLLM asks for ``VLLM_API_KEY`` below ``/v1`` and a few more paths only, and answers prompts on others, ``/invocations``
among them. This file is imported in vLLM's environment (``--middleware economizer_gate.Gate``), from a folder of its
own, so it uses the standard library alone.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPEN = frozenset({"/health", "/metrics", "/metrics/"})
_REFUSAL = (
    b'{"error":{"message":"This engine takes requests from its gateway only.",'
    b'"type":"invalid_request_error","param":null,"code":"unauthorized"}}'
)


class Gate:
    """ASGI middleware that answers 401 to what does not carry ``Authorization: Bearer $VLLM_API_KEY``."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._wanted = b"Bearer " + os.environ["VLLM_API_KEY"].encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._may_pass(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_REFUSAL))]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})

    def _may_pass(self, scope: Scope) -> bool:
        if scope.get("method") == "GET" and scope["path"] in _OPEN:
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._wanted)

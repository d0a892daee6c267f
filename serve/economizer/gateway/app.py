"""The HTTP surface: the relayed OpenAI endpoints, and the gateway's own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from economizer.errors import EconomizerError, LedgerGone, ModelNotFound, ReceiptNotFound
from economizer.gateway.booked import booked_receipt
from economizer.gateway.exchange import Exchange
from economizer.gateway.gatekeeper import Party
from economizer.gateway.metrics import CONTENT_TYPE
from economizer.gateway.openai import ENDPOINTS, openapi_paths, route_of
from economizer.gateway.organization import invalid_request, router
from economizer.gateway.state import Gateway
from economizer.variants.catalog import ModelName

_VERSION = "0.1.0"


class App:
    """The ASGI application. Requests for an engine go straight to their :class:`Exchange`, the rest to FastAPI."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._rest: ASGIApp = own_routes(gateway)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request, or the lifespan."""
        if scope["type"] == "http" and scope["method"] == "POST" and (endpoint := ENDPOINTS.get(route_of(scope))):
            await Exchange(self._gateway, endpoint, scope, receive, send).run()
        else:
            await self._rest(scope, receive, send)


def own_routes(gateway: Gateway) -> FastAPI:
    """Models, receipts, health, metrics and documentation."""
    app = FastAPI(
        title="Economizer",
        version=_VERSION,
        description="OpenAI's API; each request is answered by the variant that meets its terms at the least cost.",
        docs_url="/docs",
        redoc_url=None,
    )

    @app.exception_handler(EconomizerError)
    async def openai_error(request: Request, error: EconomizerError) -> JSONResponse:
        retry_s = error.retry_after_s
        headers = {} if retry_s is None else {"retry-after": str(max(1, round(retry_s)))}
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def no_such_place(request: Request, error: Exception) -> JSONResponse:
        status = getattr(error, "status_code", 404)
        message = f"{request.method} {request.url.path} is not served here: see /docs."
        body = {"message": message, "type": "invalid_request_error", "param": None, "code": "not_found"}
        return JSONResponse({"error": body}, status)

    app.add_exception_handler(RequestValidationError, invalid_request)
    if gateway.ledger is not None:
        app.include_router(router(gateway.ledger, lambda request: _admin(gateway, request)))

    @app.get("/v1/models", summary="Families, the variants that pin them, and LoRA adapters")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(gateway, name, means) for name, means in gateway.catalog.models()]}

    @app.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str) -> dict[str, Any]:
        for known, means in gateway.catalog.models():
            if known == name:
                return _model(gateway, known, means)
        raise ModelNotFound(f"The model {name[:100]!r} does not exist.", param="model")

    @app.get("/v1/receipts/{receipt_id}", summary="Why a request was answered as it was, and what it took")
    async def receipt(receipt_id: str, request: Request) -> dict[str, Any]:
        party = gateway.gatekeeper.identify(request.headers, gateway.wall_s())
        return await _receipt(gateway, party, receipt_id)

    @app.get("/healthz", summary="The gateway is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Every family can answer")
    async def readyz() -> JSONResponse:
        ready = gateway.ready_families()
        missing = sorted({family.name for family in gateway.catalog.families} - set(ready))
        found = {"ready": not missing, "families": ready, "not_ready": missing, "engines": gateway.engines()}
        return JSONResponse(found, 503 if missing else 200)

    @app.get("/metrics", summary="Prometheus metrics of this gateway", response_class=Response)
    async def metrics() -> Response:
        return Response(gateway.metrics.page(gateway.fleet, gateway.in_flight), media_type=CONTENT_TYPE)

    _document_relayed(app)
    return app


def _admin(gateway: Gateway, request: Request) -> None:
    gateway.gatekeeper.check_admin(request.headers, gateway.wall_s())


async def _receipt(gateway: Gateway, party: Party, receipt_id: str) -> dict[str, Any]:
    """From memory; from the books where it is not there, or was given up and is measured in them."""
    found = gateway.receipts.get(receipt_id, party.caller)
    if found is not None and not found.given_up:
        return found.long()
    try:
        row = await gateway.ledger.request(receipt_id) if gateway.ledger is not None else None
    except LedgerGone:
        if found is None:
            raise
        return found.long()
    if found is not None and (row is None or row.booking is None or not row.method):
        return found.long()
    if row is None or not party.may_read(row):
        raise ReceiptNotFound(f"No receipt {receipt_id[:100]!r} is kept for this key.", param="id")
    return booked_receipt(row)


def _model(gateway: Gateway, name: str, means: ModelName) -> dict[str, Any]:
    family = gateway.catalog.family(means.family)
    variants = [v for v in family.variants if (means.variant == v.name if means.variant else v.routed)]
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "economizer",
        "root": family.name,
        "parent": means.family if means.lora else None,
        "max_model_len": max(variant.context_tokens_max for variant in variants),
        "economizer": {
            "family": family.name,
            "variants": [variant.name for variant in variants],
            "full": family.full,
            "policy": family.policy,
        },
    }


def _document_relayed(app: FastAPI) -> None:
    """Add the relayed endpoints, which FastAPI does not route, to the OpenAPI document."""
    of_routes = app.openapi

    def openapi() -> dict[str, Any]:
        document = of_routes()
        document["paths"].update(openapi_paths())
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document

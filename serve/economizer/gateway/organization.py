"""What was spent, for those who pay for it, and the API keys: routes for administrators.

Costs and usage come in OpenAI's shapes too, so that what reads OpenAI's bills reads these. Sums of many accounts are
made in a thread, because streams go through the event loop meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import time
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from economizer.admission.keys import KeyRecord, Role
from economizer.errors import InvalidRequest
from economizer.ledger.bill import Bill
from economizer.ledger.bill_forms import as_json
from economizer.ledger.openai_shapes import CostGroup, Page, UsageGroup, completions, costs, key_object
from economizer.ledger.price_map import Basis, PriceMap
from economizer.ledger.types import AccountRow, MeterRow
from economizer.ledger.when import span

_COST_BUCKETS = 7  # by default, as with OpenAI
_USAGE_BUCKETS = {"1h": (24, 168), "1d": (7, 31)}  # by default and at most, as with OpenAI
_BILL_TRIES = 3  # something may be booked between the reads of accounts and of meters
_LAST_S = 253_402_300_799  # the end of the year 9999

Moment = Annotated[int, Field(ge=0, le=_LAST_S)]


class Books(Protocol):
    """The ledger, as these routes ask for it. Every method may raise LedgerGone or another EconomizerError."""

    async def accounts(self, since_s: float, until_s: float) -> Sequence[AccountRow]:
        """All accounts of the hours in the span."""

    async def meters(self, since_s: float, until_s: float) -> Sequence[MeterRow]:
        """All engines' hours in the span."""

    async def price_map(self, basis: Basis) -> PriceMap:
        """Prices per token by what was booked in the last 24 hours."""

    async def keys(self, include_revoked: bool) -> Sequence[KeyRecord]:
        """The keys, the oldest first."""

    async def create_key(self, tenant: str, role: Role, expires_s: float | None, note: str) -> tuple[str, KeyRecord]:
        """A new key's text and record. ``expires_s`` is in seconds since the epoch; ValueError for a wrong tenant."""

    async def rotate_key(self, key_id: str, grace_s: float) -> tuple[str, KeyRecord]:
        """A new key in the place of one that ends after ``grace_s``; InvalidRequest where there is none that works."""

    async def revoke_key(self, key_id: str) -> bool:
        """False where there is none with this id, or it was revoked before."""


class _Strict(BaseModel):
    """What is not known is refused: a filter that is left out of account would give wrong sums."""

    model_config = ConfigDict(extra="forbid")


class CostsQuery(_Strict):
    """The query of ``/v1/organization/costs``. Times in seconds since the epoch; the end is exclusive."""

    start_time: Moment
    end_time: Moment | None = None
    bucket_width: Literal["1d"] = "1d"
    group_by: list[CostGroup] = []
    group_by_brackets: list[CostGroup] = Field([], alias="group_by[]")  # as OpenAI's own clients write it
    limit: Annotated[int, Field(ge=1, le=180)] = _COST_BUCKETS
    page: str | None = None


class UsageQuery(_Strict):
    """The query of ``/v1/organization/usage/completions``."""

    start_time: Moment
    end_time: Moment | None = None
    bucket_width: Literal["1m", "1h", "1d"] = "1d"
    group_by: list[UsageGroup] = []
    group_by_brackets: list[UsageGroup] = Field([], alias="group_by[]")
    limit: Annotated[int, Field(ge=1)] | None = None
    page: str | None = None


class BillQuery(_Strict):
    """The query of ``/v1/economizer/bill``, whose words are those of ``economizer bill``."""

    since: str = "today"
    until: str | None = None
    by: str = "tenant,variant"
    tenant: str | None = None
    family: str | None = None


class NewKey(_Strict):
    """The body that makes a key. ``expires_in_s`` is from now; None never ends."""

    tenant: str
    role: Role = "tenant"
    expires_in_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    note: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""


class Rotation(_Strict):
    """The body that rotates a key. The old one works for ``grace_s`` more."""

    grace_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3600.0


async def invalid_request(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's RequestValidationError as OpenAI's error object; to be installed as its exception handler."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = () if first["type"] == "json_invalid" else first["loc"][1:]  # there it is a position in the text
    param = ".".join(str(part) for part in place) or None
    answer = InvalidRequest(f"{param or first['loc'][0]}: {first['msg']}", param=param)
    return JSONResponse(answer.body(), answer.status)


def router(books: Books, admin: Callable[[Request], None]) -> APIRouter:
    """The routes. ``admin`` raises KeyRefused or NotAllowed for a request without an administrator's key."""

    async def admitted(request: Request) -> None:
        admin(request)

    routes = APIRouter(dependencies=[Depends(admitted)])
    _add_organization(routes, books)
    _add_bill(routes, books)
    _add_keys(routes, books)
    return routes


def _add_organization(routes: APIRouter, books: Books) -> None:
    @routes.get("/v1/organization/costs", summary="What was billed, by day, in OpenAI's shape")
    async def organization_costs(query: Annotated[CostsQuery, Query()]) -> dict[str, Any]:
        page = Page.of(
            start_s=query.start_time,
            end_s=time() if query.end_time is None else query.end_time,
            width=query.bucket_width,
            limit=query.limit,
            cursor=query.page,
        )
        accounts = await books.accounts(page.since_s, page.until_s)
        return await asyncio.to_thread(costs, accounts, page, [*query.group_by, *query.group_by_brackets])

    @routes.get("/v1/organization/usage/completions", summary="Requests and tokens, by hour or day, in OpenAI's shape")
    async def organization_usage(query: Annotated[UsageQuery, Query()]) -> dict[str, Any]:
        if query.bucket_width == "1m":
            message = "bucket_width is '1m': must be 1h or 1d, since accounts are kept by the hour"
            raise InvalidRequest(message, param="bucket_width")
        usual, most = _USAGE_BUCKETS[query.bucket_width]
        limit = query.limit or usual
        if limit > most:
            message = f"limit is {limit}: must be {most} or less where bucket_width is {query.bucket_width}"
            raise InvalidRequest(message, param="limit")
        page = Page.of(
            start_s=query.start_time,
            end_s=time() if query.end_time is None else query.end_time,
            width=query.bucket_width,
            limit=limit,
            cursor=query.page,
        )
        accounts = await books.accounts(page.since_s, page.until_s)
        return await asyncio.to_thread(completions, accounts, page, [*query.group_by, *query.group_by_brackets])


def _add_bill(routes: APIRouter, books: Books) -> None:
    @routes.get("/v1/economizer/bill", summary="What was spent, and whether it adds up to what was measured")
    async def bill(query: Annotated[BillQuery, Query()]) -> dict[str, Any]:
        since_s, until_s = span(query.since, query.until, time())
        for _ in range(_BILL_TRIES):
            accounts, meters = await books.accounts(since_s, until_s), await books.meters(since_s, until_s)
            found = await asyncio.to_thread(_bill, query, accounts, meters, since_s, until_s)
            if found.closes:
                break
        return as_json(found)

    @routes.get("/v1/economizer/prices", summary="Prices per token by what was booked lately, in LiteLLM's shape")
    async def prices(basis: Basis = "allocation") -> JSONResponse:
        found = await books.price_map(basis)
        # In a header, because LiteLLM takes every key of the body for a model.
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.left_out.items())
        headers: Mapping[str, str] = {"x-economizer-left-out": reasons} if reasons else {}
        return JSONResponse(dict(found.entries), headers=headers)


def _bill(
    query: BillQuery, accounts: Sequence[AccountRow], meters: Sequence[MeterRow], since_s: int, until_s: int
) -> Bill:
    try:
        return Bill.of(
            accounts, meters, since_s, until_s, by=query.by.split(","), tenant=query.tenant, family=query.family
        )
    except ValueError as error:
        raise InvalidRequest(str(error), param="by") from None


def _add_keys(routes: APIRouter, books: Books) -> None:
    @routes.get("/v1/economizer/keys", summary="API keys, without their secrets")
    async def keys(include_revoked: bool = False) -> dict[str, Any]:
        return {"object": "list", "data": [key_object(key) for key in await books.keys(include_revoked)]}

    @routes.post("/v1/economizer/keys", summary="Make an API key; its text is shown this once")
    async def create(body: NewKey) -> dict[str, Any]:
        expires_s = None if body.expires_in_s is None else time() + body.expires_in_s
        try:
            text, key = await books.create_key(body.tenant, body.role, expires_s, body.note)
        except ValueError as error:
            raise InvalidRequest(str(error), param="tenant") from None
        return {**key_object(key), "key": text}

    @routes.post("/v1/economizer/keys/{key_id}/rotate", summary="A new key in the place of one that ends")
    async def rotate(key_id: str, body: Rotation | None = None) -> dict[str, Any]:
        text, key = await books.rotate_key(key_id, (body or Rotation()).grace_s)
        return {**key_object(key), "key": text}

    @routes.delete("/v1/economizer/keys/{key_id}", summary="Revoke an API key at once")
    async def revoke(key_id: str) -> dict[str, Any]:
        if not await books.revoke_key(key_id):
            raise InvalidRequest(f"There is no key {key_id[:100]!r} that works.", param="id")
        return {"object": "economizer.key.deleted", "id": key_id, "deleted": True}

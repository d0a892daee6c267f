import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from economizer.admission.keys import KeyRecord, Role, new_key, rotate
from economizer.errors import EconomizerError, KeyRefused, NotAllowed
from economizer.gateway.organization import invalid_request, router
from economizer.ledger.price_map import Basis, PriceMap, price_map
from economizer.ledger.store import Store
from economizer.ledger.types import AccountRow, MeterRow
from economizer.variants.types import Variant
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ledger_batches import small_bill
from openai import AsyncOpenAI, PermissionDeniedError

DAY_S = 86_400
DAY = 20_000  # 2024-10-04
BEGAN_S = DAY * DAY_S
URL = "http://economizer"
ADMIN = {"authorization": "Bearer admin"}


class StoreBooks:
    """The ledger of one SQLite file, asked as the gateway's bookkeeper would be."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def accounts(self, since_s: float, until_s: float) -> list[AccountRow]:
        return await asyncio.to_thread(self.store.accounts, since_s, until_s)

    async def meters(self, since_s: float, until_s: float) -> list[MeterRow]:
        return await asyncio.to_thread(self.store.meters, since_s, until_s)

    async def price_map(self, basis: Basis) -> PriceMap:
        variants = [
            Variant(family="m", name=name, context_tokens_max=64, concurrency_max=1, hardware="cpu")
            for name in ("full", "int8")
        ]
        accounts = await self.accounts(BEGAN_S, BEGAN_S + DAY_S)
        return price_map(accounts, variants, {"m@int8": (1.0, 4.0)}, basis)

    async def keys(self, include_revoked: bool) -> list[KeyRecord]:
        return self.store.keys(include_revoked)

    async def create_key(self, tenant: str, role: Role, expires_s: float | None, note: str) -> tuple[str, KeyRecord]:
        text, key = new_key(tenant, role, now_s=time.time(), expires_s=expires_s, note=note)
        self.store.add_key(key)
        return text, key

    async def rotate_key(self, key_id: str, grace_s: float) -> tuple[str, KeyRecord]:
        (key,) = (key for key in self.store.keys(False) if key.id == key_id)
        text, new, old = rotate(key, now_s=time.time(), grace_s=grace_s)
        self.store.add_key(new, replaced=old)
        return text, new

    async def revoke_key(self, key_id: str) -> bool:
        return self.store.revoke_key(key_id, time.time())


def admin(request: Request) -> None:
    """Three callers: an administrator, a tenant, and everybody else."""
    key = request.headers.get("authorization")
    if key == "Bearer tenant":
        raise NotAllowed("not yours")
    if key != "Bearer admin":
        raise KeyRefused("who?")


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that has these routes and errors as the gateway has them."""
    store = Store.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    store.write(small_bill(BEGAN_S))
    app = FastAPI()
    app.include_router(router(StoreBooks(store), admin))
    app.add_exception_handler(RequestValidationError, invalid_request)

    @app.exception_handler(EconomizerError)
    async def openai_error(request: Request, error: EconomizerError) -> JSONResponse:
        return JSONResponse(error.body(), error.status)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=URL, headers=ADMIN) as client:
        yield client
    store.close()


def openai_client(gateway: httpx.AsyncClient, key: str = "admin") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{URL}/v1", api_key=key, admin_api_key=key, http_client=gateway, max_retries=0)


async def test_openais_own_client_reads_the_costs(gateway: httpx.AsyncClient) -> None:
    page = await openai_client(gateway).admin.organization.usage.costs(
        start_time=BEGAN_S, end_time=BEGAN_S + DAY_S, group_by=["project_id", "line_item"]
    )
    found = [result.to_dict() for bucket in page.data for result in bucket.results]
    assert found == [
        {
            "object": "organization.costs.result",
            "amount": {"value": 4e-06, "currency": "usd"},
            "line_item": "m@int8",
            "project_id": "acme",
        },
        {
            "object": "organization.costs.result",
            "amount": {"value": 1.6e-05, "currency": "usd"},
            "line_item": "m@int8 idle",
            "project_id": None,
        },
    ]
    assert (page.has_more, page.next_page) == (False, None)


async def test_openais_own_client_reads_the_usage_and_follows_pages(gateway: httpx.AsyncClient) -> None:
    usage = openai_client(gateway).admin.organization.usage
    first = await usage.completions(
        start_time=BEGAN_S - 3600, end_time=BEGAN_S + 3600, bucket_width="1h", limit=1, group_by=["model"]
    )
    assert [bucket.results for bucket in first.data] == [[]]
    second = await usage.completions(
        start_time=BEGAN_S - 3600,
        end_time=BEGAN_S + 3600,
        bucket_width="1h",
        limit=1,
        group_by=["model"],
        page=str(first.next_page),
    )
    assert [result.to_dict() for result in second.data[0].results] == [
        {
            "object": "organization.usage.completions.result",
            "input_tokens": 8,
            "output_tokens": 4,
            "input_cached_tokens": 4,
            "num_model_requests": 1,
            "project_id": None,
            "model": "m@int8",
            "economizer": {"energy_j": 0.2, "cost_usd": 4e-06, "carbon_g": None},
        }
    ]
    assert not second.has_more


async def test_a_tenant_sees_none_of_it(gateway: httpx.AsyncClient) -> None:
    with pytest.raises(PermissionDeniedError, match="not yours"):
        await openai_client(gateway, "tenant").admin.organization.usage.costs(start_time=0)
    for method, path in [
        ("GET", "/v1/organization/costs"),
        ("GET", "/v1/organization/usage/completions"),
        ("GET", "/v1/economizer/bill"),
        ("GET", "/v1/economizer/prices"),
        ("GET", "/v1/economizer/keys"),
        ("POST", "/v1/economizer/keys"),
        ("POST", "/v1/economizer/keys/a/rotate"),
        ("DELETE", "/v1/economizer/keys/a"),
    ]:
        answer = await gateway.request(method, path, headers={"authorization": "Bearer nobody"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("query", "param", "message"),
    [
        ("", "start_time", "start_time: Field required"),
        (
            "start_time=x",
            "start_time",
            "start_time: Input should be a valid integer, unable to parse string as an integer",
        ),
        ("start_time=1&bucket_width=1m", "bucket_width", "bucket_width: Input should be '1d'"),
        ("start_time=1&limit=181", "limit", "limit: Input should be less than or equal to 180"),
        (
            "start_time=1&group_by[]=api_key_id",
            "group_by[].0",
            "group_by[].0: Input should be 'project_id' or 'line_item'",
        ),
        ("start_time=1&api_key_ids[]=a", "api_key_ids[]", "api_key_ids[]: Extra inputs are not permitted"),
        ("start_time=1&end_time=1", "end_time", "end_time is 1: must be after start_time (1)"),
        ("start_time=1&page=2", "page", "page is '2': must be the next_page of an answer"),
    ],
)
async def test_a_wrong_query_is_openais_error_that_names_the_field(
    gateway: httpx.AsyncClient, query: str, param: str, message: str
) -> None:
    answer = await gateway.get(f"/v1/organization/costs?{query}")
    assert answer.status_code == 400
    assert answer.json() == {
        "error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}
    }


@pytest.mark.parametrize(
    ("query", "param", "message"),
    [
        (
            "bucket_width=1m",
            "bucket_width",
            "bucket_width is '1m': must be 1h or 1d, since accounts are kept by the hour",
        ),
        ("bucket_width=1d&limit=32", "limit", "limit is 32: must be 31 or less where bucket_width is 1d"),
        ("bucket_width=1h&limit=169", "limit", "limit is 169: must be 168 or less where bucket_width is 1h"),
    ],
)
async def test_usage_by_the_minute_and_longer_pages_than_openais_are_refused(
    gateway: httpx.AsyncClient, query: str, param: str, message: str
) -> None:
    answer = await gateway.get(f"/v1/organization/usage/completions?start_time=1&{query}")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["message"]) == (400, param, message)


async def test_the_bill_is_the_command_lines(gateway: httpx.AsyncClient) -> None:
    query = {"since": "2024-10-04", "until": "2024-10-05", "by": "tenant"}
    found = (await gateway.get("/v1/economizer/bill", params=query)).json()
    assert [(row["tenant"], row["usage"]["energy_j"], row["with_idle"]["energy_j"]) for row in found["rows"]] == [
        ("acme", 0.2, 1.0)
    ]
    assert (found["totals"]["measured_uj"], found["totals"]["billed_uusd"], found["closes"]) == (1_000_000, 20, True)


@pytest.mark.parametrize(
    ("query", "param"),
    [("since=soon", "since"), ("until=1970-01-01", "until"), ("by=user", "by"), ("users=a", "users")],
)
async def test_a_bill_of_other_words_is_refused(gateway: httpx.AsyncClient, query: str, param: str) -> None:
    answer = await gateway.get(f"/v1/economizer/bill?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_prices_are_models_alone_and_a_header_says_what_is_left_out(gateway: httpx.AsyncClient) -> None:
    answer = await gateway.get("/v1/economizer/prices")
    assert [*answer.json()] == ["m", "m@int8"]
    # 20 micro-dollars over 4 prompt tokens that were computed and 4 output tokens of 4 parts each.
    assert answer.json()["m@int8"]["input_cost_per_token"] == pytest.approx(1e-06)
    assert answer.headers["x-economizer-left-out"] == "m@full: no tokens were computed"
    usage = (await gateway.get("/v1/economizer/prices?basis=usage")).json()
    assert usage["m@int8"]["output_cost_per_token"] == pytest.approx(8e-07)
    answer = await gateway.get("/v1/economizer/prices?basis=list")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "basis")


async def test_a_key_is_shown_once_and_lives_until_it_is_revoked(gateway: httpx.AsyncClient) -> None:
    made = (await gateway.post("/v1/economizer/keys", json={"tenant": "acme", "note": "for CI"})).json()
    text = made.pop("key")
    assert text.startswith(f"{made['prefix']}-")
    assert (made["tenant"], made["role"], made["expires_s"], made["note"]) == ("acme", "tenant", None, "for CI")
    answer = await gateway.get("/v1/economizer/keys")
    assert answer.json() == {"object": "list", "data": [made]}
    assert text not in answer.text
    assert (await gateway.delete(f"/v1/economizer/keys/{made['id']}")).json() == {
        "object": "economizer.key.deleted",
        "id": made["id"],
        "deleted": True,
    }
    assert (await gateway.get("/v1/economizer/keys")).json()["data"] == []
    (revoked,) = (await gateway.get("/v1/economizer/keys?include_revoked=true")).json()["data"]
    assert revoked["revoked_s"] is not None
    again = await gateway.delete(f"/v1/economizer/keys/{made['id']}")
    assert again.json()["error"]["message"] == f"There is no key {made['id']!r} that works."


async def test_a_rotated_key_ends_after_its_grace(gateway: httpx.AsyncClient) -> None:
    body = {"tenant": "acme", "role": "admin", "expires_in_s": 7200}
    old = (await gateway.post("/v1/economizer/keys", json=body)).json()
    assert old["expires_s"] - old["created_s"] == pytest.approx(7200, abs=1)
    new = (await gateway.post(f"/v1/economizer/keys/{old['id']}/rotate", json={"grace_s": 60})).json()
    assert (new["tenant"], new["role"], new["key"] != old["key"]) == ("acme", "admin", True)
    first, second = (await gateway.get("/v1/economizer/keys")).json()["data"]
    assert (first["replaced_by"], second["id"]) == (new["id"], new["id"])
    assert first["expires_s"] == pytest.approx(new["created_s"] + 60)
    default = (await gateway.post(f"/v1/economizer/keys/{new['id']}/rotate")).json()
    assert default["tenant"] == "acme"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "tenant"),
        ({"tenant": "No Such Name"}, "tenant"),
        ({"tenant": "acme", "role": "owner"}, "role"),
        ({"tenant": "acme", "expires_in_s": 0}, "expires_in_s"),
        ({"tenant": "acme", "note": "\x1b[2J"}, "note"),
        ({"tenant": "acme", "expires_s": 5}, "expires_s"),
    ],
)
async def test_a_wrong_key_is_refused_by_the_field(
    gateway: httpx.AsyncClient, body: dict[str, object], param: str
) -> None:
    answer = await gateway.post("/v1/economizer/keys", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_body_that_is_no_json_is_openais_error(gateway: httpx.AsyncClient) -> None:
    answer = await gateway.post("/v1/economizer/keys", content=b"{", headers={"content-type": "application/json"})
    error = {"message": "body: JSON decode error", "type": "invalid_request_error", "param": None, "code": None}
    assert (answer.status_code, answer.json()) == (400, {"error": error})

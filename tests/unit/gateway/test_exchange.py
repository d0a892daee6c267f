"""What a request's attempts make the books believe that its engine did."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import pytest
from aiohttp import web
from economizer.admission.limits import Ask, Verdict
from economizer.config import parse
from economizer.energy.types import Work
from economizer.gateway.exchange import Exchange
from economizer.gateway.fleet import Choice, ReplicaReport
from economizer.gateway.relay import EngineAnswer, Relay
from economizer.gateway.reporting import Ledger
from economizer.gateway.state import Gateway
from economizer.ledger.bookkeeper import Reply, Seen
from economizer.ledger.types import Booking, Report, Slice
from starlette.types import Receive, Scope, Send

PROMPT = "x" * 799  # with the JSON around it, some 200 tokens
ARGS: dict[str, Any] = {
    "prices": {"cpu": {"usd_per_hour": 0.1, "source": "made up"}},
    "families": {
        "m": {
            "full": "full",
            "variants": {"full": {"engine": {"command": ["x"]}, "context_tokens_max": 4096, "hardware": "cpu"}},
        }
    },
}
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Replicas:
    """Those that are reported are there."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def choose_now(self, variant_id: str, choice: Choice) -> str | None:
        return next(iter(choice(self.ids)), None)

    async def choose(self, variant_id: str, choice: Choice) -> str:
        raise TimeoutError


class Told:
    """A ledger that keeps what it is told, and says nothing."""

    def __init__(self) -> None:
        self.slices: list[Slice] = []
        self.bookings: list[Booking] = []

    async def report(self, report: Report, seen: Seen) -> Reply:
        self.slices += report.slices
        self.bookings += report.bookings
        raise ConnectionError


@asynccontextmanager
async def engine(answer: Answer) -> AsyncIterator[str]:
    """An engine that answers every chat so; its address."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def gateway_over(*urls: str) -> AsyncIterator[tuple[Gateway, Told]]:
    """A gateway where these engines are there, and what it tells, at the end alone."""
    replicas, ledger = Replicas(), Told()
    gateway = Gateway.create(parse(ARGS), replicas, cast(Ledger, ledger))
    assert gateway.reporter is not None
    reports = [ReplicaReport(id=f"r{at}", state="ready", url=url, secret="s") for at, url in enumerate(urls)]
    replicas.ids = [report.id for report in reports]
    gateway.changed("m@full", reports)
    yield gateway, ledger
    gateway.reporter.start()
    await gateway.reporter.stop()
    await gateway.relay.close()


async def chat(gateway: Gateway) -> int:
    """The status of an answer to one chat."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Exchange(gateway, "chat", scope, receive, send).run()

    body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}]}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://economizer") as client:
        return (await client.post("/v1/chat/completions", json=body)).status_code


async def told(*urls: str, cached_share: float = 0.0) -> tuple[int, list[Slice]]:
    """The status of an answer to one chat, where these engines are there, and what its attempts came to."""
    async with gateway_over(*urls) as (gateway, ledger):
        gateway.fleet.record("m", "full").cached_share = cached_share
        status = await chat(gateway)
    return status, ledger.slices


def closed_port() -> str:
    """The address of an engine that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def attempts(slices: list[Slice]) -> list[tuple[int, bool, bool]]:
    """Of each attempt that ended its number, whether it was lost, and whether it did any work."""
    return [
        (last.attempt, last.lost, any(not one.work.none for one in slices if one.attempt == last.attempt))
        for last in slices
        if last.last
    ]


async def well(request: web.Request) -> web.Response:
    usage = {"prompt_tokens": 200, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 150}}
    return web.json_response({"choices": [], "usage": usage})


async def broken(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def test_an_engine_that_was_not_reached_is_told_to_have_done_nothing() -> None:
    status, slices = await told(closed_port())
    assert (status, attempts(slices)) == (503, [(0, True, False)])


async def test_only_the_engine_that_got_the_request_is_told_to_have_worked() -> None:
    async with engine(well) as url:
        status, slices = await told(closed_port(), url)
    assert (status, attempts(slices)) == (200, [(0, True, False), (1, False, True)])


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_an_engine_that_refused_a_request_is_told_to_have_done_nothing(status: int) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "no"}}, status=status)

    async with engine(refuse) as url:
        answered, slices = await told(url)
    assert (answered, attempts(slices)) == (status, [(0, True, False)])


async def test_an_engine_that_broke_off_after_it_got_the_request_is_told_to_have_worked_for_nothing() -> None:
    async with engine(broken) as url:
        status, slices = await told(url)
    assert (status, attempts(slices)) == (503, [(0, True, True)])


class MistakenRelay(Relay):
    """It sends requests to engines, and then makes a mistake of its own."""

    async def send(
        self, url: str, body: bytes, headers: Mapping[str, str], *, deadline_s: float | None = None
    ) -> EngineAnswer:
        answer = await super().send(url, body, headers, deadline_s=deadline_s)
        answer.close()
        await asyncio.sleep(0.2)  # longer than a prompt takes where nothing is predicted
        raise ZeroDivisionError


async def test_a_mistake_of_the_gateways_own_is_not_paid_for_by_the_caller() -> None:
    async with engine(well) as url, gateway_over(url) as (gateway, ledger):
        gateway.relay = MistakenRelay(connect_timeout_s=5.0, first_byte_timeout_s=5.0, idle_timeout_s=5.0)
        status = await chat(gateway)
    assert (status, attempts(ledger.slices)) == (500, [(0, True, True)])


async def test_who_leaves_before_the_answer_pays_for_what_was_made_until_then() -> None:
    asked = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        asked.set()
        await asyncio.sleep(60)
        return web.Response()

    async with engine(slow) as url, gateway_over(url) as (gateway, ledger):
        asking = asyncio.create_task(chat(gateway))
        await asked.wait()
        await asyncio.sleep(0.2)  # longer than a prompt takes where nothing is predicted
        asking.cancel()
        await asyncio.wait({asking})
    assert attempts(ledger.slices) == [(0, False, True)]


async def test_what_is_predicted_to_be_cached_is_attended_to_and_not_computed() -> None:
    works: list[Work] = []

    async def uncached(request: web.Request) -> web.Response:
        await asyncio.sleep(0.2)  # longer than a prompt takes where nothing is predicted
        return await broken(request)

    async with engine(uncached) as url:
        for cached_share in (0.0, 0.75):
            _, slices = await told(url, cached_share=cached_share)
            works.append(sum((one.work for one in slices), Work()))
    whole, rest = works
    assert rest.prefill_tokens == pytest.approx(whole.prefill_tokens / 4)
    assert rest.prefill_context / rest.prefill_tokens == pytest.approx(whole.prefill_tokens * 1.75 / 2)


async def test_a_request_that_is_held_out_reserves_what_the_full_model_takes_of_it() -> None:
    def card(watts: float) -> dict[str, Any]:
        return {
            "engine": {"command": ["x"]},
            "context_tokens_max": 4096,
            "hardware": "cpu",
            "quality": {"score": 1.0, "source": "made up"},
            "speed": {"prefill_tokens_per_s": 1000, "decode_tokens_per_s": {1: 100}, "source": "made up"},
            "power": {"active_w": watts, "source": "made up"},
        }

    args: dict[str, Any] = {
        **ARGS,
        "families": {"m": {"full": "full", "policy": "green", "variants": {"full": card(100.0), "less": card(10.0)}}},
        "admission": {"anonymous": {"budgets": [{"per": "day", "joules": 1e9}]}},
        "savings": {"share": 0.5},
    }
    reserved: dict[str, int] = {}

    class Admitting(Told):
        async def admit(self, ask: Ask) -> Verdict:
            assert ask.predicted.uj is not None
            reserved[ask.request_id] = ask.predicted.uj
            return Verdict()

    ledger = Admitting()
    async with engine(well) as url:
        replicas = Replicas()
        replicas.ids = ["r0"]
        gateway = Gateway.create(parse(args), replicas, cast(Ledger, ledger))
        for variant in ("m@full", "m@less"):
            gateway.changed(variant, [ReplicaReport(id="r0", state="ready", url=url, secret="s")])
        assert {await chat(gateway) for _ in range(30)} == {200}
        assert gateway.reporter is not None
        gateway.reporter.start()
        await gateway.reporter.stop()
        await gateway.relay.close()
    found = {(booking.arm, booking.variant): reserved[booking.request_id] for booking in ledger.bookings}
    assert set(found) == {("full", "full"), ("routed", "less")}
    assert found["full", "full"] > 5 * found["routed", "less"]


@pytest.mark.parametrize("pieces", [[200_001], [100_000, 100_001], [200_001, 0]])
async def test_a_body_that_is_too_large_is_refused_also_where_that_shows_with_its_last_piece(pieces: list[int]) -> None:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b" " * size, "more_body": at < len(pieces) - 1}
        for at, size in enumerate(pieces)
    ]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    args = {**ARGS, "gateway": {"body_bytes_max": 200_000}}
    gateway = Gateway.create(parse(args), Replicas(), cast(Ledger, Told()))
    scope: dict[str, Any] = {"type": "http", "path": "/v1/chat/completions", "headers": []}
    await Exchange(gateway, "chat", scope, receive, send).run()
    await gateway.relay.close()
    assert sent[0]["status"] == 413

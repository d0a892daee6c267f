"""What requests took is measured, booked once, told in their answers, and adds up in the bill."""

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from economizer.ledger.types import Amounts, RequestRow
from economizer.router.holdout import HoldOut, arm
from metered import ADMIN, NOTHING, Metered
from openai import AsyncOpenAI
from replies import Caller, Reply, Stream

METHOD = "cpu-time-model"
PATIENT = {"x-economizer-measure-wait-ms": "5000"}
_LEFT_OUT_S = 3.5  # a replica that broke a connection is not chosen for a moment
WORDS = "a prompt that no engine has seen before, "


def booked(amounts: Amounts) -> dict[str, float | None]:
    """Amounts of the books, as receipts show them."""
    micro = (("energy_j", amounts.energy_uj), ("cost_usd", amounts.cost_uusd), ("carbon_g", amounts.carbon_ug))
    return {name: None if amount is None else amount / 1e6 for name, amount in micro}


def expect_measured(short: dict[str, Any], row: RequestRow) -> None:
    """A receipt has what the books have, on both bases, with an interval and the estimate beside it."""
    names = ["request_id", "variant", "method", "energy_j", "cost_usd", "carbon_g", "energy_j_low", "energy_j_high"]
    assert list(short) == [*names, "allocation", "estimate", "full"]
    assert short["method"] == METHOD
    assert {name: short[name] for name in ("energy_j", "cost_usd", "carbon_g")} == booked(row.usage)
    assert short["allocation"] == booked(row.usage + row.idle)
    assert 0 <= short["energy_j_low"] <= short["energy_j"] <= short["energy_j_high"]
    assert short["allocation"]["energy_j"] >= short["energy_j"]
    assert list(short["estimate"]) == ["energy_j", "cost_usd", "carbon_g"]


# Answers and receipts.


async def test_an_answer_that_waits_carries_what_was_measured_of_it(metered: Metered) -> None:
    async with metered.caller("ada") as ada:
        reply = await ada.chat("plain", PATIENT, content=WORDS * 5)
    rows = await metered.at_rest([reply.receipt_id])
    expect_measured(reply.short, rows[reply.receipt_id])
    assert reply.headers["x-economizer-method"] == METHOD
    assert float(reply.headers["x-energy-joules"]) == pytest.approx(reply.short["energy_j"], rel=1e-5)


async def test_of_a_stream_that_waits_only_the_usage_chunk_does(metered: Metered) -> None:
    async with metered.caller("ada") as ada:
        fields = {"content": WORDS * 6, "stream_options": {"include_usage": True}, "fake": {"tokens": 3}}
        async with ada.streamed("plain", PATIENT, **fields) as stream:
            events = await stream.all()
    rows = await metered.at_rest([stream.receipt_id])
    expect_measured(json.loads(events[-2])["usage"]["economizer"], rows[stream.receipt_id])
    first_s, *_, finish_s, usage_s, _ = stream.arrived_s
    assert finish_s - first_s < usage_s - finish_s


async def test_an_answer_that_does_not_wait_is_an_estimate_and_its_receipt_is_measured_later(metered: Metered) -> None:
    async with metered.caller("ada") as ada:
        reply = await ada.chat("plain")
        limited = {**PATIENT, "x-slo-e2e-ms": "30000"}
        asked_s = time.monotonic()
        promised = await ada.chat("plain", limited)
        assert time.monotonic() - asked_s < 1.5
        assert [one.short["method"] for one in (reply, promised)] == ["estimate", "estimate"]
        rows = await metered.at_rest([reply.receipt_id, promised.receipt_id])
        for one in (reply, promised):
            row = rows[one.receipt_id]
            for _ in range(6):  # at the gateway that has it in memory, and at the one that reads the books
                actual = (await ada.receipt(one.receipt_id))["actual"]
                assert actual["method"] == METHOD
                assert {name: actual[name] for name in booked(row.usage)} == booked(row.usage)
                assert actual["allocation"] == booked(row.usage + row.idle)
                estimate = {name: one.short[name] for name in booked(row.usage)}
                assert actual["estimate"] == pytest.approx(estimate, abs=1e-6)


# The books.


async def wholes(caller: Caller, count: int, model: str, **fields: Any) -> list[Reply]:
    """So many answers at once, not streamed, with prompts of their own."""
    return await asyncio.gather(*(caller.chat(model, content=f"{n} {WORDS}", **fields) for n in range(count)))


async def stream_of(caller: Caller, model: str, *, leave_after: int | None = None, **fields: Any) -> Stream:
    """One stream, to its end or until its caller leaves."""
    async with caller.streamed(model, content=WORDS, **fields) as stream:
        async for _ in stream.events():
            if len(stream.arrived_s) == leave_after:
                stream.response.close()
                break
        return stream


async def failing(caller: Caller, folder: Path) -> dict[str, tuple[str, int | None, int]]:
    """Engines of ``twins`` fail in every way; what is to be booked of the requests, by their ids."""
    told: dict[str, tuple[str, int | None, int]] = {}
    for fake in ({"status": 500}, {"garbage": True}, {"cut": 2}, {"die": "before"}):
        if "die" in fake:
            await asyncio.sleep(_LEFT_OUT_S)
        script = {**fake, "once": str(folder / str(*fake))}
        reply = await caller.chat("twins", content=f"{fake} {WORDS}", fake=script)
        assert reply.status == 200, reply
        told[reply.receipt_id] = ("ok", 200, 2)
    await asyncio.sleep(_LEFT_OUT_S)
    for fake in ({"cut": 3}, {"die": "after_chunks:3"}):
        stream = await stream_of(caller, "twins", fake={**fake, "tokens": 50, "tpot_s": 0.02})
        told[stream.receipt_id] = ("failed", 200, 1)
    return told


async def mixed(metered: Metered, folder: Path) -> dict[str, dict[str, tuple[str, int | None, int]]]:
    """Three tenants' load; what is to be booked of each request: outcome, status and attempts, by tenant and id."""
    async with metered.caller("acme") as acme, metered.caller("beta") as beta, metered.caller("gamma") as gamma:
        failures = asyncio.create_task(failing(gamma, folder))
        asked = {"include_usage": True}
        answers = await wholes(acme, 6, "plain")
        streams = await asyncio.gather(*(stream_of(acme, "plain", stream_options=asked) for _ in range(6)))
        left = await asyncio.gather(
            *(stream_of(beta, "plain", leave_after=5, fake={"tokens": 200, "tpot_s": 0.05}) for _ in range(3))
        )
        pinned = await wholes(beta, 3, "choice@good")
        refused = await wholes(beta, 2, "plain", headers={"x-max-energy-j": "0"})
        status = await wholes(beta, 2, "plain", fake={"status": 418})
        told = await failures
    assert [reply.status for reply in refused] == [422, 422]
    return {
        "acme": {one.receipt_id: ("ok", 200, 1) for one in (*answers, *streams)},
        "beta": {
            **{one.receipt_id: ("client_closed", 499, 1) for one in left},
            **{one.receipt_id: ("ok", 200, 1) for one in pinned},
            **{one.receipt_id: ("refused", 422, 0) for one in refused},
            **{one.receipt_id: ("engine_error", 418, 1) for one in status},
        },
        "gamma": told,
    }


def outcomes(rows: Iterable[RequestRow]) -> dict[str, tuple[str, int | None, int]]:
    """What is booked of requests."""
    bookings = [row.booking for row in rows]
    assert None not in bookings
    return {one.request_id: (one.outcome, one.status, one.attempts) for one in bookings if one is not None}


async def test_every_request_of_a_mixed_load_is_booked_once_and_the_bill_closes(
    metered: Metered, tmp_path: Path
) -> None:
    sent = await mixed(metered, tmp_path)
    rows = await metered.at_rest(name for requests in sent.values() for name in requests)
    for tenant, requests in sent.items():
        assert outcomes(metered.rows(tenant).values()) == requests
    # What is booked of requests is what the accounts hold, to the last unit.
    assert sum((row.usage for row in rows.values()), NOTHING) == metered.spent("active")
    assert sum((row.lost for row in rows.values()), NOTHING) == metered.spent("lost")
    for tenant in sent:
        own = sum((row.usage for row in rows.values() if row.tenant == tenant), NOTHING)
        assert own == metered.spent("active", tenant)
        assert own.energy_uj
    # Who was refused, or failed, pays nothing; who left pays for what was made until then.
    by_outcome: defaultdict[str, list[Amounts]] = defaultdict(list)
    for name in (name for requests in sent.values() for name in requests):
        row = rows[name]
        assert row.booking is not None
        by_outcome[row.booking.outcome].append(row.usage)
    assert all((usage.energy_uj or 0) > 0 for usage in (*by_outcome["ok"], *by_outcome["client_closed"]))
    assert all(not usage.energy_uj for usage in (*by_outcome["refused"], *by_outcome["failed"]))
    twice = [rows[name] for name, told in sent["gamma"].items() if told[2] == 2]
    assert any((row.lost.energy_uj or 0) > 0 for row in twice)
    expect_closing(metered.bill("--by", "tenant,variant"), metered)


def expect_closing(bill: dict[str, Any], metered: Metered) -> None:
    """The rows, the kinds and the meters of a bill add up to the same."""
    totals, rows, meters = bill["totals"], bill["rows"], bill["meters"]
    assert bill["closes"] is True
    for unit, measured in (("uj", "measured_uj"), ("uusd", "billed_uusd"), ("ug", "emitted_ug")):
        name = {"uj": "energy_uj", "uusd": "cost_uusd", "ug": "carbon_ug"}[unit]
        assert sum(row["usage"][name] for row in rows) == totals[f"attributed_{unit}"]
        assert sum(row["with_idle"][name] for row in rows) == totals[measured]
        assert sum(meter[name] for meter in meters) == totals[measured]
        kinds = (f"{kind}_{unit}" for kind in ("attributed", "idle", "startup", "lost", "unclaimed"))
        assert sum(totals[kind] for kind in kinds) == totals[measured]
    assert totals["attributed_uj"] == metered.spent("active").energy_uj
    assert totals["lost_uj"] == metered.spent("lost").energy_uj
    assert {"acme", "beta", "gamma"} <= {row["tenant"] for row in rows}
    own = {(row["tenant"], row["variant"]): row["requests"] for row in rows}
    assert own["acme", "plain@one"] == 12
    assert own["beta", "choice@good"] == 3


async def test_four_times_the_tokens_take_two_to_six_times_the_joules(metered: Metered) -> None:
    async with metered.caller("carol") as carol:
        short = [await carol.chat("plain", fake={"tokens": 30}, content=f"{n} {WORDS}") for n in range(6)]
        long = [await carol.chat("plain", fake={"tokens": 120}, content=f"{n} {WORDS}") for n in range(6, 12)]
    rows = await metered.at_rest(reply.receipt_id for reply in (*short, *long))
    few, many = (sum(rows[one.receipt_id].usage.energy_uj or 0 for one in replies) for replies in (short, long))
    assert 2 < many / few < 6


# Over HTTP.


async def test_openais_own_client_reads_costs_and_usage_that_are_those_of_the_bill(metered: Metered) -> None:
    async with metered.caller("ada") as ada:
        reply = await ada.chat("plain")
    await metered.at_rest([reply.receipt_id])
    bill = metered.bill("--by", "tenant,variant")
    key, since_s = metered.keys[ADMIN], int(time.time()) - 86_400
    async with AsyncOpenAI(base_url=f"{metered.fleet.url}/v1", api_key=key, admin_api_key=key, max_retries=0) as client:
        usage = client.admin.organization.usage
        costs = await usage.costs(start_time=since_s, group_by=["project_id", "line_item"])
        used = await usage.completions(start_time=since_s, group_by=["project_id", "model"])
    cost_uusd: Counter[tuple[Any, Any]] = Counter()
    overhead_uusd = 0
    for result in (result.to_dict() for bucket in costs.data for result in bucket.results):
        amount_uusd = round(1e6 * result["amount"]["value"])  # type: ignore[index]
        if result["project_id"] is None:
            overhead_uusd += amount_uusd
        else:
            cost_uusd[result["project_id"], result["line_item"]] += amount_uusd
    tenants = [row for row in bill["rows"] if row["tenant"]]
    assert cost_uusd == Counter({(row["tenant"], row["variant"]): row["usage"]["cost_uusd"] for row in tenants})
    assert overhead_uusd >= bill["totals"]["billed_uusd"] - bill["totals"]["attributed_uusd"]  # engines go on idling
    counted: Counter[tuple[Any, Any, str]] = Counter()
    energy_uj: Counter[tuple[Any, Any]] = Counter()
    for result in (result.to_dict() for bucket in used.data for result in bucket.results):
        place = (result["project_id"], result["model"])
        for name, theirs in TOKENS.items():
            counted[*place, name] += result[theirs]  # type: ignore[operator]
        energy_uj[place] += round(1e6 * (result["economizer"]["energy_j"] or 0))  # type: ignore[index,call-overload]
    assert counted == Counter({(row["tenant"], row["variant"], name): row[name] for row in tenants for name in TOKENS})
    assert energy_uj == Counter({(row["tenant"], row["variant"]): row["usage"]["energy_uj"] or 0 for row in tenants})


TOKENS = {
    "requests": "num_model_requests",
    "prompt_tokens": "input_tokens",
    "cached_tokens": "input_cached_tokens",
    "output_tokens": "output_tokens",
}


async def test_the_bill_over_http_is_the_command_lines(metered: Metered) -> None:
    async with metered.caller("ada") as ada, metered.caller(ADMIN) as admin:
        reply = await ada.chat("plain")
        await metered.at_rest([reply.receipt_id])
        printed = metered.bill("--tenant", "ada")
        for _ in range(4):
            served = (await admin.get("/v1/economizer/bill?since=24h&tenant=ada")).json
            assert served["closes"] is True
            assert list(served) == list(printed)
            assert [usage(row) for row in served["rows"]] == [usage(row) for row in printed["rows"]]
        wrong = await admin.get("/v1/economizer/bill?by=nothing")
    assert (wrong.status, wrong.error["param"]) == (400, "by")


def usage(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the idling that goes on."""
    return {name: value for name, value in row.items() if name != "with_idle"}


async def test_tokens_times_prices_are_what_was_booked(metered: Metered) -> None:
    async with metered.caller("ada") as ada, metered.caller(ADMIN) as admin:
        replies = await wholes(ada, 4, "plain")
        await metered.at_rest(reply.receipt_id for reply in replies)
        prices = (await admin.get("/v1/economizer/prices?basis=usage")).json
        reply = await admin.get("/v1/economizer/prices")
    accounts = [
        row
        for row in metered.store.accounts(time.time() - 86_400, time.time())
        if row.account.family == "plain" and row.account.kind == "active"
    ]
    prompt = sum(row.prompt_tokens - row.cached_tokens for row in accounts)
    output = sum(row.output_tokens for row in accounts)
    spent_usd = sum(row.amounts.cost_uusd or 0 for row in accounts) / 1e6
    entry = prices["plain@one"]
    told_usd = entry["input_cost_per_token"] * prompt + entry["output_cost_per_token"] * output
    assert told_usd == pytest.approx(spent_usd, rel=1e-9)
    assert reply.json["plain@one"]["output_cost_per_token"] > entry["output_cost_per_token"]
    assert "choice@full: no tokens were computed" in reply.headers["x-economizer-left-out"]


# Metrics.


async def test_the_gateways_counters_add_up_to_the_accounts(metered: Metered) -> None:
    async with metered.caller("ada") as ada, metered.caller("bob") as bob:
        replies = [*await wholes(ada, 8, "plain"), *await wholes(bob, 8, "choice")]
        await metered.at_rest(reply.receipt_id for reply in replies)
        pages: dict[str, dict[str, float]] = {}
        deadline_s = time.monotonic() + 20
        while len(pages) < 2:  # each page is one gateway's; what engines use at rest is not on it
            assert time.monotonic() < deadline_s, "one gateway alone has answered"
            page = (await ada.get("/metrics")).body.decode()
            pages[str(sorted(booked_lines(page).items()))] = booked_lines(page)
    for tenant in ("ada", "bob"):
        label = f'tenant="{tenant}"'
        counted_j = sum(value for page in pages.values() for line, value in page.items() if label in line)
        assert counted_j == pytest.approx((metered.spent("active", tenant).energy_uj or 0) / 1e6, abs=1e-7)
    # Counters do not shrink: what a failed attempt was charged may show at its tenant's until as much comes there.
    counted_j = sum(value for page in pages.values() for value in page.values())
    active_j, lost_j = ((metered.spent(kind).energy_uj or 0) / 1e6 for kind in ("active", "lost"))
    assert active_j + lost_j - 1e-6 <= counted_j <= active_j + 2 * lost_j + 1e-6


def booked_lines(page: str) -> dict[str, float]:
    """The joules of requests on a metrics page, by their labels, those of failed attempts among them."""
    lines = [line.rpartition(" ") for line in page.splitlines() if line.startswith("economizer_energy_joules_total{")]
    return {labels: float(value) for labels, _, value in lines if 'kind="active"' in labels or 'kind="lost"' in labels}


# The hold-out.


async def test_half_of_what_could_be_routed_goes_to_the_full_model_by_lot_and_is_booked_so(metered: Metered) -> None:
    async with metered.caller("ada") as ada:
        replies = []
        for _ in range(10):
            replies += await asyncio.gather(*(ada.chat("held", fake={"tokens": 1}) for _ in range(8)))
        pinned = await ada.chat("held@small")
        receipt = await ada.receipt(replies[0].receipt_id)
    rows = await metered.at_rest([pinned.receipt_id, *(reply.receipt_id for reply in replies)])
    drawn = {reply.receipt_id: arm(reply.receipt_id, HoldOut(share=0.5)) for reply in replies}
    assert 20 <= Counter(drawn.values())["full"] <= 60
    assert {reply.receipt_id: reply.variant for reply in replies} == {
        name: "full" if drawn[name] == "full" else "small" for name in drawn
    }
    assert {reply.receipt_id: reply.short.get("hold_out") for reply in replies} == {
        name: True if drawn[name] == "full" else None for name in drawn
    }
    assert {name: booking.arm for name in drawn if (booking := rows[name].booking)} == drawn
    assert receipt["arm"] == drawn[replies[0].receipt_id]
    assert (pinned.variant, pinned.short.get("hold_out")) == ("small", None)
    assert rows[pinned.receipt_id].booking is not None
    assert rows[pinned.receipt_id].booking.arm is None  # type: ignore[union-attr]

"""A mixed load of three tenants on real engines: each answer has its share, and the bill closes to the last unit.

The bill is of all that this fleet did, other tests' requests included, so this file's name puts it last.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from economizer.ledger.store import Store
from economizer.ledger.types import Amounts, RequestRow
from fleet import Fleet
from real_engines import EnginePage, engine_process
from replies import Caller, Reply

MODEL = "smollm2-135m"
BF16, INT8 = f"{MODEL}@bf16", f"{MODEL}@int8"
METHOD = "cpu-time-model"
WAITS = {"x-economizer-measure-wait-ms": "10000"}
STORY = "Write a very long story about a boiler."
NOTHING = Amounts(energy_uj=0, cost_uusd=0, carbon_ug=0)
OUTCOMES = {"whole": {"ok"}, "left": {"client_closed"}, "none": {"engine_error", "refused", "failed"}}
_DEADLINE_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A request, how far it was answered, and the receipt that came with its answer."""

    id: str
    answer: Literal["whole", "left", "none"]
    short: dict[str, Any] | None = None
    waited: bool = False


@dataclass(frozen=True, kw_only=True)
class Served:
    """What each tenant sent, and every request's receipt as it was in the end.

    ``survivor`` had its engine killed under it; ``refused`` is what that engine's own callers met meanwhile.
    """

    sent: dict[str, list[Sent]]
    receipts: dict[str, dict[str, Any]]
    survivor: Reply
    refused: Reply


class Person:
    """One tenant at work, and what it sent."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.sent: list[Sent] = []

    async def asks(self, model: str, tokens: int, *, waits: bool = False, content: str = STORY) -> Reply:
        """A plain answer of so many tokens."""
        headers = WAITS if waits else None
        reply = await self.caller.chat(model, headers, content=content, max_tokens=tokens, ignore_eos=True)
        assert reply.status == 200, reply
        assert reply.headers["x-economizer-method"] == reply.short["method"]
        self._note(reply.receipt_id, "whole", short=reply.short, waited=waits)
        return reply

    async def streams(self, model: str, tokens: int, *, waits: bool = False) -> None:
        """A stream to its end, which is its usage chunk."""
        fields: Any = {"max_tokens": tokens, "ignore_eos": True, "stream_options": {"include_usage": True}}
        async with self.caller.streamed(model, WAITS if waits else None, content=STORY, **fields) as stream:
            events = await stream.all()
        usage = json.loads(events[-2])["usage"]
        assert usage["completion_tokens"] == tokens
        self._note(stream.receipt_id, "whole", short=usage["economizer"], waited=waits)

    async def leaves(self, model: str, after: int) -> None:
        """A stream whose caller goes away after so many events."""
        async with self.caller.streamed(model, content=STORY, max_tokens=1500, ignore_eos=True) as stream:
            async for _ in stream.events():
                if len(stream.arrived_s) == after:
                    stream.response.close()
                    break
        self._note(stream.receipt_id, "left")

    async def fails(self, model: str, **fields: Any) -> Reply:
        """A request that has no answer."""
        reply = await self.caller.chat(model, **fields)
        self._note(reply.receipt_id, "none")
        return reply

    def _note(self, request_id: str, answer: Literal["whole", "left", "none"], **more: Any) -> None:
        self.sent.append(Sent(id=request_id, answer=answer, **more))


async def eventually(holds: Callable[[], Awaitable[object]]) -> None:
    """Poll until something holds."""
    deadline_s = time.monotonic() + _DEADLINE_S
    while not await holds():
        assert time.monotonic() < deadline_s, "it never came true"
        await asyncio.sleep(0.2)


async def at_once(acme: Person, beta: Person, gamma: Person) -> None:
    """All three, on both variants."""

    async def answers() -> None:
        for _ in range(3):
            await asyncio.gather(*(acme.asks(MODEL, 30) for _ in range(3)))
        await acme.asks(MODEL, 30, waits=True)

    async def streams_and_pins() -> None:
        await asyncio.gather(beta.streams(MODEL, 40), beta.streams(INT8, 30), beta.streams(BF16, 40))
        await beta.streams(MODEL, 40, waits=True)
        await beta.asks(BF16, 20)

    async def trouble() -> None:
        await asyncio.gather(gamma.leaves(MODEL, 5), gamma.leaves(MODEL, 30), gamma.leaves(BF16, 15))
        assert (await gamma.fails(MODEL, max_tokens=2, temperature=-1)).status == 400
        await gamma.asks(BF16, 8, content="boiler " * 1200)

    await asyncio.gather(answers(), streams_and_pins(), trouble())


async def through_a_crash(fleet: Fleet, acme: Person, beta: Person, gamma: Person) -> tuple[Reply, Reply]:
    """INT8's engine is killed under a request of gamma's and a pinned one of beta's, and the others go on.

    Gamma's is the survivor, beta's is refused.
    """
    page = EnginePage(fleet, INT8)

    async def decodes(of: int) -> None:
        async def they_run() -> bool:
            return page.running() == of

        await eventually(they_run)
        before = page.generated()

        async def has_more() -> bool:
            return page.generated() > before + 20

        await eventually(has_more)

    asked = asyncio.create_task(gamma.asks(MODEL, 150))
    await decodes(1)
    pinned = asyncio.create_task(beta.fails(INT8, content=STORY, max_tokens=1500, ignore_eos=True))
    await decodes(2)
    os.kill(engine_process(fleet, INT8), signal.SIGKILL)
    refused = await pinned
    for reply in await asyncio.gather(*(acme.asks(MODEL, 20) for _ in range(3))):
        assert reply.variant == "bf16"
    return await asked, refused


async def last_receipt(caller: Caller, sent: Sent) -> dict[str, Any]:
    """A request's receipt, once it is measured if its engine worked for it."""
    found: dict[str, Any] = {}

    async def is_last() -> bool:
        found.update(await caller.receipt(sent.id))
        return found["actual"]["method"] == METHOD or sent.answer == "none"

    await eventually(is_last)
    return found


async def serve(fleet: Fleet, keys: dict[str, str]) -> Served:
    """The whole load; returns once every request is measured and the killed engine is back."""
    async with (
        fleet.caller(keys["acme"]) as acme,
        fleet.caller(keys["beta"]) as beta,
        fleet.caller(keys["gamma"]) as gamma,
    ):
        people = {"acme": Person(acme), "beta": Person(beta), "gamma": Person(gamma)}

        async def all_known() -> bool:
            answers = [await person.caller.get("/v1/receipts/none") for person in people.values()]
            return all(answer.status == 404 for answer in answers)

        async def is_back() -> bool:
            engines = (await acme.get("/readyz")).json["engines"]
            return [engine["state"] for engine in engines if engine["variant"] == INT8] == ["ready"]

        await eventually(all_known)
        await at_once(*people.values())
        survivor, refused = await through_a_crash(fleet, *people.values())
        await eventually(is_back)
        await people["acme"].asks(INT8, 1)
        receipts = {
            sent.id: await last_receipt(person.caller, sent) for person in people.values() for sent in person.sent
        }
    sent = {name: person.sent for name, person in people.items()}
    return Served(sent=sent, receipts=receipts, survivor=survivor, refused=refused)


@pytest.fixture(scope="module")
def served(fleet: Fleet) -> Served:
    """Three tenants' keys, as an administrator makes them while the fleet runs, and what came of their load."""
    keys = {}
    for name in ("acme", "beta", "gamma"):
        made = fleet.economizer("keys", "create", name, "--config", str(fleet.file))
        assert made.returncode == 0, made.stderr
        keys[name] = made.stdout.strip()
    return asyncio.run(serve(fleet, keys))


@pytest.fixture(scope="module")
def booked(fleet: Fleet, not_in_books: set[str]) -> dict[str, RequestRow]:
    """The requests as the books have them."""
    store = Store.open(f"sqlite:///{fleet.ledger}")
    rows = {row.request_id: row for row in store.requests(0, 4e9)}
    store.close()
    return rows


@pytest.fixture(scope="module")
def not_in_books(fleet: Fleet, served: Served, answered: set[str]) -> set[str]:
    """Requests that the books do not have, or with other amounts than their receipts, once they had time to."""
    measured = {name: one["actual"] for name, one in served.receipts.items() if one["actual"]["method"] == METHOD}
    store = Store.open(f"sqlite:///{fleet.ledger}")
    deadline_s = time.monotonic() + 30
    while True:
        rows = {row.request_id: row.usage for row in store.requests(0, 4e9) if row.booking is not None}
        found = (answered | served.receipts.keys()) - rows.keys()
        found |= {name for name, actual in measured.items() if name in rows and micro(actual) != rows[name]}
        if not found or time.monotonic() > deadline_s:
            store.close()
            return found
        time.sleep(0.5)


@pytest.fixture(scope="module")
def bill(fleet: Fleet, not_in_books: set[str]) -> dict[str, Any]:
    """What ``economizer bill --json`` says of everything that this fleet did."""
    found: dict[str, Any] = json.loads(printed(fleet, "--by", "tenant,family,variant,hour", "--json"))
    return found


def printed(fleet: Fleet, *words: str) -> str:
    """A bill of the last day, which must close."""
    said = fleet.economizer("bill", str(fleet.file), "--since", "24h", *words)
    assert said.returncode == 0, said.stderr
    return said.stdout


def test_an_answer_or_usage_chunk_carries_the_measured_share_where_it_waits_for_it_and_else_the_estimate(
    served: Served,
) -> None:
    answered = [sent for each in served.sent.values() for sent in each if sent.short is not None]
    assert sum(sent.waited for sent in answered) == 2
    for sent in answered:
        short, actual = sent.short or {}, served.receipts[sent.id]["actual"]
        assert short["method"] == (METHOD if sent.waited else "estimate")
        assert amounts(short) == pytest.approx(amounts(actual if sent.waited else actual["estimate"]), abs=1e-6)
        assert actual["energy_j"] > 0


def test_the_books_have_every_request_that_this_fleet_has_answered_and_what_its_receipt_says(
    not_in_books: set[str],
) -> None:
    assert not_in_books == set()


def test_the_bill_closes_in_joules_dollars_and_grams_to_the_last_unit(bill: dict[str, Any]) -> None:
    totals = bill["totals"]
    assert bill["closes"] is True
    for unit, name, measured in (("uj", "energy", "measured"), ("uusd", "cost", "billed"), ("ug", "carbon", "emitted")):
        whole = totals[f"{measured}_{unit}"]
        assert whole == totals[f"attributed_{unit}"] + totals[f"idle_{unit}"] + totals[f"overhead_{unit}"]
        assert whole == sum(meter[f"{name}_{unit}"] for meter in bill["meters"])
        assert whole == sum(row["with_idle"][f"{name}_{unit}"] for row in bill["rows"])
        assert totals[f"attributed_{unit}"] == sum(row["usage"][f"{name}_{unit}"] for row in bill["rows"])
        assert min(totals[f"{kind}_{unit}"] for kind in ("attributed", "idle", "startup")) > 0
    assert {meter["method"] for meter in bill["meters"]} == {METHOD}


def test_a_tenants_rows_are_the_sum_of_its_requests_receipts_to_the_last_unit(
    served: Served, bill: dict[str, Any]
) -> None:
    for name, sent in served.sent.items():
        rows = [row for row in bill["rows"] if row["tenant"] == name]
        assert {(row["family"], row["variant"]) for row in rows} >= {(MODEL, BF16), (MODEL, INT8)}
        assert sum(row["requests"] for row in rows) == len(sent)
        receipts = [served.receipts[one.id]["actual"] for one in sent]
        whole = sum((micro(actual) for actual in receipts if actual["method"] == METHOD), NOTHING)
        assert whole.energy_uj == sum(row["usage"]["energy_uj"] or 0 for row in rows)
        assert whole.cost_uusd == sum(row["usage"]["cost_uusd"] or 0 for row in rows)
        assert whole.carbon_ug == sum(row["usage"]["carbon_ug"] or 0 for row in rows)


def test_who_leaves_a_stream_pays_for_what_was_made_until_then_and_who_has_no_answer_pays_nothing(
    served: Served, booked: dict[str, RequestRow]
) -> None:
    rows: dict[str, list[RequestRow]] = {}
    for sent in (sent for each in served.sent.values() for sent in each):
        assert served.receipts[sent.id]["outcome"] in OUTCOMES[sent.answer]
        rows.setdefault(sent.answer, []).append(booked[sent.id])
    assert [len(rows[answer]) for answer in ("left", "none")] == [3, 2]
    assert min(row.usage.energy_uj or 0 for row in rows["left"]) > 0
    assert [row.usage.energy_uj or 0 for row in rows["none"]] == [0, 0]
    refused = booked[served.refused.receipt_id]
    assert (refused.lost.energy_uj or 0) > 0, "its engine worked for it until it was killed"


def test_a_killed_engine_costs_no_request_that_another_variant_may_answer_and_its_work_is_nobodys(
    served: Served, bill: dict[str, Any]
) -> None:
    attempts = served.receipts[served.survivor.receipt_id]["attempts"]
    assert [attempt["variant"] for attempt in attempts] == ["int8", "bf16"]
    assert served.survivor.json["usage"]["completion_tokens"] == 150
    assert bill["totals"]["lost_uj"] > 0
    assert served.refused.status == 503
    assert served.refused.headers["retry-after"]


def test_the_table_and_the_csv_say_the_same_as_the_json(fleet: Fleet, bill: dict[str, Any]) -> None:
    table = printed(fleet)
    assert "the bill closes" in table
    assert f"meters: {METHOD}" in table
    for name in ("acme", "beta", "gamma"):
        assert any(line.split()[:2] == [name, INT8] for line in table.splitlines())
    by_row = csv.DictReader(io.StringIO(printed(fleet, "--by", "tenant,family,variant,hour", "--csv")))
    own = ("tenant", "variant", "hour", "requests", "output_tokens")
    assert [[line[name] for name in own] + [line["energy_uj"]] for line in by_row if line["tenant"]] == [
        [str(row[name]) for name in own] + [str(row["usage"]["energy_uj"])] for row in bill["rows"] if row["tenant"]
    ]


def amounts(receipt: dict[str, Any]) -> dict[str, float]:
    """The three amounts of a receipt."""
    return {name: receipt[name] for name in ("energy_j", "cost_usd", "carbon_g")}


def micro(receipt: dict[str, Any]) -> Amounts:
    """The same in whole micro-units, as the books have them."""
    energy_uj, cost_uusd, carbon_ug = (round(1e6 * amount) for amount in amounts(receipt).values())
    return Amounts(energy_uj=energy_uj, cost_uusd=cost_uusd, carbon_ug=carbon_ug)

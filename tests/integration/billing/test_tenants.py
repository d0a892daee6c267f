"""Who may send requests, whose they are, and what becomes of them at the end of a rate or a budget."""

import asyncio
import json
import time
from typing import Any

import pytest
from economizer.admission.keys import hash_of
from metered import ADMIN, Metered
from replies import CHAT, Caller, Reply, chat_body

BURST = 20


async def burst(caller: Caller, count: int, model: str, **fields: Any) -> list[Reply]:
    """So many requests at once."""
    return await asyncio.gather(*(caller.chat(model, **fields) for _ in range(count)))


async def soon_answered(caller: Caller, status: int, within_s: float = 1.5) -> None:
    """Ask until the answer has this status, then a few times more, so that both gateways are asked."""
    deadline_s = time.monotonic() + within_s
    while (reply := await caller.chat("plain")).status != status:
        assert time.monotonic() < deadline_s, reply
        await asyncio.sleep(0.05)
    await asyncio.sleep(max(0.0, deadline_s - time.monotonic()))
    assert {reply.status for reply in await burst(caller, 10, "plain")} == {status}


# Keys.


async def test_requests_without_a_key_of_ours_are_anonymous_whatever_they_say_of_themselves(metered: Metered) -> None:
    said = {"x-tenant-id": "ada", "openai-organization": "ada", "openai-project": "ada"}
    async with metered.fleet.caller() as stranger, metered.fleet.caller("") as nobody, metered.caller("ada") as ada:
        replies = [await one.chat("plain", headers=said, user="ada") for one in (stranger, nobody)]
        replies.append(await ada.chat("plain", headers={"x-tenant-id": "bob"}, user="bob"))
    rows = await metered.at_rest(reply.receipt_id for reply in replies)
    assert [rows[reply.receipt_id].tenant for reply in replies] == ["anonymous", "anonymous", "ada"]


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
async def test_a_wrong_key_is_refused_in_openais_words(metered: Metered, header: str) -> None:
    wrong = metered.keys["ada"][:-1] + "_"
    async with metered.fleet.caller("") as caller:
        value = f"Bearer {wrong}" if header == "authorization" else wrong
        reply = await caller.post(CHAT, chat_body("plain"), {header: value})
    message = "Incorrect API key provided: it is unknown, was revoked or has expired."
    assert (reply.status, reply.error) == (
        401,
        {"message": message, "type": "invalid_request_error", "param": None, "code": "invalid_api_key"},
    )


async def test_a_key_that_the_command_line_makes_and_revokes_is_known_within_a_second(metered: Metered) -> None:
    config = ("--config", str(metered.fleet.file))
    made = metered.fleet.economizer("keys", "create", "ada", "--note", "of the command line", *config)
    assert made.returncode == 0, made.stderr
    async with metered.fleet.caller(made.stdout.strip()) as caller:
        await soon_answered(caller, 200)
        revoked = metered.fleet.economizer("keys", "revoke", made.stdout.split("-")[1], *config)
        assert revoked.returncode == 0, revoked.stderr
        await soon_answered(caller, 401)


async def test_a_key_that_is_made_or_revoked_over_http_is_so_at_every_gateway_on_return(metered: Metered) -> None:
    async with metered.caller(ADMIN) as admin:
        made = (
            await admin.post("/v1/economizer/keys", {"tenant": "ada", "note": "for a day", "expires_in_s": 86400})
        ).json
        async with metered.fleet.caller(made["key"]) as caller:
            assert {reply.status for reply in await burst(caller, 50, "plain")} == {200}
            deleted = await admin.delete(f"/v1/economizer/keys/{made['id']}")
            assert deleted.json == {"object": "economizer.key.deleted", "id": made["id"], "deleted": True}
            assert {reply.status for reply in await burst(caller, 50, "plain")} == {401}
            again = await admin.delete(f"/v1/economizer/keys/{made['id']}")
        assert (again.status, again.error["type"]) == (400, "invalid_request_error")
        listed = (await admin.get("/v1/economizer/keys")).json["data"]
        everyone = (await admin.get("/v1/economizer/keys?include_revoked=true")).json["data"]
    assert made["id"] not in [key["id"] for key in listed]
    (found,) = [key for key in everyone if key["id"] == made["id"]]
    shown = {name: value for name, value in made.items() if name != "key"}
    assert found == {**shown, "revoked_s": pytest.approx(time.time(), abs=60)}
    assert (found["tenant"], found["role"], found["note"]) == ("ada", "tenant", "for a day")


async def test_a_rotated_key_works_for_its_grace_beside_the_new_one(metered: Metered) -> None:
    async with metered.caller(ADMIN) as admin:
        old = (await admin.post("/v1/economizer/keys", {"tenant": "ada"})).json
        new = (await admin.post(f"/v1/economizer/keys/{old['id']}/rotate", {"grace_s": 3})).json
        rotated_s = time.monotonic()
        twice = await admin.post(f"/v1/economizer/keys/{old['id']}/rotate", {})
    assert (twice.status, twice.error["type"]) == (400, "invalid_request_error")
    async with metered.fleet.caller(old["key"]) as before, metered.fleet.caller(new["key"]) as after:
        reply = await before.chat("plain")
        assert reply.status == 200
        assert time.monotonic() - rotated_s < 3
        await asyncio.sleep(3)
        assert {reply.status for reply in await burst(before, 10, "plain")} == {401}
        assert {reply.status for reply in await burst(after, 10, "plain")} == {200}
        assert (await after.receipt(reply.receipt_id))["id"] == reply.receipt_id


ADMINISTRATION = (
    "/v1/economizer/keys",
    "/v1/economizer/bill",
    "/v1/economizer/prices",
    "/v1/organization/costs?start_time=0",
    "/v1/organization/usage/completions?start_time=0",
)


@pytest.mark.parametrize("path", ADMINISTRATION)
async def test_what_is_for_administrators_refuses_all_others(metered: Metered, path: str) -> None:
    async with metered.caller("ada") as ada, metered.fleet.caller() as stranger, metered.fleet.caller("") as nobody:
        replies = [await one.get(path) for one in (ada, stranger, nobody)]
    assert [(reply.status, reply.error["code"]) for reply in replies] == [
        (403, "permission_denied"),
        (401, "invalid_api_key"),
        (401, "invalid_api_key"),
    ]


async def test_a_tenant_can_make_rotate_and_revoke_no_key(metered: Metered) -> None:
    key_id = metered.keys["bob"].split("-")[1]
    async with metered.caller("ada") as ada, metered.caller("bob") as bob:
        replies = [
            await ada.post("/v1/economizer/keys", {"tenant": "ada", "role": "admin"}),
            await ada.post(f"/v1/economizer/keys/{key_id}/rotate", {}),
            await ada.delete(f"/v1/economizer/keys/{key_id}"),
        ]
        assert [reply.status for reply in replies] == [403, 403, 403]
        assert (await bob.chat("plain")).status == 200


async def test_nobody_reads_another_tenants_receipt(metered: Metered) -> None:
    async with (
        metered.caller("ada") as ada,
        metered.caller("bob") as bob,
        metered.caller(ADMIN) as admin,
        metered.fleet.caller() as stranger,
        metered.fleet.caller("sk-another") as other,
    ):
        of_ada, of_stranger = await ada.chat("plain"), await stranger.chat("plain")
        await metered.at_rest([of_ada.receipt_id, of_stranger.receipt_id])
        for reader, reply, status in (
            (ada, of_ada, 200),
            (bob, of_ada, 404),
            (admin, of_ada, 404),
            (stranger, of_ada, 404),
            (stranger, of_stranger, 200),
            (other, of_stranger, 404),
            (ada, of_stranger, 404),
        ):
            found = [await reader.get(f"/v1/receipts/{reply.receipt_id}") for _ in range(6)]  # at both gateways
            assert {answer.status for answer in found} == {status}


async def test_no_log_no_answer_and_no_file_of_the_books_holds_a_key(metered: Metered) -> None:
    async with metered.caller(ADMIN) as admin:
        made = await admin.post("/v1/economizer/keys", {"tenant": "ada"})
        key = made.json["key"]
        async with metered.fleet.caller(key) as caller:
            assert (await caller.chat("plain")).status == 200
            assert (await caller.get("/v1/economizer/bill")).status == 403
        listed = await admin.get("/v1/economizer/keys?include_revoked=true")
    texts = [*metered.keys.values(), key]
    hashes = [hash_of(text).encode() for text in texts]
    assert [needle for needle in hashes if needle in made.body + listed.body] == []
    await asyncio.sleep(2)  # Serve writes its logs in blocks
    logs = dict(metered.fleet.logs())
    assert any(b'"event":"request"' in text for text in logs.values()), "the requests themselves are logged"
    needles = [*hashes, *(text.encode() for text in texts)]
    assert [path.name for path, text in logs.items() for needle in needles if needle in text] == []
    books = b"".join(path.read_bytes() for path in metered.fleet.ledger.parent.rglob("*") if path.is_file())
    assert hashes[0] in books
    assert [text for text in texts if text.encode() in books] == []


# What each may do.


async def test_a_family_that_a_tenant_may_not_use_does_not_exist_for_it(metered: Metered) -> None:
    async with metered.caller("walled") as walled:
        assert (await walled.chat("plain")).status == 200
        for model in ("choice", "choice@good"):
            reply = await walled.chat(model)
            assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")


async def test_a_tenants_floor_is_under_every_request_and_stands_in_its_receipt(metered: Metered) -> None:
    async with metered.caller("floored") as floored, metered.caller("ada") as ada:
        assert (await ada.chat("choice")).variant == "small"
        for headers in ({}, {"x-quality-min": "0.5"}):
            reply = await floored.chat("choice", headers=headers)
            assert reply.variant == "good"
            assert (await floored.receipt(reply.receipt_id))["terms"]["quality_min"] == 0.85
        pinned = await floored.chat("choice@small")
        assert (pinned.status, pinned.error["code"], pinned.error["param"]) == (422, "terms_unmet", "quality_min")


async def test_a_tenants_policy_holds_where_the_request_names_none(metered: Metered) -> None:
    async with metered.caller("greens") as greens:
        for headers, variant in (({}, "good"), ({"x-economizer-policy": "cheap"}, "small")):
            reply = await greens.chat("choice", headers=headers)
            assert reply.variant == variant
            assert (await greens.receipt(reply.receipt_id))["decision"]["policy"] == ("cheap" if headers else "green")


async def test_a_tenants_on_unmet_holds_where_the_request_does_not_say(metered: Metered) -> None:
    impossible = {"x-max-energy-j": "0"}
    async with metered.caller("lenient") as lenient, metered.caller("ada") as ada:
        assert (await ada.chat("plain", headers=impossible)).status == 422
        assert (await lenient.chat("plain", headers={**impossible, "x-economizer-on-unmet": "refuse"})).status == 422
        reply = await lenient.chat("plain", headers=impossible)
        assert reply.status == 200
        assert len(reply.short["missed"]) == 1


# Rates.


async def test_a_rate_of_requests_holds_over_both_gateways(metered: Metered) -> None:
    async with metered.caller("quick") as quick:
        replies = await burst(quick, BURST, "plain")
    answered = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status == 429]
    assert (len(answered), len(refused)) == (5, 15)
    assert sorted(reply.headers["x-ratelimit-remaining-requests"] for reply in answered) == ["0", "1", "2", "3", "4"]
    assert {reply.headers["x-ratelimit-limit-requests"] for reply in answered} == {"5"}
    assert all(reply.headers["x-ratelimit-reset-requests"].endswith("s") for reply in answered)
    assert {(reply.error["type"], reply.error["code"]) for reply in refused} == {
        ("rate_limit_error", "rate_limit_exceeded")
    }
    assert all(1 <= int(reply.headers["retry-after"]) <= 12 for reply in refused)


async def test_a_rate_of_tokens_holds_over_both_gateways(metered: Metered) -> None:
    async with metered.caller("wordy") as wordy:
        replies = await burst(wordy, BURST, "steady", max_tokens=20)
    answered = [reply for reply in replies if reply.status == 200]
    # Each is taken for 20 tokens and its prompt, which a gateway learns to take for 6 to 16.
    assert 5 <= len(answered) <= 7
    assert {reply.headers["x-ratelimit-limit-tokens"] for reply in answered} == {"200"}
    assert 0 <= min(int(reply.headers["x-ratelimit-remaining-tokens"]) for reply in answered) < 36
    assert {reply.error["code"] for reply in replies if reply.status != 200} == {"rate_limit_exceeded"}


async def test_a_rate_of_tokens_is_put_right_by_what_an_answer_took(metered: Metered) -> None:
    async with metered.caller("chatty") as chatty:
        before = await chatty.chat("steady", max_tokens=20)
        await chatty.chat("steady", fake={"tokens": 1000, "tpot_s": 0})
        await asyncio.sleep(5)  # so long what was predicted stands for what was used
        after = await chatty.chat("steady", max_tokens=20)
    assert int(before.headers["x-ratelimit-remaining-tokens"]) > 2900
    assert 1900 < int(after.headers["x-ratelimit-remaining-tokens"]) < 2500  # of which some seconds refill 50 each


# Budgets.


async def test_a_budget_ends_at_what_is_booked_and_predicted_over_both_gateways(metered: Metered) -> None:
    budget_uusd = 2000
    async with metered.caller("poor") as poor:
        replies = await burst(poor, BURST, "steady", max_tokens=20)
        answered = [reply for reply in replies if reply.status == 200]
        refused = [reply for reply in replies if reply.status == 429]
        assert len(answered) + len(refused) == BURST
        assert {(reply.error["type"], reply.error["code"]) for reply in refused} == {
            ("insufficient_quota", "insufficient_quota")
        }
        predicted_uusd = round(1e6 * number_before(refused[0], ".", after="predicted to take "))
        assert len(answered) == budget_uusd // predicted_uusd
        deadline_s = time.monotonic() + 30
        while True:
            reply = await poor.chat("steady", max_tokens=20)
            if reply.status == 200:
                answered.append(reply)
            else:
                rows = await metered.at_rest(reply.receipt_id for reply in answered)
                spent_uusd = metered.spent("active", "poor").cost_uusd or 0
                if round(1e6 * number_before(reply, " is used", after="this request: ")) == spent_uusd:
                    break
            assert time.monotonic() < deadline_s, reply
            await asyncio.sleep(0.2)
    dearest = max(rows[reply.receipt_id].usage.cost_uusd or 0 for reply in answered)
    assert spent_uusd + predicted_uusd > budget_uusd
    assert spent_uusd <= budget_uusd + dearest
    assert 0 < int(reply.headers["retry-after"]) <= 86_400


def number_before(reply: Reply, end: str, *, after: str) -> float:
    """A number in an error's message."""
    text: str = reply.error["message"].split(after)[1]
    found = text.split(end)[0] if end != "." else ".".join(text.split(".")[:2])
    return float(found)


async def test_past_the_soft_end_of_a_budget_of_dollars_answers_are_the_cheapest_that_the_floor_allows(
    metered: Metered,
) -> None:
    asked = {"x-quality-min": "0.85"}
    async with metered.caller("thrifty") as thrifty:
        before = await thrifty.chat("choice@good", headers=asked)
        assert before.variant == "good"
        assert "x-economizer-degraded" not in before.headers
        replies = await asyncio.gather(*(thrifty.chat("choice@good", headers=asked) for _ in range(6)))
        assert [(reply.status, reply.variant) for reply in replies] == [(200, "small")] * 6
        for reply in replies:
            assert reply.headers["x-economizer-degraded"] == reply.short["degraded"]
            assert reply.short["degraded"].startswith("usd per month: 0.00")
            assert reply.short["degraded"].endswith(" of 100")
        receipt = await thrifty.receipt(replies[0].receipt_id)
        assert (receipt["terms"]["quality_min"], receipt["terms"]["policy"]) == (0.75, "cheap")
        async with thrifty.streamed("choice@good", headers=asked, stream_options={"include_usage": True}) as stream:
            events = await stream.all()
            assert stream.response.headers["x-economizer-degraded"].startswith("usd per month: ")
        assert json.loads(events[-2])["usage"]["economizer"]["variant"] == "small"
    rows = await metered.at_rest([before.receipt_id, *(reply.receipt_id for reply in replies)])
    booked = [rows[reply.receipt_id].booking for reply in (before, *replies)]
    words = [reply.short["degraded"] for reply in replies]
    assert [booking.degraded for booking in booked if booking] == [None, *words]


async def test_a_budget_of_joules_degrades_to_the_greenest_and_has_no_end_where_it_is_not_hard(
    metered: Metered,
) -> None:
    async with metered.caller("frugal") as frugal:
        before = await frugal.chat("choice@small")
        replies = await asyncio.gather(*(frugal.chat("choice@small") for _ in range(6)))
        policy = (await frugal.receipt(replies[0].receipt_id))["decision"]["policy"]
    assert (before.variant, before.short.get("degraded")) == ("small", None)
    assert [(reply.status, reply.variant) for reply in replies] == [(200, "good")] * 6
    assert policy == "green"
    assert all(reply.short["degraded"].startswith("joules per day: ") for reply in replies)

"""What callers send and get: OpenAI's API, relayed without a change but for what is ours."""

import json
import time
from typing import Any

import pytest
from fleet import Fleet
from openai import AsyncOpenAI
from replies import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, Caller, received

ANSWER = "".join(f"word{number} " for number in range(8))


async def test_a_chat_is_answered_as_the_engine_answered_it_with_the_receipt_added(caller: Caller) -> None:
    reply = await caller.chat("plain")
    assert reply.status == 200
    assert reply.text == ANSWER
    assert list(reply.json) == ["id", "object", "created", "model", "choices", "usage"]
    usage = reply.json["usage"]
    receipt = usage.pop("economizer")
    assert list(usage) == ["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"]
    assert receipt["request_id"] == reply.receipt_id
    assert receipt["variant"] == reply.variant == "one"
    assert receipt["method"] == "estimate"
    assert float(reply.headers["x-energy-joules"]) == pytest.approx(receipt["energy_j"], rel=1e-4)
    assert float(reply.headers["x-cost-usd"]) == pytest.approx(receipt["cost_usd"], rel=1e-4)
    assert float(reply.headers["x-carbon-gco2e"]) == pytest.approx(receipt["carbon_g"], rel=1e-4)


@pytest.mark.parametrize(
    ("path", "asked", "kind"),
    [
        (COMPLETIONS, {"prompt": "once"}, "text_completion"),
        (RESPONSES, {"input": "once"}, "response"),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "once"}]}]}, "response"),
    ],
)
async def test_the_other_endpoints_are_relayed_too(caller: Caller, path: str, asked: dict[str, Any], kind: str) -> None:
    reply = await caller.post(path, {"model": "plain", **asked})
    assert reply.status == 200
    assert reply.json["object"] == kind
    assert reply.json["usage"]["economizer"]["request_id"] == reply.receipt_id


async def test_embeddings_go_to_the_variant_that_has_them(caller: Caller) -> None:
    reply = await caller.post(EMBEDDINGS, {"model": "pair", "input": ["once", "upon"]})
    assert reply.status == 200
    assert [item["embedding"] for item in reply.json["data"]] == [[0.6, 0.8], [0.6, 0.8]]
    assert reply.variant == "b"
    assert reply.json["usage"]["economizer"]["energy_j"] > 0


async def test_embeddings_are_refused_before_any_engine_sees_them_where_no_variant_has_them(
    caller: Caller, fleet: Fleet
) -> None:
    (engine,) = fleet.engines("plain@one")
    before = engine.requests
    reply = await caller.post(EMBEDDINGS, {"model": "plain", "input": "once"})
    assert (reply.status, reply.error["code"]) == (400, "feature_unsupported")
    assert "one: it has no embeddings" in reply.error["message"]
    assert engine.requests == before


async def test_the_official_client_chats_streams_and_lists_models(fleet: Fleet) -> None:
    async with AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="sk-canary-key", max_retries=0) as client:
        whole = await client.chat.completions.create(model="plain", messages=[{"role": "user", "content": "hello"}])
        assert whole.choices[0].message.content == ANSWER
        streamed = await client.chat.completions.create(
            model="plain",
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in streamed]
        assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == ANSWER
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.to_dict()["economizer"]["variant"] == "one"  # type: ignore[index]  # ours, not theirs
        answer = await client.responses.create(model="plain", input="hello")
        assert answer.output_text == ANSWER
        assert "terms@green" in [model.id async for model in client.models.list()]


async def test_models_lists_families_and_their_variants(caller: Caller) -> None:
    listed = (await caller.get("/v1/models")).json
    assert listed["object"] == "list"
    names = [model["id"] for model in listed["data"]]
    assert [name for name in names if name.startswith("terms")] == [
        "terms",
        "terms@fast",
        "terms@full",
        "terms@green",
    ]
    one = await caller.get("/v1/models/terms@fast")
    assert one.json["economizer"] == {"family": "terms", "variants": ["fast"], "full": "full", "policy": "cheap"}
    unknown = await caller.get("/v1/models/nobody")
    assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")


async def test_health_readiness_metrics_and_documentation_are_served(caller: Caller) -> None:
    assert (await caller.get("/healthz")).json == {"status": "ok"}
    ready = await caller.get("/readyz")
    assert ready.status == 200
    assert ready.json["not_ready"] == []
    assert {"plain@one", "terms@fast"} <= {engine["variant"] for engine in ready.json["engines"]}
    assert b"secret" not in ready.body
    await caller.chat("plain")
    page = (await caller.get("/metrics")).body.decode()
    assert 'economizer_requests_total{family="plain",outcome="ok",variant="one"}' in page
    assert 'economizer_engines{state="ready",variant="plain@one"} 1.0' in page
    assert (await caller.get("/docs")).status == 200
    document = (await caller.get("/openapi.json")).json
    assert {CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, "/v1/receipts/{receipt_id}"} <= set(document["paths"])


async def test_a_receipt_says_what_was_chosen_why_and_what_it_took(caller: Caller) -> None:
    reply = await caller.chat("terms", headers={"x-quality-min": "0.95"})
    receipt = await caller.receipt(reply.receipt_id)
    assert receipt["variant"] == "terms@full"
    assert (receipt["outcome"], receipt["status"], receipt["stream"]) == ("ok", 200, False)
    assert receipt["terms"]["quality_min"] == 0.95
    assert [attempt["error"] for attempt in receipt["attempts"]] == [None]
    refused = {c["variant"]: [r["term"] for r in c["refusals"]] for c in receipt["decision"]["candidates"]}
    assert refused == {"fast": ["quality_min"], "full": [], "green": ["quality_min"]}
    assert receipt["actual"]["usage"]["output_tokens"] == 8
    assert receipt["actual"]["energy_j"] > 0
    assert receipt["actual"]["e2e_s"] >= 0.78


# The body reaches the engine as it was written.

ODD = b"""{ "messages":[{"role":"user","content":"caf\\u00e9 \xe2\x82\xac \\/ \\ud83d\\ude00"}] ,\t
  "fake": {"echo":true}, "temperature": 1.50, "seed":12345678901234567890, "unknown": {"a":[1,2.0e0]},
  "twice":1, "twice": 2, "nothing":null,"economizer": {"policy": "green"},
  "model"  :  "plain", "stop":null }\r\n"""


async def test_the_body_reaches_the_engine_byte_for_byte_but_for_model_and_economizer(caller: Caller) -> None:
    body, _ = (await caller.post(CHAT, ODD)).received
    assert body == ODD.replace(b'"economizer": {"policy": "green"},\n  ', b"").replace(b'"plain"', b'"plain@one"')


async def test_the_callers_key_stays_at_the_gateway_and_other_headers_go_on(caller: Caller) -> None:
    headers = {"x-request-id": "abc", "x-custom": "kept", "cookie": "a=b", "user-agent": "mine"}
    reply = await caller.chat("plain", headers=headers, fake={"echo": True})
    _, engine_saw = reply.received
    assert "sk-canary-key" not in json.dumps(engine_saw)
    assert engine_saw["x-custom"] == "kept"
    assert engine_saw["x-request-id"] == "abc"
    assert "cookie" not in engine_saw


async def test_an_engines_own_refusal_comes_back_as_it_was(caller: Caller) -> None:
    reply = await caller.chat("plain", fake={"status": 418})
    assert reply.status == 418
    assert reply.json == {"error": {"message": "as told", "type": "fake_error", "param": None, "code": "418"}}
    receipt = await caller.receipt(reply.receipt_id)
    assert (receipt["outcome"], receipt["status"], len(receipt["attempts"])) == ("engine_error", 418, 1)


# Streams pass as they come.


async def test_a_streams_chunks_pass_one_by_one(caller: Caller) -> None:
    started_s = time.monotonic()
    async with caller.streamed("plain", fake={"tpot_s": 0.3, "tokens": 10}) as stream:
        events = await stream.all()
    first_s, last_s = stream.arrived_s[0] - started_s, stream.arrived_s[-1] - started_s
    assert events[-1] == "[DONE]"
    assert last_s >= 3.0
    assert first_s < 1.5
    assert len({round(moment, 1) for moment in stream.arrived_s}) >= 8


async def test_a_stream_is_the_engines_byte_for_byte_and_has_no_usage_unless_it_was_asked_for(caller: Caller) -> None:
    async with caller.streamed("plain") as stream:
        events = [json.loads(event) for event in (await stream.all())[:-1]]
        assert stream.response.headers["content-type"] == "text/event-stream"
        assert stream.response.headers["x-economizer-variant"] == "one"
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == ANSWER
    assert all("usage" not in event for event in events)
    receipt = await caller.receipt(stream.receipt_id)
    # Counted from the events, since the engine was not asked: the one with the finish_reason may hold a token or not.
    assert receipt["actual"]["usage"]["output_tokens"] in (8, 9)
    assert receipt["actual"]["usage"]["counted"] is True


async def test_a_streams_usage_chunk_carries_the_receipt(caller: Caller) -> None:
    async with caller.streamed("plain", stream_options={"include_usage": True}) as stream:
        events = await stream.all()
    usage = json.loads(events[-2])["usage"]
    assert events[-1] == "[DONE]"
    assert usage["completion_tokens"] == 8
    assert usage["economizer"]["request_id"] == stream.receipt_id
    assert usage["economizer"]["energy_j"] > 0
    assert (await caller.receipt(stream.receipt_id))["actual"]["usage"]["counted"] is False


async def test_completions_and_responses_stream_too(caller: Caller) -> None:
    async with caller.streamed("plain", path=COMPLETIONS) as stream:
        assert (await stream.all())[-1] == "[DONE]"
    async with caller.streamed("plain", path=RESPONSES) as stream:
        last = json.loads((await stream.all())[-1])
    assert last["type"] == "response.completed"
    assert last["response"]["usage"]["economizer"]["request_id"] == stream.receipt_id


async def test_a_streamed_body_is_transparent_as_well(caller: Caller) -> None:
    raw = ODD.replace(b'"seed"', b'"stream":true,"seed"')
    async with caller.posted(CHAT, raw) as answer:
        events = [line for line in (await answer.read()).decode().split("\n\n") if line]
    deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in events[:-1]]
    body, _ = received("".join(delta.get("content", "") for delta in deltas))
    assert b'"unknown": {"a":[1,2.0e0]},\n  "twice":1, "twice": 2, "nothing":null,' in body


# Tenants.


async def test_a_receipt_is_only_for_the_key_that_made_the_request(caller: Caller, fleet: Fleet) -> None:
    reply = await caller.chat("plain")
    assert (await caller.receipt(reply.receipt_id))["id"] == reply.receipt_id
    for other_key in ("sk-another", ""):
        async with fleet.caller(other_key) as other:
            answer = await other.get(f"/v1/receipts/{reply.receipt_id}")
            assert (answer.status, answer.error["code"]) == (404, "receipt_not_found")

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest
from economizer.gateway.booked import booked_receipt
from economizer.gateway.relay import Usage
from economizer.ledger.types import Amounts, Charge, RequestRow
from examples import receipt
from load.answers import Answer, Events, read_head, read_receipt, take
from load.types import Message, Planned

PLANNED = Planned(
    number=3, due_s=1.0, kind="chat", model="m", messages=(Message(role="user", content="hi"),), output_tokens=4
)
USAGE = Usage(prompt_tokens=128, output_tokens=9)
TOOK = Amounts(energy_uj=7_500_000, cost_uusd=4, carbon_ug=9)
NOTHING = Amounts(energy_uj=0, cost_uusd=0, carbon_ug=0)


def answer() -> Answer:
    """One whose clock goes on by a second each time that it is asked."""
    ticks = count(10)
    return Answer(clock=lambda: float(next(ticks)))


def event(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def token(**delta: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": delta}], usage=None)


def test_events_are_whole_however_the_bytes_come() -> None:
    stream = b'data: {"a": 1}\n\n: a comment\r\n\r\nevent: x\r\ndata:{"b": 2}\r\n\r\ndata: [DONE]\n\n'
    for size in (1, 2, 7, 1000):
        events = Events()
        found = [data for at in range(0, len(stream), size) for data in events.feed(stream[at : at + size])]
        assert found == [b'{"a": 1}', b'{"b": 2}', b"[DONE]"]


def test_the_first_token_is_the_first_with_something_in_it_and_the_last_ends_the_answer() -> None:
    seen = answer()
    take(token(role="assistant", content=""), seen)
    for word in ("one", " two", " three"):
        take(token(content=word), seen)
    take(event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]), seen)
    take(event(choices=[], usage={"prompt_tokens": 40, "completion_tokens": 3}), seen)
    seen.end()
    outcome = seen.outcome(PLANNED, sent_s=1.5)
    assert (outcome.first_s, outcome.ended_s, outcome.error) == (10.0, 12.0, None)
    assert (outcome.prompt_tokens, outcome.output_tokens) == (40, 3)
    assert (outcome.number, outcome.due_s, outcome.sent_s, outcome.tpot_s) == (3, 1.0, 1.5, 1.0)


@pytest.mark.parametrize("delta", [{"reasoning_content": "so"}, {"reasoning": "so"}, {"tool_calls": [{"index": 0}]}])
def test_thoughts_and_tool_calls_are_tokens_too(delta: dict[str, Any]) -> None:
    seen = answer()
    take(token(**delta), seen)
    assert seen.first_s == 10.0


@pytest.mark.parametrize(
    ("error", "name"),
    [
        ({"message": "m", "type": "server_error", "param": None, "code": "engine_failed"}, "engine_failed"),
        ({"message": "m", "type": "BadRequestError", "code": 400}, "400"),
        ({"message": "m", "type": "server_error", "code": None}, "server_error"),
        ("something", "error"),
    ],
)
def test_an_error_is_known_by_its_code_or_its_type(error: Any, name: str) -> None:
    seen = answer()
    take(event(error=error), seen)
    seen.end("http_500")
    assert (seen.error, seen.ended_s) == (name, 10.0)


def test_what_the_gateway_says_in_headers_and_usage_is_in_the_outcome() -> None:
    made = receipt()
    made.settle(USAGE)
    seen = answer()
    read_head({name.decode(): value.decode() for name, value in made.headers()}, seen)
    take(event(choices=[], usage={"prompt_tokens": 128, "completion_tokens": 9, "economizer": made.short()}), seen)
    seen.end()
    outcome = seen.outcome(PLANNED, sent_s=1.0)
    assert (outcome.request_id, outcome.variant, outcome.method) == ("ecr-1", "int8", "estimate")
    assert (outcome.energy_j, outcome.cost_usd, outcome.carbon_g) == (25.0, 0.125, None)
    assert not seen.measured


def test_a_receipt_tells_what_was_predicted_and_measured_of_the_variant_that_answered() -> None:
    made = receipt()
    made.settle(USAGE)
    made.open_attempts = 1
    made.charge(Charge(request_id="ecr-1", usage=TOOK, idle=NOTHING, variance_uj2=0.0, method="rapl", final=True))
    prediction = made.decision.candidate("int8").prediction
    seen = answer()
    read_receipt(json.dumps(made.long(), default=str).encode(), seen)
    outcome = seen.outcome(PLANNED, sent_s=1.0)
    assert seen.measured
    assert (outcome.energy_j, outcome.cost_usd, outcome.method) == (7.5, 4e-6, "rapl")
    assert (outcome.predicted_ttft_s, outcome.predicted_tpot_s) == (0.5, 0.125)
    assert (outcome.predicted_energy_j, outcome.predicted_cost_usd) == (
        prediction.costs.energy_j,
        prediction.costs.cost_usd,
    )
    assert outcome.quality == prediction.quality is not None


def test_a_receipt_from_the_books_tells_what_they_keep() -> None:
    made = receipt()
    made.settle(USAGE)
    row = RequestRow(
        request_id="ecr-1", tenant="acme", family="m", variant="int8", booking=made.booking(), usage=TOOK, method="rapl"
    )
    seen = answer()
    read_receipt(json.dumps(booked_receipt(row)).encode(), seen)
    outcome = seen.outcome(PLANNED, sent_s=1.0)
    assert (outcome.energy_j, outcome.method, outcome.predicted_ttft_s) == (7.5, "rapl", 0.5)
    assert outcome.predicted_energy_j is not None

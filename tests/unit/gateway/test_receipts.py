import asyncio
import json
from typing import Any

import pytest
from economizer.gateway.receipts import Attempt, Receipt, ReceiptStore, RequestLog, estimated_costs, new_request_id
from economizer.gateway.relay import Usage
from economizer.ledger.types import Amounts, Booking, Charge, Counterfactual
from economizer.router.types import Terms
from economizer.variants.estimate import UNKNOWN, Costs
from examples import FULL, receipt, state, variant

USAGE = Usage(prompt_tokens=128, output_tokens=9)


def settled() -> Receipt:
    made = receipt()
    made.settle(USAGE)
    return made


def test_the_short_receipt_says_what_it_took_and_what_the_full_variant_would_have() -> None:
    assert settled().short() == {
        "request_id": "ecr-1",
        "variant": "int8",
        "method": "estimate",
        "energy_j": 25.0,
        "cost_usd": 0.125,
        "carbon_g": None,
        "full": {"variant": "full", "energy_j": 25.0, "cost_usd": 0.25, "carbon_g": None},
    }


def test_the_short_receipt_says_what_was_missed() -> None:
    made = receipt(terms=Terms(cost_usd_max=0.1, on_unmet="degrade"))
    assert made.short()["missed"] == ["its cost is 0.125 USD, over the 0.1 USD asked"]
    assert "missed" not in receipt().short()


def test_a_batch_shares_the_engines_time() -> None:
    made = receipt()
    made.batch = 4.0  # beyond the card's largest batch the rate stays
    made.settle(USAGE)
    assert made.costs == Costs(energy_j=25.0, cost_usd=0.125, carbon_g=None)


def test_cached_prompt_tokens_are_not_paid_for() -> None:
    cached = Usage(prompt_tokens=128, output_tokens=9, cached_tokens=64)
    assert estimated_costs(FULL, cached, 1.0) == Costs(energy_j=18.75, cost_usd=0.1875, carbon_g=None)


def test_an_engine_that_says_it_found_more_in_its_cache_than_was_asked_earns_the_caller_nothing() -> None:
    cached = Usage(prompt_tokens=128, output_tokens=1, cached_tokens=1000)
    assert estimated_costs(FULL, cached, 1.0) == Costs(energy_j=0.0, cost_usd=0.0, carbon_g=None)


def test_what_a_request_cost_that_no_variant_served_is_unknown() -> None:
    made = receipt(served=None)
    made.settle(USAGE)
    assert (made.usage, made.costs, made.full_costs) == (USAGE, None, None)
    assert made.short()["energy_j"] is None


def test_a_variant_without_cards_costs_something_unknown() -> None:
    made = receipt(served=variant("int8", speed=None))
    made.settle(USAGE)
    assert made.costs == UNKNOWN


def test_headers_name_the_variant_at_once_and_the_costs_when_they_are_known() -> None:
    head = [(b"x-economizer-variant", b"int8"), (b"x-economizer-request-id", b"ecr-1")]
    assert receipt().headers() == head
    costs = [(b"x-energy-joules", b"25"), (b"x-cost-usd", b"0.125"), (b"x-economizer-method", b"estimate")]
    assert settled().headers() == [*head, *costs]
    assert receipt(served=None).headers()[0] == (b"x-economizer-variant", b"")


def test_a_status_that_the_caller_has_seen_stays() -> None:
    made = receipt()
    assert (made.outcome, made.status, made.error) == ("failed", None, None)
    made.ended("refused", status=422, error="terms_unmet")
    made.ended("failed", status=None, error="engine_failed")
    assert (made.outcome, made.status, made.error) == ("failed", 422, "engine_failed")


def test_the_log_line_has_no_prompt_no_answer_and_no_key() -> None:
    made = settled()
    made.ended("ok", status=200)
    made.replica, made.ttft_s, made.e2e_s = "r1", 0.12345678, 0.5
    made.attempts.append(Attempt(variant="int8", replica="r1"))
    assert json.loads(made.log_line()) == {
        "time": 1700000000.75,
        "event": "request",
        "request_id": "ecr-1",
        "endpoint": "chat",
        "model": "m",
        "variant": "int8",
        "replica": "r1",
        "outcome": "ok",
        "status": 200,
        "error": None,
        "attempts": 1,
        "ttft_s": 0.123457,
        "e2e_s": 0.5,
        "prompt_tokens": 128,
        "output_tokens": 9,
        "energy_j": 25.0,
        "cost_usd": 0.125,
    }
    assert "\n" not in made.log_line()


def test_the_long_receipt_explains_the_choice() -> None:
    made = settled()
    made.ended("ok", status=200)
    made.replica, made.ttft_s, made.e2e_s, made.tpot_s = "r1", 0.25, 0.5, 0.03125
    made.attempts.append(Attempt(variant="int8", replica="r1"))
    long = made.long()
    decision = long.pop("decision")
    assert long.pop("redecision") is None
    assert long == {
        "id": "ecr-1",
        "object": "economizer.receipt",
        "created": 1700000000,
        "endpoint": "chat",
        "model": "m",
        "stream": False,
        "variant": "m@int8",
        "replica": "r1",
        "outcome": "ok",
        "status": 200,
        "error": None,
        "terms": {
            **dict.fromkeys(("ttft_s_max", "tpot_s_max", "e2e_s_max", "quality_min")),
            **dict.fromkeys(("cost_usd_max", "energy_j_max", "carbon_g_max", "policy")),
            "on_unmet": "refuse",
        },
        "attempts": [{"variant": "int8", "replica": "r1", "error": None}],
        "actual": {
            "ttft_s": 0.25,
            "tpot_s": 0.03125,
            "e2e_s": 0.5,
            "usage": {"prompt_tokens": 128, "output_tokens": 9, "cached_tokens": None, "counted": False},
            "method": "estimate",
            "energy_j": 25.0,
            "cost_usd": 0.125,
            "carbon_g": None,
        },
        "full": {
            "variant": "m@full",
            "method": "estimate",
            "energy_j": 25.0,
            "cost_usd": 0.25,
            "carbon_g": None,
        },
        "degraded": None,
        "arm": None,
    }
    assert (decision["variant"], decision["ranking"]) == ("int8", ("int8", "full"))
    assert [candidate["score"] for candidate in decision["candidates"]] == [0.5, 1.0]


def charge(energy_uj: int, *, final: bool = False, idle_uj: int = 0, variance_uj2: float = 0.0) -> Charge:
    return Charge(
        request_id="ecr-1",
        usage=Amounts(energy_uj=energy_uj, cost_uusd=energy_uj // 10),
        idle=Amounts(energy_uj=idle_uj, cost_uusd=5),
        variance_uj2=variance_uj2,
        method="cpu-time-model",
        final=final,
    )


def measured() -> Receipt:
    """Its two windows are settled, with a standard deviation of 0.5 J each way."""
    made = settled()
    made.open_attempts = 1
    made.charge(charge(8_000_000, idle_uj=1_000_000, variance_uj2=0.25e12))
    made.charge(charge(2_000_000, final=True))
    return made


def test_once_measured_a_receipt_names_the_meter_and_both_bases_beside_the_estimate() -> None:
    assert measured().short() == {
        "request_id": "ecr-1",
        "variant": "int8",
        "method": "cpu-time-model",
        "energy_j": 10.0,
        "cost_usd": 1.0,
        "carbon_g": None,
        "energy_j_low": pytest.approx(9.02),
        "energy_j_high": pytest.approx(10.98),
        "allocation": {"energy_j": 11.0, "cost_usd": 1.00001, "carbon_g": None},
        "estimate": {"energy_j": 25.0, "cost_usd": 0.125, "carbon_g": None},
        "full": {"variant": "full", "energy_j": 25.0, "cost_usd": 0.25, "carbon_g": None},
    }
    assert (b"x-economizer-method", b"cpu-time-model") in measured().headers()
    assert (b"x-energy-joules", b"10") in measured().headers()


def test_as_long_as_a_window_is_open_the_estimate_stands() -> None:
    made = settled()
    made.open_attempts = 1
    made.charge(charge(8_000_000))
    assert made.short()["method"] == "estimate"
    assert not made.settled


async def test_who_waits_for_the_measurement_gets_it_when_it_comes_or_goes_on_without() -> None:
    made = settled()
    made.open_attempts = 1
    await made.until_settled(0.01)
    assert not made.settled
    waiting = asyncio.create_task(made.until_settled(30))
    await asyncio.sleep(0)
    made.charge(charge(8_000_000, final=True))
    await waiting
    assert made.settled


def test_what_is_booked_of_a_request_has_neither_its_prompt_nor_its_key() -> None:
    made = settled()
    made.ended("ok", status=200)
    made.tenant, made.key_id, made.replica, made.ttft_s, made.e2e_s = "acme", "k1", "r1", 0.25, 0.5
    made.attempts.append(Attempt(variant="int8", replica="r1"))
    assert made.booking() == Booking(
        request_id="ecr-1",
        tenant="acme",
        key_id="k1",
        family="m",
        variant="int8",
        engine="r1",
        endpoint="chat",
        outcome="ok",
        status=200,
        attempts=1,
        began_s=1700000000.75,
        ended_s=1700000001.25,
        ttft_s=0.25,
        prompt_tokens=128,
        output_tokens=9,
        batch=1.0,
        predicted_ttft_s=0.5,
        predicted_e2e_s=made.decision.candidate("int8").prediction.e2e_s.p50,  # type: ignore[union-attr]
        predicted_energy_uj=round(made.decision.candidate("int8").prediction.costs.energy_j * 1e6),  # type: ignore[operator]
        predicted_cost_uusd=round(made.decision.candidate("int8").prediction.costs.cost_usd * 1e6),  # type: ignore[operator]
        estimate=Amounts(energy_uj=25_000_000, cost_uusd=125_000),
        full=Counterfactual(variant="full", amounts=Amounts(energy_uj=25_000_000, cost_uusd=250_000)),
        policy="cheap",
        terms='{"on_unmet":"refuse"}',
    )


def test_every_long_receipt_is_json_also_where_little_is_known() -> None:
    def strict(value: Any) -> str:
        return json.dumps(value, allow_nan=False)  # as HTTP answers are written

    unknown = variant("unknown", quality=None, speed=None, power=None, replicas_min=0)
    refused = receipt(served=None, terms=Terms(quality_min=1.0), fleet=(state(unknown),))
    refused.ended("refused", status=422, error="terms_unmet")
    assert strict(refused.long())
    assert strict(receipt(served=None, fleet=(state(unknown),)).long())
    assert strict(settled().long())


def test_a_receipt_is_shown_to_its_own_caller_only() -> None:
    store = ReceiptStore(10)
    made = receipt(caller="ann")
    store.keep(made)
    assert store.get("ecr-1", "ann") is made
    assert store.get("ecr-1", "bob") is None
    assert store.get("ecr-2", "ann") is None


def test_the_oldest_receipts_are_dropped_beyond_the_limit() -> None:
    store = ReceiptStore(2)
    for number in range(3):
        store.keep(receipt(f"ecr-{number}"))
    assert [store.get(f"ecr-{number}", "ann") is None for number in range(3)] == [True, False, False]


def test_ids_cannot_be_guessed_and_do_not_repeat() -> None:
    ids = {new_request_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(one.startswith("ecr-") and len(one) == 36 for one in ids)


def test_request_lines_are_written_a_batch_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    log = RequestLog()
    with caplog.at_level("INFO", logger="economizer.requests"):
        log.write()
        log.add(settled())
        log.add(receipt())
        assert caplog.messages == []
        log.write()
        log.write()
    assert caplog.messages == [f"{settled().log_line()}\n{receipt().log_line()}"]

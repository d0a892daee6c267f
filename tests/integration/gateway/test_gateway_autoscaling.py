"""Replicas follow the load, to zero and back.

Serve's schema says that an application's ``autoscaling_policy`` is not supported yet. These tests hold that it is: the
requests go to the engines past Serve, so that Serve's own policies see none of them and would never add a replica.
"""

import asyncio
import time

from fleet import Fleet
from replies import Caller, Load, soon

PATIENCE_S = 90.0  # a replica takes seconds to start, and many more on a loaded machine


async def asleep(fleet: Fleet) -> None:
    """Until the sleeping variant sleeps."""
    await soon(lambda: fleet.engines("lazy@asleep") == [], PATIENCE_S)


async def test_a_request_that_pins_a_sleeping_variant_waits_and_is_served_once_it_is_awake(
    caller: Caller, fleet: Fleet
) -> None:
    await asleep(fleet)
    replies = await asyncio.gather(*(caller.chat("lazy@asleep") for _ in range(5)))
    assert [(reply.status, reply.variant) for reply in replies] == [(200, "asleep")] * 5
    assert (await caller.receipt(replies[0].receipt_id))["attempts"][0]["error"] is None
    await asleep(fleet)


async def test_terms_too_tight_for_a_start_are_refused_and_the_variant_is_woken_for_the_next_caller(
    caller: Caller, fleet: Fleet
) -> None:
    await asleep(fleet)
    reply = await caller.chat("lazy@asleep", headers={"x-slo-ttft-ms": "1000"})
    assert (reply.status, reply.error["param"]) == (422, "ttft_s_max")
    assert "asleep: its time to first token (p95) is 5" in reply.error["message"]
    deadline_s = time.monotonic() + PATIENCE_S
    while (reply := await caller.chat("lazy@asleep", headers={"x-slo-ttft-ms": "1000"})).status != 200:
        assert reply.status == 422
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.5)
    assert reply.variant == "asleep"


async def test_an_awake_variant_answers_while_a_better_one_is_woken(caller: Caller, fleet: Fleet) -> None:
    assert fleet.engines("drowsy@asleep") == []
    first = await caller.chat("drowsy")
    assert (first.status, first.variant) == (200, "awake")
    deadline_s = time.monotonic() + PATIENCE_S
    while (reply := await caller.chat("drowsy", headers={"x-slo-ttft-ms": "1000"})).variant != "asleep":
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.5)
    assert reply.status == 200


async def test_replicas_are_added_under_load_and_taken_away_without_losing_a_request(
    caller: Caller, fleet: Fleet
) -> None:
    assert len(fleet.engines("elastic@one")) == 1
    high = Load(caller, ["elastic"], 12, {"tokens": 20, "tpot_s": 0.1}, patient=True)
    await soon(lambda: len(fleet.engines("elastic@one")) == 3, PATIENCE_S)
    low = Load(caller, ["elastic"], 2, {"tokens": 10, "tpot_s": 0.1}, patient=True)
    await high.stop()
    await soon(lambda: len(fleet.engines("elastic@one")) == 1, PATIENCE_S)
    await low.stop()
    assert high.failures + low.failures == []
    assert high.answered > 12
    assert low.answered > 10

"""A Serve replica is killed hard: its engine goes with it, Serve starts another, and callers are told or served."""

import asyncio
import os
import signal

from fleet import Fleet, exists
from replies import Caller, Load, soon


async def test_a_killed_replica_takes_its_engine_along_is_replaced_and_leaves_no_caller_hanging(
    caller: Caller, fleet: Fleet
) -> None:
    await caller.until_served("pair@a")
    (engine,) = fleet.engines("pair@a")
    load = Load(caller, ["pair"], 4, {"tokens": 5, "tpot_s": 0.05})
    async with caller.streamed("pair@a", fake={"tokens": 500, "tpot_s": 0.05}) as stream:
        events = stream.events()
        await anext(events)
        os.kill(fleet.replica_process(engine), signal.SIGKILL)
        async with asyncio.timeout(30):
            rest = [event async for event in events]
    assert '"code": "engine_failed"' in rest[-1]
    await soon(lambda: not exists(engine.pid), 8)
    during = await caller.chat("pair@a")
    assert during.status in (200, 503)
    assert (await caller.chat("pair")).status == 200
    await soon(lambda: [e for e in fleet.engines("pair@a") if e.pid != engine.pid], 60)
    assert (await caller.until_served("pair@a")).variant == "a"
    await load.stop()
    # A stream that had begun at the killed engine ends in an error; nothing else does.
    assert [failure for failure in load.failures if "broke off" not in failure] == []
    assert load.answered > 20

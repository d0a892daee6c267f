"""A session stays with its replica, and a shared prefix goes where it was seen last."""

from fleet import Fleet
from replies import Caller, soon

LONG = "The boiler's manual says that the flue gas must stay above its dew point. " * 20


async def replica_of(caller: Caller, content: str, headers: dict[str, str]) -> str:
    """The replica that answered."""
    reply = await caller.chat("twins", content=content, headers=headers)
    assert reply.status == 200
    replica: str = (await caller.receipt(reply.receipt_id))["replica"]
    return replica


async def homes(caller: Caller, fleet: Fleet, contents: list[str], headers: list[dict[str, str]]) -> tuple[str, str]:
    """Send the first request to one replica and, while it is busy with that, the second one to the other."""
    await soon(lambda: len(fleet.engines("twins@one")) == 2)
    async with caller.streamed(
        "twins", content=contents[0], headers=headers[0], fake={"tokens": 20, "tpot_s": 0.1}
    ) as stream:
        events = stream.events()
        await anext(events)
        second = await replica_of(caller, contents[1], headers[1])
        async for _ in events:
            pass
    first = (await caller.receipt(stream.receipt_id))["replica"]
    assert first != second
    return first, second


async def test_a_session_stays_with_its_replica(caller: Caller, fleet: Fleet) -> None:
    one, other = {"x-session-id": "one"}, {"x-session-id": "other"}
    first, second = await homes(caller, fleet, ["hello", "hello"], [one, other])
    for turn in range(4):
        assert await replica_of(caller, f"turn {turn}", one) == first
        assert await replica_of(caller, f"turn {turn}", other) == second


async def test_a_shared_prefix_goes_to_the_replica_that_has_seen_it(caller: Caller, fleet: Fleet) -> None:
    one, other = "one " + LONG, "other " + LONG
    first, second = await homes(caller, fleet, [one, other], [{}, {}])
    for turn in range(4):
        assert await replica_of(caller, f"{one}turn {turn}", {}) == first
        assert await replica_of(caller, f"{other}turn {turn}", {}) == second

from collections.abc import AsyncIterator
from typing import Any

import pytest
from economizer.config import parse
from economizer.gateway.fleet import Choice, ReplicaReport
from economizer.gateway.state import Gateway

ENGINE = {"engine": {"command": ["server"]}, "context_tokens_max": 4096, "hardware": "cpu"}
ARGS: dict[str, Any] = {
    "prices": {"cpu": {"usd_per_hour": 0.1, "source": "made up"}},
    "families": {
        "m": {
            "full": "full",
            "variants": {"full": ENGINE, "tiny": {**ENGINE, "routed": False, "replicas": {"min": 0, "max": 1}}},
        },
        "n": {"full": "full", "variants": {"full": {**ENGINE, "replicas": {"min": 0, "max": 1}}}},
    },
}
READY = ReplicaReport(id="r1", state="ready", url="http://127.0.0.1:1", secret="s")


class Nobody:
    """No replica is ever there."""

    def choose_now(self, variant_id: str, choice: Choice) -> str | None:
        return None

    async def choose(self, variant_id: str, choice: Choice) -> str:
        raise NotImplementedError


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made = Gateway.create(parse(ARGS), Nobody())
    yield made
    await made.relay.close()


async def test_a_variant_that_only_a_pin_gets_makes_no_family_ready(gateway: Gateway) -> None:
    assert gateway.ready_families() == ["n"]  # its variant may be woken
    gateway.changed("m@tiny", [READY])
    assert gateway.ready_families() == ["n"]
    gateway.changed("m@full", [READY])
    assert gateway.ready_families() == ["m", "n"]

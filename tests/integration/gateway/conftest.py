"""One fleet that most tests share, since bringing one up takes a while, and a caller of it."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from fleet import Fleet, configuration, variant
from replies import Caller


def _card(overhead_s: float, tokens_per_s: float) -> dict[str, Any]:
    return {
        "prefill_tokens_per_s": 5000,
        "decode_tokens_per_s": {1: tokens_per_s, 16: 8 * tokens_per_s},
        "overhead_s": overhead_s,
        "cold_start_s": 5,
        "source": "assumed",
    }


def _sleepy() -> dict[str, Any]:
    return {
        "full": "asleep",
        "policy": "cheap",
        "variants": {
            "asleep": variant(
                replicas={"min": 0, "max": 1},
                scaling={"up_s": 0, "down_s": 2, "to_zero_s": 2},
                speed=_card(0.02, 200),
            ),
            "awake": variant(hardware="gpu", speed=_card(0.02, 200)),
        },
    }


def _families() -> dict[str, Any]:
    """Each family is for one kind of question, so that tests do not disturb each other."""
    return {
        # What callers send and get.
        "plain": {"full": "one", "variants": {"one": variant()}},
        # Three variants that are each best at something; their engines are as fast as their cards say.
        "terms": {
            "full": "full",
            "policy": "cheap",
            "variants": {
                "full": variant(
                    *("--ttft-s", "0.5", "--tpot-s", "0.04"),
                    speed=_card(0.5, 25),
                    power={"active_w": 100, "source": "assumed"},
                ),
                "fast": variant(
                    *("--ttft-s", "0.01", "--tpot-s", "0.004"),
                    hardware="gpu",
                    speed=_card(0.01, 250),
                    power={"active_w": 3000, "source": "assumed"},
                    quality={"score": 0.8, "source": "assumed"},
                ),
                "green": variant(
                    *("--ttft-s", "0.8", "--tpot-s", "0.06"),
                    speed=_card(0.8, 16.7),
                    power={"active_w": 5, "source": "assumed"},
                    hardware="spot",
                    quality={"score": 0.9, "low": 0.85, "source": "assumed"},
                ),
            },
        },
        # Where to turn when an engine dies: another variant, or another replica.
        "pair": {
            "full": "a",
            "policy": "cheap",
            "variants": {"a": variant(), "b": variant(hardware="gpu", features=["chat", "embeddings"])},
        },
        "twins": {"full": "one", "variants": {"one": variant(replicas={"min": 2, "max": 2})}},
        # One engine that runs one request at a time, and comes back late after a crash.
        "narrow": {
            "full": "one",
            "variants": {"one": variant(concurrency_max=1, engine={"restart_backoff_s": 3})},
        },
        # One variant that sleeps, beside one that does not; twice, since a wish to wake it lasts a while.
        "lazy": _sleepy(),
        "drowsy": _sleepy(),
        # One to three replicas, by load.
        "elastic": {
            "full": "one",
            "variants": {
                "one": variant(
                    concurrency_max=4,
                    replicas={"min": 1, "max": 3},
                    scaling={"up_s": 1, "down_s": 2, "to_zero_s": 2},
                )
            },
        },
    }


@pytest.fixture(scope="package")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The shared fleet; afterwards nothing of it may be left."""
    content = configuration(
        _families(),
        body_bytes_max=200_000,
        queue_max=12,
        first_byte_timeout_s=6,
        idle_timeout_s=4,
        wake_timeout_s=60,
    )
    content["applications"][0]["args"]["policies"] = {"best": {"quality": 1}}
    fleet = Fleet(tmp_path_factory.mktemp("fleet") / "fleet.yaml", content)
    try:
        fleet.wait_until_ready()
        yield fleet
        assert fleet.end() == (0, [])
    finally:
        fleet.kill()


@pytest.fixture
async def caller(fleet: Fleet) -> AsyncIterator[Caller]:
    """Someone who calls the shared fleet."""
    async with fleet.caller() as caller:
        yield caller

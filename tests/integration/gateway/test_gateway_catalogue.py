"""Variants that were published: a catalogue beside the configuration, laid over it when the fleet comes up."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet import Fleet, configuration, variant
from replies import Caller, Reply, soon

PATIENCE_S = 90.0


def publish(store: Path, name: str, *, tokens_per_s: float, quality: float, **fields: Any) -> dict[str, Any]:
    """A checkpoint folder with its manifest, and what the catalogue says of it; the faster, the cheaper it is."""
    folder = store / "checkpoints" / name
    folder.mkdir(parents=True)
    weights = name.encode() * 1000
    (folder / "model.safetensors").write_bytes(weights)
    digest = {"sha256": hashlib.sha256(weights).hexdigest(), "size_bytes": len(weights)}
    (folder / "manifest.json").write_text(json.dumps({"files": {"model.safetensors": digest}}))
    return {
        "engine": {"model": f"./checkpoints/{name}"},
        "routed": True,
        "quality": {"score": quality, "low": quality - 0.02, "source": "measured"},
        "speed": {
            "prefill_tokens_per_s": 9000,
            "decode_tokens_per_s": {1: tokens_per_s},
            "cold_start_s": 0.1,
            "source": "measured",
        },
        "energy": {"prefill_j_per_token": 0.25, "decode_j_per_token": {1: 2.0}, "source": "measured"},
        "size_bytes": len(weights),
        "kl_mean": 0.018,
        "top1_agreement": quality,
        **fields,
    }


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet of one declared variant that is awake, one that no machine has the memory for, and published ones."""
    folder = tmp_path_factory.mktemp("measured")
    store = folder / "store"
    variants = {
        "int8": publish(store, "int8", tokens_per_s=800, quality=0.93),
        "refused": publish(store, "refused", tokens_per_s=8000, quality=0.5, routed=False),
        "damaged": publish(store, "damaged", tokens_per_s=10, quality=0.9),
    }
    (store / "checkpoints" / "damaged" / "model.safetensors").write_bytes(b"damagex" * 1000)
    (store / "catalogue.yaml").write_text(yaml.safe_dump({"families": {"m": {"variants": variants}}}))
    huge = variant(
        replicas={"min": 0, "max": 1},
        ray={"num_cpus": 0.1, "memory_gib": 100_000},
        speed={"prefill_tokens_per_s": 5000, "decode_tokens_per_s": {1: 100}, "cold_start_s": 0, "source": "assumed"},
    )
    full = variant(scaling={"up_s": 0}, ray={"num_cpus": 0.1, "memory_gib": 0.25})
    families = {"m": {"full": "full", "policy": "cheap", "variants": {"full": full, "huge": huge}}}
    content = configuration(families, wake_timeout_s=60)
    content["applications"][0]["args"]["catalogue"] = str(store / "catalogue.yaml")
    fleet = Fleet(folder / "config.yaml", content)
    try:
        fleet.wait_until_ready()
        yield fleet
        assert fleet.end() == (0, [])
    finally:
        fleet.kill()


@pytest.fixture
async def caller(measured: Fleet) -> AsyncIterator[Caller]:
    async with measured.caller() as caller:
        yield caller


async def chosen(caller: Caller, **headers: str) -> str:
    """The variant that answers a request for the family."""
    reply = await caller.chat("m", headers={name.replace("_", "-"): value for name, value in headers.items()})
    assert reply.status == 200, reply
    return reply.variant


async def test_published_variants_sleep_until_they_are_pinned_and_terms_choose_among_those_that_are_promoted(
    caller: Caller, measured: Fleet
) -> None:
    assert [engine.name for engine in measured.engines()] == ["m@full"]
    int8, refused = await asyncio.gather(caller.chat("m@int8"), caller.chat("m@refused"))
    assert [(reply.status, reply.variant) for reply in (int8, refused)] == [(200, "int8"), (200, "refused")]
    # The fastest and cheapest of all is awake, and serves nobody who does not name it.
    assert await chosen(caller) == "int8"
    assert await chosen(caller, x_quality_min="0.905") == "int8"  # the interval's lower end is 0.91
    assert await chosen(caller, x_quality_min="0.92") == "full"
    receipt = await caller.receipt((await caller.chat("m")).receipt_id)
    (candidate,) = [one for one in receipt["decision"]["candidates"] if one["variant"] == "refused"]
    assert [refusal["term"] for refusal in candidate["refusals"]] == ["routed"]


async def test_measured_joules_are_what_the_receipt_counts(caller: Caller) -> None:
    reply = await caller.chat("m@int8", content="a question that no engine has cached", fake={"tokens": 9})
    usage = reply.json["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert usage["economizer"]["energy_j"] == pytest.approx(0.25 * usage["prompt_tokens"] + 8 * 2.0)


async def test_a_damaged_checkpoint_does_not_come_up_and_serves_status_names_the_file(
    caller: Caller, measured: Fleet
) -> None:
    reply = await caller.chat("m@damaged", headers={"x-slo-ttft-ms": "2000"})
    assert_comes_later(reply)
    wrong = "model.safetensors has another content than its manifest says"
    await soon(lambda: wrong in " ".join(measured.serve("status").stdout.split()), PATIENCE_S)
    assert measured.engines("m@damaged") == []
    assert await chosen(caller) == "int8"  # the others serve on


async def test_a_variant_that_the_machine_has_no_memory_for_is_waited_for_and_then_refused(
    caller: Caller, measured: Fleet
) -> None:
    began_s = time.monotonic()
    reply = await caller.chat("m@huge", headers={"x-slo-ttft-ms": "2000"})
    assert time.monotonic() - began_s > 1
    assert_comes_later(reply)
    assert measured.engines("m@huge") == []
    assert await chosen(caller) == "int8"


def assert_comes_later(reply: Reply) -> None:
    """503, with the time to ask again."""
    assert (reply.status, reply.error["code"]) == (503, "not_ready"), reply
    assert "became ready within" in reply.error["message"]
    assert "retry-after" in reply.headers


def test_the_command_line_shows_what_was_measured(measured: Fleet) -> None:
    checked = measured.economizer("check-config", str(measured.file))
    assert checked.stdout.strip() == f"{measured.file}: well formed: 1 families, 5 variants"
    shown = json.loads(measured.economizer("variants", str(measured.file), "--json").stdout)
    rows = {row["name"]: row for row in shown}
    assert {name: (row["routed"], row["replicas"]) for name, row in rows.items()} == {
        "m@damaged": (True, "0-1"),
        "m@full": (True, "1-1"),
        "m@huge": (True, "0-1"),
        "m@int8": (True, "0-1"),
        "m@refused": (False, "0-1"),
    }
    assert (rows["m@int8"]["quality_low"], rows["m@int8"]["energy_j_per_token"]) == (0.91, 2.0)

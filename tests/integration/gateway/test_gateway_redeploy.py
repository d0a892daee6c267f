"""``serve deploy`` of a changed file while callers go on calling: nobody loses a request."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import yaml
from fleet import Fleet, configuration, variant
from replies import Caller, Load, soon


def families(*arguments: str, cpu_quality: float = 0.9) -> dict[str, Any]:
    """One family; ``arguments`` go to the engine of its full variant."""
    return {
        "moving": {
            "full": "full",
            "policy": "cheap",
            "variants": {
                "full": variant("--ttft-s", "0.05", *arguments, hardware="gpu"),
                "small": variant(quality={"score": cpu_quality, "source": "assumed"}),
            },
        }
    }


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet of its own, since a deployment replaces every replica."""
    fleet = Fleet(tmp_path_factory.mktemp("moving") / "moving.yaml", configuration(families()))
    try:
        fleet.wait_until_ready()
        yield fleet
        assert fleet.end() == (0, [])
    finally:
        fleet.kill()


@pytest.fixture
async def caller(moving: Fleet) -> AsyncIterator[Caller]:
    async with moving.caller() as caller:
        yield caller


def running(fleet: Fleet) -> bool:
    """``serve status`` says that all is well."""
    shown = fleet.serve("status").stdout
    return "DEPLOY" not in shown and "status: RUNNING" in shown and "UPDATING" not in shown and "UNHEALTHY" not in shown


async def test_a_changed_file_is_deployed_under_load_without_losing_a_request(moving: Fleet, caller: Caller) -> None:
    old = [engine.pid for engine in moving.engines()]
    load = Load(caller, ["moving@full", "moving@small", "moving"], 6, {"tokens": 20, "tpot_s": 0.05})
    await asyncio.sleep(2)
    async with caller.streamed("moving@full", fake={"tokens": 90, "tpot_s": 0.5}) as long_stream:
        moving.rewrite(families("--tokens", "5", cpu_quality=0.8))
        deployed = await asyncio.to_thread(moving.serve, "deploy", str(moving.file))
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        events = await long_stream.all()
    assert events[-1] == "[DONE]"
    await soon(lambda: not {engine.pid for engine in moving.engines()} & set(old), 90)
    await soon(lambda: running(moving), 60)
    await asyncio.sleep(2)
    await load.stop()
    assert load.failures == []
    assert load.answered > 50
    assert (await caller.chat("moving@full")).json["usage"]["completion_tokens"] == 5
    refused = await caller.chat("moving@small", headers={"x-quality-min": "0.85"})
    assert refused.status == 422


async def test_the_gateways_user_config_changes_what_it_believes_and_replaces_no_process(
    moving: Fleet, caller: Caller
) -> None:
    chosen = await caller.chat("moving")
    assert chosen.headers["x-economizer-variant"] == "small"
    engines = moving.engines()
    content = yaml.safe_load(moving.file.read_text())
    believed = {"prices": {"cpu": {"usd_per_hour": 500.0, "carbon_g_per_kwh": 400, "source": "a dear day"}}}
    content["applications"][0]["deployments"] = [{"name": "gateway", "user_config": believed}]
    moving.file.write_text(yaml.safe_dump(content))
    deployed = await asyncio.to_thread(moving.serve, "deploy", str(moving.file))
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr

    async def dear() -> bool:
        return (await caller.chat("moving")).headers["x-economizer-variant"] == "full"

    for _ in range(100):
        if await dear():
            break
        await asyncio.sleep(0.2)
    assert await dear()
    assert moving.engines() == engines
    # Receipts are in the gateway's memory: it is the same process.
    receipt = await caller.get(f"/v1/receipts/{chosen.headers['x-economizer-request-id']}")
    assert receipt.status == 200
    shown = json.loads(moving.economizer("variants", str(moving.file), "--json").stdout)
    assert {row["name"]: row["usd_per_hour"] for row in shown} == {"moving@full": 2.0, "moving@small": 500.0}


def test_the_command_line_tells_what_runs_and_what_is_configured(moving: Fleet) -> None:
    status = moving.economizer("status", "--url", moving.url, "--json")
    assert status.returncode == 0
    found = json.loads(status.stdout)
    assert found["ready"] is True
    assert [engine["variant"] for engine in found["engines"]] == ["moving@full", "moving@small"]
    assert moving.economizer("status", "--url", moving.url).stdout.startswith("ready\nvariant ")
    variants = json.loads(moving.economizer("variants", str(moving.file), "--json").stdout)
    assert [(row["name"], row["full"], row["usd_per_hour"]) for row in variants] == [
        ("moving@full", True, 2.0),
        ("moving@small", False, 500.0),
    ]
    checked = moving.economizer("check-config", str(moving.file))
    assert checked.stdout.strip() == f"{moving.file}: well formed: 1 families, 2 variants"


def test_the_command_line_says_what_is_wrong(moving: Fleet) -> None:
    nobody = moving.economizer("status", "--url", "http://127.0.0.1:1")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert "No gateway answers at http://127.0.0.1:1" in nobody.stderr
    broken = moving.file.with_name("broken.yaml")
    broken.write_text(moving.file.read_text().replace("full: full", "full: nobody"))
    checked = moving.economizer("check-config", str(broken))
    assert checked.returncode == 1
    assert "applications[0].args.families.moving.full: 'nobody': must be one of ['full', 'small']" in checked.stderr

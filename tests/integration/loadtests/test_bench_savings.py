"""The benchmark of the savings, whole, with engines that cost next to nothing in place of vLLM's."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from economizer.config import AUTOSCALING_POLICY, IMPORT_PATH
from economizer.engine.guard import descendants
from economizer.engine.types import EngineSpec
from load.fleets import bare
from load.meters import FleetMeter
from load.results import read
from load.sending import Target, replay
from load.types import Message, Planned

LOADTESTS = Path(__file__).resolve().parents[3] / "loadtests"
ENGINE = (sys.executable, str(LOADTESTS / "fast_engine.py"), "--host", "{host}", "--port", "{port}")
WAIT_S = 240.0


def variant(score: float, decode_j: float) -> dict[str, Any]:
    return {
        "hardware": "core",
        "context_tokens_max": 2048,
        "concurrency_max": 4,
        "engine": {"command": list(ENGINE)},
        "ray": {"num_cpus": 0.1},
        "quality": {"score": score, "source": "a test's"},
        "speed": {"prefill_tokens_per_s": 5000, "decode_tokens_per_s": {1: 100, 4: 400}, "source": "a test's"},
        "energy": {"prefill_j_per_token": 0.001, "decode_j_per_token": {1: decode_j}, "source": "a test's"},
    }


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A short comparison of two variants, of which the cheaper one keeps the floor."""
    args = {
        "prices": {"core": {"usd_per_hour": 0.05, "per": "core", "carbon_g_per_kwh": 400, "source": "a test's"}},
        "families": {"boiler": {"full": "full", "variants": {"full": variant(1.0, 0.02), "half": variant(0.9, 0.01)}}},
    }
    application = {
        "name": "economizer",
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "autoscaling_policy": {"policy_function": AUTOSCALING_POLICY},
        "args": args,
    }
    config, mix = tmp_path / "config.yaml", tmp_path / "asked.yaml"
    config.write_text(yaml.safe_dump({"http_options": {"host": "127.0.0.1"}, "applications": [application]}))
    terms = {"quality_min": 0.9, "ttft_s_max": 10.0}
    mix.write_text(yaml.safe_dump({"graded": {"share": 0.5, "terms": terms}, "any": {"share": 0.5}}))
    return [
        *(sys.executable, str(LOADTESTS / "bench_savings.py"), "--config", str(config), "--mixes", str(mix)),
        *("--policies", "green", "--rounds", "1", "--minutes", "0.1", "--warm-s", "1", "--share", "0.2"),
        *("--engines", "2", "--length-scale", "0.05", "--quality-items", "0", "--no-steps"),
        *("--out", str(tmp_path / "out")),
    ]


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_both_fleets_get_the_same_requests_and_the_same_command_goes_on_where_it_was(
    command: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = last_line(done)["results"]
    assert (found["mix"], found["policy"], found["rounds"]) == ("asked", "green", 1)
    assert found["slo_full"] == found["slo_ours"] == found["floors_kept"] == 1.0
    assert found["energy_ratio"] > 0
    assert found["energy_ratio_allocation"] > found["energy_ratio"]  # one engine is kept instead of two

    full, ours = (read(tmp_path / "out" / "runs" / f"1-asked-{name}").outcomes for name in ("full", "green"))
    assert {(one.number, one.due_s, one.terms.quality_min) for one in full} == {
        (one.number, one.due_s, one.terms.quality_min) for one in ours
    }
    assert {one.variant for one in full} == {None}
    assert {one.variant for one in ours} == {"half"}
    bill = json.loads((tmp_path / "out" / "runs" / "1-asked-green" / "run.json").read_bytes())["bill"]
    assert bill["closes"] is True
    assert bill["with_idle_j"] > bill["energy_j"] > 0

    again = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert again.returncode == 0, again.stderr
    assert last_line(again)["results"] == [found]
    other = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert other.returncode == 2
    assert "seed 0, now 1: give the same, or another folder" in other.stderr


def test_ctrl_c_ends_every_process_and_says_what_is_there(command: list[str], tmp_path: Path) -> None:
    with subprocess.Popen(
        [*command, "--minutes", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline_s = time.monotonic() + WAIT_S
        while not (tmp_path / "out" / "runs" / ".1-asked-full").exists():  # the first run has begun
            assert time.monotonic() < deadline_s
            assert process.poll() is None
            time.sleep(0.05)
        below = list(descendants(process.pid))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, err
    assert json.loads(out.splitlines()[-1])["complete"] is False
    assert "the same command goes on" in err
    assert len(below) >= 2  # engines and their guards
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]


def test_a_bare_fleet_is_metered_without_its_client(tmp_path: Path) -> None:
    plan = [
        Planned(
            number=number,
            due_s=number / 50,
            kind="chat",
            model="boiler",
            messages=(Message(role="user", content="What is an economizer?"),),
            output_tokens=20,
        )
        for number in range(100)
    ]
    with bare(EngineSpec(command=ENGINE), model="boiler", count=2, folder=tmp_path) as fleet:
        meter = FleetMeter(fleet.roots, engine=fleet.engine, every_s=0.2)
        client_s = time.process_time()
        outcomes = asyncio.run(replay(plan, Target(urls=fleet.urls, key=fleet.key)))
        client_s = time.process_time() - client_s
        readings = meter.end()
        alive = [Path(f"/proc/{pid}") for pid in fleet.roots]
        assert all(path.exists() for path in alive)
    assert [one.error for one in outcomes] == [None] * 100
    assert {each.engines for each in readings} == {2}
    assert len(readings) > 5
    used_s = readings[-1].cpu_s - readings[0].cpu_s
    assert 0 < readings[-1].engines_cpu_s - readings[0].engines_cpu_s <= used_s + 0.02
    assert used_s < client_s + 1.0
    assert not any(path.exists() for path in alive)

"""Replays against a scripted server, a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from load.results import read
from load.sending import Target, replay
from load.types import Message, Outcome, Planned, Terms

HERE = Path(__file__).resolve().parent
REPLAY = HERE.parents[2] / "loadtests" / "replay.py"
WAIT_S = 60.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, str(HERE / "scripted_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


@pytest.fixture
def nowhere() -> Iterator[str]:
    """A URL whose port is taken and not listened on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


def planned(number: int, due_s: float, model: str, **fields: Any) -> Planned:
    messages = (Message(role="user", content="What is an economizer?"),)
    values = {"kind": "chat", "messages": messages, "output_tokens": 4, **fields}
    return Planned(number=number, due_s=due_s, model=model, **values)


def fetched(url: str, path: str) -> Any:
    with urllib.request.urlopen(url.removesuffix("/v1") + path, timeout=WAIT_S) as answer:
        return json.load(answer)


async def one(url: str, model: str, **how: Any) -> Outcome:
    fields = how.pop("fields", {})
    leaves_s = how.pop("leaves_s", None)
    (outcome,) = await replay([planned(0, 0.0, model, **fields)], Target(urls=(url,), **how), leaves_s=leaves_s)
    return outcome


async def test_fifty_answers_that_hang_delay_and_drop_no_arrival(url: str) -> None:
    hanging = [planned(number, number * 0.01, "hangs") for number in range(50)]
    others = [planned(50 + number, 0.6 + number * 0.02, "quick") for number in range(100)]
    late: list[float] = []
    outcomes = await replay(
        [*others, *hanging],
        Target(urls=(url,), timeout_s=8.0),
        on_sent=lambda _planned, late_s: late.append(late_s),
    )
    found = {outcome.number: outcome for outcome in outcomes}
    assert sorted(found) == list(range(150))
    assert Counter(found[number].error for number in range(50)) == {"timeout": 50}
    assert Counter(found[number].error for number in range(50, 150)) == {None: 100}
    assert all(found[number].ended_s < 8.0 for number in range(50, 150)), "some waited for those that hang"
    assert sorted(late) == sorted(outcome.sent_s - outcome.due_s for outcome in outcomes)
    assert sorted(late)[len(late) // 2] < 0.05
    assert max(late) < 2.0


async def test_a_stream_is_timed_by_its_tokens_and_tells_its_usage(url: str) -> None:
    outcome = await one(url, "paced", fields={"terms": Terms(ttft_s_max=5.0, tpot_s_max=5.0)})
    assert (outcome.status, outcome.error) == (200, None)
    assert (outcome.prompt_tokens, outcome.output_tokens) == (33, 4)
    assert outcome.ttft_s is not None
    assert outcome.tpot_s is not None
    assert 0.05 <= outcome.ttft_s < 2.0
    assert 0.045 <= outcome.tpot_s < 2.0
    assert (outcome.variant, outcome.request_id, outcome.method) == ("int8", "r-1", "estimate")
    assert (outcome.energy_j, outcome.cost_usd, outcome.carbon_g) == (2.0, 0.5, 1.0)
    assert outcome.quality is None
    assert outcome.met


async def test_a_whole_answer_tells_its_costs_in_headers(url: str) -> None:
    outcome = await one(url, "whole", fields={"stream": False})
    assert (outcome.error, outcome.first_s, outcome.output_tokens) == (None, None, 4)
    assert (outcome.variant, outcome.energy_j, outcome.cost_usd, outcome.method) == ("int8", 2.0, 0.5, "estimate")


async def test_a_receipt_tells_what_was_measured_predicted_and_promised(url: str) -> None:
    outcome = await one(url, "quick", receipts=True, fields={"terms": Terms(quality_min=0.9)})
    assert (outcome.energy_j, outcome.cost_usd, outcome.method, outcome.quality) == (1.5, 0.25, "rapl", 0.9)
    assert (outcome.predicted_ttft_s, outcome.predicted_tpot_s) == (0.125, 0.25)
    assert (outcome.predicted_energy_j, outcome.predicted_cost_usd) == (3.0, 0.75)
    assert outcome.e2e_s < 1.5, "waiting for the receipt is no part of the answer"
    assert outcome.met


@pytest.mark.parametrize(
    ("model", "status", "error", "begun"),
    [
        ("breaks", 200, "broken_off", True),
        ("stops", 200, "stream_cut", True),
        ("fails", 200, "engine_failed", True),
        ("full", 503, "not_ready", False),
        ("proxy", 503, "http_503", False),
        ("closes", None, "broken_off", False),
        ("nonsense", 200, "not_understood", False),
    ],
)
async def test_what_goes_wrong_is_told_by_its_name(
    url: str, model: str, status: int | None, error: str, begun: bool
) -> None:
    outcome = await one(url, model)
    assert (outcome.status, outcome.error, outcome.first_s is not None) == (status, error, begun)
    assert not outcome.met


async def test_a_server_that_is_not_there_is_an_error_of_each_request(nowhere: str) -> None:
    outcome = await one(nowhere, "quick")
    assert (outcome.status, outcome.error) == (None, "not_connected")


async def test_a_caller_who_leaves_is_told_apart_from_one_who_waits_too_long(url: str) -> None:
    left = await one(url, "stalls", leaves_s={0: 0.5})
    assert (left.error, left.first_s is not None) == ("cancelled", True)
    waited = await one(url, "hangs", timeout_s=0.5)
    assert (waited.error, waited.status) == ("timeout", None)
    deadline_s = time.monotonic() + WAIT_S
    while await asyncio.to_thread(fetched, url, "/held"):
        assert time.monotonic() < deadline_s, "the server still holds requests whose callers are gone"
        await asyncio.sleep(0.05)


async def test_terms_session_tier_and_the_tenants_key_go_with_a_request_and_terms_only_where_wanted(url: str) -> None:
    fields = {
        "terms": Terms(ttft_s_max=0.25, tpot_s_max=0.1, e2e_s_max=30.0, quality_min=0.85, policy="green"),
        "tenant": "acme",
        "session": "s-7",
        "service_tier": "flex",
    }
    for terms in (True, False):
        await one(url, "quick", fields=fields, key="sk-all", keys={"acme": "sk-acme"}, terms=terms, extra={"top_k": 3})
    with_terms, without = (await asyncio.to_thread(fetched, url, "/requests"))[-2:]
    head = with_terms["headers"]
    assert (head["authorization"], head["x-session-id"]) == ("Bearer sk-acme", "s-7")
    sent = {name: value for name, value in head.items() if name.startswith(("x-slo", "x-quality", "x-economizer"))}
    assert sent == {
        "x-slo-ttft-ms": "250",
        "x-slo-tpot-ms": "100",
        "x-slo-e2e-ms": "30000",
        "x-quality-min": "0.85",
        "x-economizer-policy": "green",
    }
    assert not any(name.startswith(("x-slo", "x-quality", "x-economizer")) for name in without["headers"])
    assert {name: with_terms["body"][name] for name in ("max_tokens", "ignore_eos", "service_tier", "top_k")} == {
        "max_tokens": 4,
        "ignore_eos": True,
        "service_tier": "flex",
        "top_k": 3,
    }
    assert with_terms["body"]["stream_options"] == {"include_usage": True}


async def test_requests_take_turns_over_several_urls(url: str, nowhere: str) -> None:
    plan = [planned(number, 0.0, "quick") for number in range(6)]
    outcomes = await replay(plan, Target(urls=(url, nowhere)))
    assert {outcome.number: outcome.error for outcome in outcomes} == {
        number: None if number % 2 == 0 else "not_connected" for number in range(6)
    }


def trace(folder: Path, count: int, gap_s: float) -> Path:
    path = folder / "trace.jsonl"
    rows = [{"at_s": number * gap_s, "prompt_tokens": 60, "output_tokens": 4} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(url: str, model: str, trace_file: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, str(REPLAY), str(trace_file), "--url", url, "--model", model, "--out", str(out), *more]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "ECONOMIZER_DATA"}


def test_the_command_replays_a_trace_and_writes_both_forms_of_results(url: str, tmp_path: Path) -> None:
    words = command(
        url, "quick", trace(tmp_path, 40, 1.0), tmp_path / "run", "--speed", "40", "--format", "parquet", "--no-terms"
    )
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["planned"], last["sent"], last["answered"], last["failed"]) == (40, 40, 40, {})
    assert last["variants"] == {"int8": 40}
    assert last["energy_j"] == 80.0
    for name in ("outcomes.jsonl", "outcomes.parquet"):
        found = read(tmp_path / "run" / name)
        assert sorted(outcome.number for outcome in found.outcomes) == list(range(40))
        assert found.header.settings["speed"] == 40.0
        assert found.header.facts["trace"] == "our own"
    again = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=WAIT_S)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_replay_that_is_stopped_keeps_every_outcome_until_then(url: str, tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "run"
    words = command(url, "quick", trace(tmp_path, 2000, 0.05), out, "--mix", "relaxed")
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        deadline_s = time.monotonic() + WAIT_S
        while not (out / "outcomes.jsonl").exists() or len(read(out).outcomes) < 20:
            assert time.monotonic() < deadline_s
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(how)
        output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    last, found = json.loads(output.splitlines()[-1]), read(out)
    assert 20 <= len(found.outcomes) == last["sent"] < 2000
    assert not found.torn


def test_a_server_or_model_that_is_not_there_is_said_before_anything_is_sent(
    url: str, nowhere: str, tmp_path: Path
) -> None:
    file = trace(tmp_path, 3, 1.0)
    for words, message in (
        (command(nowhere, "quick", file, tmp_path / "a"), "nothing answers there"),
        (command(url, "gpt-5", file, tmp_path / "b"), "--model gpt-5: must be one of what"),
    ):
        done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=WAIT_S)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
        assert not Path(words[words.index("--out") + 1]).exists()

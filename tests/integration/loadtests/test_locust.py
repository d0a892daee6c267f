"""Real Locust against a real small server: its options, statistics, exit codes, workers and web UI."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fleet import free_port
from load.gevent_chat import Chat
from load.sending import Target
from load.types import Message, Planned, Terms

CHECKOUT = Path(__file__).parents[3]
LOCUST = [sys.executable, "-m", "locust", "-f", str(CHECKOUT / "loadtests" / "locustfile.py")]
TTFT_S, TPOT_S = 0.1, 0.02
KEY = "sk-loadtest"
COSTS = {"variant": "int8", "method": "estimate", "energy_j": 2.5, "cost_usd": 0.00002, "carbon_g": 0.001}
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An engine that takes its time, and says what an answer costs as Economizer does."""
    port = free_port()
    engine = [sys.executable, str(CHECKOUT / "tests" / "fake_engine.py"), "--port", str(port), "--name", "tiny"]
    pace = ["--ttft-s", str(TTFT_S), "--tpot-s", str(TPOT_S), "--tokens", "500"]
    environment = {**os.environ, "ECONOMIZER_ENGINE_SECRET": KEY}
    with _process([*engine, *pace, "--usage-too", json.dumps({"economizer": COSTS})], environment):
        url = f"http://127.0.0.1:{port}"
        _until_it_answers(f"{url}/health")
        yield url


@contextmanager
def _process(command: Sequence[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Runs until the end of the block at most; its standard output and error are one."""
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _until_it_answers(url: str) -> bytes:
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bytes(answer.read())
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)


def _locust(*options: str) -> tuple[int, str]:
    """Its exit code and all that it wrote."""
    keys = {"ECONOMIZER_KEY_ACME": KEY, "ECONOMIZER_KEY_BOLT_2": KEY, "OPENAI_API_KEY": KEY}
    done = subprocess.run(
        [*LOCUST, *options],
        env={**os.environ, **keys},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _statistics(folder: Path) -> dict[tuple[str, str], dict[str, float]]:
    """The rows of Locust's CSV, by type and name."""
    with (folder / "locust_stats.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row.pop("Type"), row.pop("Name")): {name: float(value) for name, value in row.items()} for row in rows}


def test_a_headless_run_that_keeps_its_objectives_ends_with_0_and_a_folder_of_figures(
    server: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    limits = ["--slo-ttft-p95-ms", "3000", "--slo-tpot-p95-ms", "500", "--slo-failures-max", "0.01"]
    who = ["--tenants", "acme:strict,bolt-2", "--mix", "mixed"]
    code, said = _locust(
        *("--host", server, "--headless", "--only-summary", "-u", "10", "-r", "100", "-t", "8s", "-s", "10"),
        *(*limits, *who, "--out", str(out)),
    )
    assert code == 0, said
    rows = _statistics(out)
    for name in ("Streaming", "LongPrompt", "MultiTurn"):
        ttft, tpot = rows["TTFT", name], rows["TPOT", name]
        assert TTFT_S * 1e3 < ttft["Average Response Time"] < 10 * TTFT_S * 1e3
        assert TPOT_S * 1e3 <= tpot["Average Response Time"] < 3 * TPOT_S * 1e3
        assert ttft["Request Count"] == rows["POST", name]["Request Count"]
        assert ttft["95%"] >= ttft["50%"] > 0
    assert ("TTFT", "ShortChat") not in rows  # its answers come whole
    asked = sum(row["Request Count"] for (kind, _), row in rows.items() if kind == "POST")
    assert rows["", "Aggregated"]["Request Count"] == asked == rows["variant", "int8"]["Request Count"]
    spent = [row for (kind, _), row in rows.items() if kind == "mJ"]
    assert {row["Average Response Time"] for row in spent} == {2500.0}
    assert "variant int8: " in said
    assert "tenant acme: " in said
    assert "J, 2.5 J an answer" in said
    assert said.count("SLO met: ") == 3
    assert "<html" in (out / "report.html").read_text()

    code, said = _locust("--host", server, "--headless", "-t", "1s", "--out", str(out))
    assert code == 1
    assert "results are never overwritten" in said


def test_a_missed_objective_is_named_and_the_exit_code_is_1(server: str) -> None:
    code, said = _locust(
        *("--host", server, "--headless", "--only-summary", "-u", "3", "-r", "100", "-t", "3s", "--plain"),
        *("--slo-ttft-p95-ms", "20", "Streaming"),
    )
    assert code == 1
    assert re.search(r"SLO MISSED: TTFT p95 \d+ ms, at most 20 ms", said)


def test_a_worker_asks_and_the_master_judges_over_a_ramp(server: str, tmp_path: Path) -> None:
    port = str(free_port())
    worker = [*LOCUST, "--worker", "--master-host", "127.0.0.1", "--master-port", port]
    master = ["--master", "--expect-workers", "1", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
    with _process(worker, {**os.environ, "OPENAI_API_KEY": KEY}) as running:
        code, said = _locust(
            *(*master, "--host", server, "--headless", "--only-summary", "-u", "6", "-t", "6s", "-s", "10"),
            *("--shape", "ramp", "--slo-failures-max", "0", "--slo-e2e-p95-ms", "5000", "--out", str(tmp_path / "run")),
            *("ShortChat", "Streaming"),
        )
        assert code == 0, said
        assert running.wait(DEADLINE_S) == 0
    rows = _statistics(tmp_path / "run")
    assert rows["TTFT", "Streaming"]["Average Response Time"] > TTFT_S * 1e3
    assert rows["variant", "int8"]["Request Count"] == rows["", "Aggregated"]["Request Count"]
    assert "Shape test updating to 6 users" in said


def test_the_web_ui_shows_the_times_of_tokens_and_ctrl_c_keeps_what_was_measured(server: str, tmp_path: Path) -> None:
    port = free_port()
    command = [*LOCUST, "--host", server, "--web-host", "127.0.0.1", "--web-port", str(port), "--autostart"]
    steady = ["-u", "4", "-r", "100", "--out", str(tmp_path / "run"), "Streaming"]
    with _process([*command, *steady], {**os.environ, "OPENAI_API_KEY": KEY}) as running:
        deadline_s, kinds = time.monotonic() + DEADLINE_S, set[str]()
        while not kinds >= {"POST", "TTFT", "TPOT", "variant", "mJ"}:
            assert time.monotonic() < deadline_s, kinds
            shown: dict[str, Any] = json.loads(_until_it_answers(f"http://127.0.0.1:{port}/stats/requests"))
            kinds = {row["method"] for row in shown["stats"]}
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=DEADLINE_S)
    assert running.returncode == 0, said
    assert _statistics(tmp_path / "run")["TTFT", "Streaming"]["Request Count"] > 0
    assert (tmp_path / "run" / "report.html").exists()


def test_where_nothing_answers_it_says_so_and_asks_nothing() -> None:
    code, said = _locust("--host", f"http://127.0.0.1:{free_port()}", "--headless", "-t", "60s")
    assert code == 1
    assert "nothing answers at http://127.0.0.1:" in said
    assert "make run" in said


def _asked(
    server: str, *, stream: bool = True, timeout_s: float = 30.0, **fake: object
) -> tuple[str | None, int | None, str]:
    """Error, status and text of a chat that the engine answers as it is told."""
    target = Target(urls=(f"{server}/v1",), key=KEY, timeout_s=timeout_s, extra={"fake": {"tokens": 4, **fake}})
    chat = Chat(target)
    planned = Planned(
        number=0,
        due_s=0.0,
        kind="Streaming",
        model="tiny",
        messages=(Message(role="user", content="What is an economizer?"),),
        output_tokens=8,
        stream=stream,
        terms=Terms(quality_min=0.9),
    )
    try:
        outcome, text = chat.send(planned)
    finally:
        chat.close()
    assert outcome.sent_s == 0.0 < outcome.ended_s
    return outcome.error, outcome.status, text


@pytest.mark.parametrize("stream", [True, False])
def test_what_a_server_does_wrong_is_the_error_of_the_request(server: str, stream: bool) -> None:
    assert _asked(server, stream=stream) == (None, 200, "word0 word1 word2 word3 ")
    assert _asked(server, stream=stream, status=503) == ("503", 503, "")
    assert _asked(server, stream=stream, cut=3)[:2] == ("broken_off", 200)
    assert _asked(server, stream=stream, hang=True, timeout_s=0.3)[0] == "timeout"
    assert _asked(server, stream=stream, raw="this is no HTTP")[0] == "broken_off"
    assert _asked(server, stream=stream, raw="HTTP/1.1 502 Bad\r\ncontent-length: 3\r\n\r\noh!") == (
        "http_502",
        502,
        "",
    )
    assert _asked(f"http://127.0.0.1:{free_port()}", stream=stream)[:2] == ("not_connected", None)


def test_a_time_to_the_first_token_is_that_of_the_first_token_and_not_of_the_head(server: str) -> None:
    chat = Chat(Target(urls=(f"{server}/v1",), key=KEY))
    message = Message(role="user", content="What is an economizer?")
    outcome, _ = chat.send(
        Planned(number=0, due_s=0.0, kind="Streaming", model="tiny", messages=(message,), output_tokens=20)
    )
    chat.close()
    assert outcome.ttft_s is not None
    assert outcome.tpot_s is not None
    assert TTFT_S + TPOT_S <= outcome.ttft_s < TTFT_S + 10 * TPOT_S
    assert outcome.tpot_s == pytest.approx(TPOT_S, rel=0.5)
    assert (outcome.output_tokens, outcome.variant, outcome.energy_j) == (20, "int8", 2.5)

"""A tiny model on real vLLM, measured; the job's process runs in the compression environment."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
JOB = Path(__file__).with_name("tiny_engine.py")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that has measured and whose engine still runs, and what it said."""

    process: subprocess.Popen[str]
    refused: dict[str, Any]
    measured: dict[str, Any]
    output: str


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Two engines are started for it, one of which does not become ready."""
    folder = tmp_path_factory.mktemp("speed")
    words = [
        *(ROOT / ".venvs/compression/bin/python", JOB, folder),
        *(ROOT / ".economizer/models/smollm2-135m-instruct", ROOT / ".venvs/engine/bin/python"),
    ]
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert all(lines), (folder / "errors").read_text()
        refused, measured = map(json.loads, lines)
        yield Job(process=process, refused=refused, measured=measured, output=(folder / "errors").read_text())
    finally:
        process.kill()
        process.communicate()


def test_a_format_that_the_engine_does_not_know_is_told_in_its_own_words(job: Job) -> None:
    first_line = job.refused["refused"].splitlines()[0]
    assert "the engine does not serve" in first_line
    assert "runes" in first_line


def test_nothing_is_left_of_an_engine_that_did_not_become_ready(job: Job) -> None:
    assert job.refused["left"] == []


def test_all_speeds_are_measured_and_make_sense(job: Job) -> None:
    found = job.measured["measured"]
    assert found["engine"].startswith("vllm 0.")
    assert found["engine_args"] == ["--max-model-len=1024", "--max-num-seqs=4", "--enforce-eager"]
    assert found["rounds"] == 2
    assert list(found["decode_tokens_per_s"]) == list(found["tpot_s"]) == ["1", "4"]
    assert found["prefill_tokens_per_s"]["low"] > 100
    assert 0 < found["ttft_s"]["low"] <= found["ttft_s"]["high"] < 5
    assert found["cold_start_s"] > 1
    assert found["memory_bytes"] > 2**28
    for batch in (1, 4):
        rate, tpot_s = (found[name][str(batch)]["value"] for name in ("decode_tokens_per_s", "tpot_s"))
        assert 0.5 < rate * tpot_s / batch < 2  # what one request waits for a token, and what the batch makes


def test_joules_are_what_busy_cores_add_to_idle_ones(job: Job) -> None:
    found = job.measured["measured"]
    assert found["energy_method"].startswith("active energy, by CPU time at 4 W a core, 1 W idle on ")
    rates = [found["prefill_tokens_per_s"], *found["decode_tokens_per_s"].values()]
    energies = [found["prefill_j_per_token"], *found["decode_j_per_token"].values()]
    for rate, energy in zip(rates, energies, strict=True):
        cores = rate["value"] * energy["value"] / (4 - 1)
        assert 0.1 < cores < (os.cpu_count() or 1) + 0.5


def test_the_ratios_of_an_engine_to_itself_are_near_one(job: Job) -> None:
    ratios = job.measured["measured"]["against_full"]
    speeds, energies = {"ttft", "prefill", "decode@1", "decode@4"}, {"prefill_j", "decode_j@1", "decode_j@4"}
    assert ratios.keys() == speeds | energies
    assert all(1 / 3 < ratio["value"] < 3 for ratio in ratios.values())


def test_the_engine_says_of_each_token_what_transformers_says(job: Job) -> None:
    found = job.measured["measured"]
    assert 0 < found["logprob_difference_mean"] <= found["logprob_difference_max"] < 0.05


def test_progress_is_told(job: Job) -> None:
    told = job.measured["told"]
    assert any("engine ready in" in line for line in told)
    assert told[-1].startswith("round 2 of 2: tiny ")


def test_the_engine_ends_with_its_job_even_when_that_is_killed(job: Job) -> None:
    tree = job.measured["tree"]
    assert job.measured["engine_pid"] in tree
    assert all(map(is_running, tree))
    job.process.kill()
    deadline_s = time.monotonic() + 15
    while any(map(is_running, tree)) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert not any(map(is_running, tree))

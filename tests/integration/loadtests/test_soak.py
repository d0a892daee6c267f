"""A soak on fast engines, ended by hand: what it measured until then is judged, and nothing of it is left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from economizer.engine.guard import descendants
from fleet import exists, until
from load import results

SOAK = Path(__file__).parents[3] / "loadtests" / "soak.py"
OPTIONS = ("--engine", "fast", "--minutes", "10", "--rate", "20", "--kill-s", "2", "--sample-s", "0.5")
MORE = ("--cancels", "0.2", "--leave-s", "0.3", "--progress-s", "0.5", "--warm-up-s", "2")


@dataclass(frozen=True)
class Ended:
    """What a soak left: its exit code, what it printed, its folder, and the processes that it had."""

    code: int
    output: str
    progress: str
    folder: Path
    processes: list[int]

    @property
    def judged(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.output.splitlines()[-1])
        return found


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Ctrl-C once 100 requests were answered and two engines killed."""
    folder = tmp_path_factory.mktemp("soak") / "results"
    command = [sys.executable, str(SOAK), *OPTIONS, *MORE, "--out", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as soak:
        assert soak.stdout is not None
        assert soak.stderr is not None
        printed: list[str] = []
        output: list[str] = []
        readers = [
            threading.Thread(target=kept.extend, args=(stream,))
            for kept, stream in ((printed, soak.stderr), (output, soak.stdout))
        ]
        for reader in readers:
            reader.start()
        try:
            until(lambda: _enough(printed) or soak.poll() is not None, 180, lambda: "".join(printed))
            processes = list(descendants(soak.pid))
            soak.send_signal(signal.SIGINT)
            soak.wait(180)
        finally:
            soak.terminate()
        for reader in readers:
            reader.join()
    return Ended(soak.returncode, "".join(output), "".join(printed), folder, processes)


def _enough(printed: list[str]) -> bool:
    """The last line of progress has three digits of answers and a second kill."""
    last = next((line for line in reversed(printed) if " answered, " in line), "")
    words = last.replace(",", "").replace(";", "").split()
    if not words:
        return False
    return int(words[words.index("answered") - 1]) >= 100 and int(words[words.index("engines") - 1]) >= 2


def test_a_soak_that_is_ended_by_hand_accounts_for_every_request_and_its_bill_closes(soaked: Ended) -> None:
    judged = soaked.judged
    assert judged["problems"] == []
    assert soaked.code == 0, soaked.output
    assert judged["interrupted"] is True
    assert judged["fates"].get("lost", 0) == 0
    assert {"answered", "refused", "cancelled"} <= judged["fates"].keys()
    assert sum(judged["fates"].values()) == judged["sent"] > 100
    for of in judged["tenants"].values():
        assert of["booked"] >= of["asked"] == of["billed"] > 0
        assert of["booked_uj"] == of["billed_uj"] > 0


def test_refusals_have_reasons_and_engines_that_are_killed_come_back(soaked: Ended) -> None:
    judged = soaked.judged
    assert "422 terms_unmet" in judged["reasons"]
    assert judged["kills"] >= 2
    assert judged["recovered_s"][0] is not None


def test_memory_descriptors_threads_processes_and_queues_of_every_part_are_measured(soaked: Ended) -> None:
    growth = soaked.judged["growth"]
    for group in ("gateway", "bookkeeper", "controller", "haproxy", "replicas"):
        for quantity in ("rss_mb", "fds", "threads", "processes"):
            assert growth[f"{group} {quantity}"]["most"] > 0
    assert growth["gateway processes"]["most"] == growth["bookkeeper processes"]["most"] == 1
    queues = {name.removeprefix("queues ") for name in growth if name.startswith("queues ")}
    assert queues == {"in_gateway", "in_engines", "in_haproxy", "haproxy_connections", "unbooked", "spooled"}
    assert growth["queues in_gateway"]["most"] > 0


def test_what_was_measured_is_in_its_folder_and_no_process_is_left(soaked: Ended) -> None:
    found = results.read(soaked.folder)
    assert len(found.outcomes) == soaked.judged["sent"]
    samples = (soaked.folder / "samples.jsonl").read_text().splitlines()
    assert len(samples) >= 3
    assert json.loads((soaked.folder / "summary.json").read_text()) == soaked.judged
    assert len(soaked.processes) > 10
    assert [pid for pid in soaked.processes if exists(pid)] == []


def test_results_that_are_there_are_not_overwritten(soaked: Ended) -> None:
    command = [sys.executable, str(SOAK), *OPTIONS, "--out", str(soaked.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"{soaked.folder} is there already" in done.stderr

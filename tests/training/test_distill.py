"""``economizer-train distill`` as a user runs it, on Ray Train."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from economizer_compression import overlap
from economizer_compression.manifests import damaged_files, read_manifest
from economizer_compression.tether import descendants
from economizer_training import checkpoints
from economizer_training.fit_ray import reason
from economizer_training.record import lines, scores

SUITE = """
calibration:
  - {text: "builtin:documents"}
evaluation:
  - {slice: documents, text: "builtin:documents", tokens: 64, window: 16}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    tiny.make_model(folder / "teacher", blocks=4)
    tiny.make_data(folder / "data", folder / "teacher")
    overlap.save(
        overlap.ngrams(["one two three four five six seven eight nine ten eleven twelve thirteen"]),
        folder / "data" / overlap.FILE_NAME,
    )
    (folder / "suite.yaml").write_text(SUITE)
    return folder


def written(folder: Path, name: str, **changed: Any) -> Path:
    content = {
        "teacher": str(folder / "teacher"),
        "student": {
            "steps": [{"depth_prune": {"keep": 0.5}}],
            "calibration": {"samples": 2, "tokens": 16},
            "suite": str(folder / "suite.yaml"),
        },
        "family": "tiny",
        "variant": "distilled",
        "data": str(folder / "data"),
        "out": str(folder / name),
        "steps": 12,
        "micro_batch": 1,
        "learning_rate": 0.01,
        "warmup_steps": 2,
        "heldout_rows": 5,
        "checkpoints": {"every_steps": 4},
        "meter": {"kind": "cpu", "watts_per_core": 10.0, "watts_per_core_idle": 2.0},
        **changed,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "economizer_training.cli", "distill", str(config)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True
    )


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


def test_a_cut_student_is_distilled_by_two_workers_and_handed_over_with_what_it_cost(folder: Path) -> None:
    said = ended(start(written(folder, "first", mesh={"data": 2})))
    out, run = folder / "first", folder / "first.run"
    manifest = read_manifest(out)
    assert damaged_files(out, manifest) == []
    assert manifest.making is not None
    assert [step.name for step in manifest.making.steps] == ["depth_prune", "distil"]
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 2
    told = manifest.making.steps[-1].parameters
    before, after = told["heldout_kl"]
    assert after < before
    assert told["energy_method"] == "cpu-time-model"
    last = [line for line in lines(run) if line["kind"] == "heldout"][-1]
    cores = len(os.sched_getaffinity(0))  # which the workers share
    assert last["active_j"] == pytest.approx(last["cpu_s"] * 8.0, rel=0.05)
    assert last["energy_j"] - last["active_j"] == pytest.approx(cores * last["seconds"] * 2.0, rel=0.05)
    assert told["energy_j"] == last["energy_j"]
    assert told["energy_j_per_1000_tokens"] == pytest.approx(1000 * told["energy_j"] / (12 * 4 * tiny.LENGTH), rel=1e-3)
    assert (run / "heldout.png").read_bytes().startswith(b"\x89PNG")
    assert len(overlap.load(out / overlap.FILE_NAME)) >= 1
    assert "step 12 of 12: loss " in said
    assert " J, about 0.0 min left" in said
    again = ended(start(folder / "first.yaml"), code=1)
    assert again.splitlines()[-1] == f"economizer-train: {out} exists already; remove it first to distil anew"


def test_a_worker_that_is_killed_is_started_again_from_the_checkpoint(folder: Path) -> None:
    process = start(
        written(folder, "second", mesh={"data": 2}, steps=200, student={"config": {"num_hidden_layers": 2}})
    )
    run = folder / "second.run"
    await_(lambda: checkpoints.last(run / "checkpoints") is not None, process)
    worker = next(pid for pid in descendants(process.pid) if b"RayTrainWorker" in command_of(pid))
    os.kill(worker, signal.SIGKILL)
    said = ended(process)
    assert "going on after step " in said
    steps = [line["step"] for line in lines(run) if line["kind"] == "step"]
    assert set(steps) == set(range(1, 201))
    assert len(steps) - 200 <= 4
    assert scores(run)[-1]["step"] == 200


def test_of_all_that_ray_tells_of_failed_workers_the_reason_is_told() -> None:
    told = """Training failed due to worker errors:
    [Rank 0 Error Snippet]:
      raise TrainingError(message) from None
    economizer_training.errors.TrainingError: the checkpoint X cannot be written: no room
    [Rank 1 Error Snippet]:
    RuntimeError: Connection closed by peer
    """
    assert reason(told) == "the checkpoint X cannot be written: no room"
    assert reason("Training failed:\n  the actor died\n") == "the actor died"


def await_(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + 240
    while not what():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""

"""`economizer-compress run` when it is killed, when the disk is full, and when it should not begin."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
ENVIRONMENT = ROOT / ".venvs" / "compression" / "bin"
RECIPE = """
steps:
  - gptq: {scheme: W8A8, observer: [minmax, mse]}
calibration: {samples: 4, tokens: 64}
"""
SUITE = """
calibration: [{text: "builtin:documents"}]
evaluation: [{slice: documents, text: "builtin:documents"}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def refusals(folder: Path) -> dict[str, Any]:
    """What each thing that is wrong was answered with; leaves a tiny model in the folder."""
    done = subprocess.run(
        [ENVIRONMENT / "python", HERE / "tiny_refusals.py", folder, ROOT / ".economizer/models/smollm2-135m-instruct"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("group", "group_size 96 does not divide the 256 input channels of model.layers.0.mlp.down_proj"),
        ("group", "128 or 64 or 32 or 16 would"),
        ("width", "recipe mine is for models of hidden size 576, not 128"),
        ("nan", "model.safetensors has NaN or infinity in model.layers.1.mlp.up_proj.weight: the model is broken"),
        ("architecture", "GPT2ForCausalLM cannot be pruned by structure: only LlamaForCausalLM"),
        ("tokenizer", "has no tokenizer: one of tokenizer.json"),
        ("folder", "is no model folder: it has no config.json"),
        ("text", "gives 0 samples of 512 tokens and 64 are wanted"),
        ("file", "absent.txt: --data DIR must name the folder"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(refusals: dict[str, Any], what: str, message: str) -> None:
    assert message in refusals[what]


def test_a_refusal_leaves_nothing_that_looks_like_a_variant(refusals: dict[str, Any]) -> None:
    assert refusals["left"] == []
    assert refusals["code"] == 1


def start(folder: Path, out: Path, *, file_bytes_max: int | None = None) -> subprocess.Popen[str]:
    """The sweep of a recipe on the tiny model."""
    recipe, suite = folder / "swept.yaml", folder / "suite.yaml"
    recipe.write_text(RECIPE)
    suite.write_text(SUITE)

    def limit() -> None:
        if file_bytes_max is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))

    words = ["run", recipe, "--model", folder / "tiny", "--out", out, "--family", "tiny", "--suite", suite]
    return subprocess.Popen(
        [ENVIRONMENT / "economizer-compress", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    )


@pytest.mark.usefixtures("refusals")
def test_a_killed_run_takes_up_the_candidate_that_it_had_finished(folder: Path) -> None:
    out = folder / "resumed"
    first = start(folder, out)
    try:
        made = out.with_name("resumed.work") / "candidate-0" / "made.json"
        until_s = time.monotonic() + 120
        while not made.exists():
            assert first.poll() is None, "it ended by itself"
            assert time.monotonic() < until_s
            time.sleep(0.05)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert not out.exists()
    _, said = start(folder, out).communicate()
    assert "gptq.observer = minmax" not in said
    assert "gptq.observer = mse" in said
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["making"]["candidates"]) == 2
    assert not made.exists()


@pytest.mark.usefixtures("refusals")
def test_a_full_disk_is_told_and_what_was_half_written_is_gone(folder: Path) -> None:
    out = folder / "full-disk"
    process = start(folder, out, file_bytes_max=1_000_000)
    _, said = process.communicate()
    assert process.returncode == 1
    assert "is full; what was half written is removed" in said
    assert list(folder.glob("full-disk*")) == []

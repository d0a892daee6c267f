"""How an engine is started, what is read from its last words, and that nothing of it outlives its owner."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from economizer_compression import processes
from economizer_compression.errors import CompressionError
from economizer_compression.serving import Engine, EngineSettings, engine_env, engine_reason
from economizer_compression.tether import descendants, tethered

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
# A command that leaves a child behind in another session, as a daemon would.
COMMAND = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until_gone(*pids: int) -> None:
    deadline_s = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not any(map(is_running, pids))


def test_the_end_of_the_pipe_ends_children_that_went_to_another_session_and_ignore_sigterm() -> None:
    words = tethered([sys.executable, "-c", COMMAND], grace_s=0.2)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as tether:
        assert tether.stdin is not None
        assert tether.stdout is not None
        child = int(tether.stdout.readline())
        assert child in descendants(tether.pid)
        tether.stdin.close()
        assert tether.wait(10) == 128 + signal.SIGTERM
        wait_until_gone(child)


def test_an_owner_killed_with_sigkill_takes_the_tree_along() -> None:
    words = tethered([sys.executable, "-c", COMMAND], grace_s=0.2)
    owner = (
        "import subprocess, sys, time\n"
        f"tether = subprocess.Popen({words!r}, stdin=subprocess.PIPE, start_new_session=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        tree = descendants(process.pid)
        assert child in tree
        process.kill()
        wait_until_gone(*tree)


def test_a_command_that_ends_gives_its_code_and_one_that_is_not_there_127() -> None:
    def run(*words: str) -> int:
        return subprocess.run(tethered(words, grace_s=1), input=b"", stderr=subprocess.DEVNULL, check=False).returncode

    assert run("/no/such/file") == 127
    with subprocess.Popen(
        tethered([sys.executable, "-c", "raise SystemExit(3)"], grace_s=1), stdin=subprocess.PIPE
    ) as tether:
        assert tether.wait(10) == 3


def test_the_memory_of_a_child_counts() -> None:
    hold = "held = bytearray(b'x') * 2**26; print('up', flush=True); input()"
    before = processes.memory_bytes(os.getpid())
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert processes.memory_bytes(os.getpid()) - before > 2**25


def test_what_this_environment_sets_for_itself_does_not_reach_an_engine() -> None:
    inherited = {"PATH": "/bin", "OMP_NUM_THREADS": "2", "PYTHONPATH": "/here", "RAY_ADDRESS": "x", "HOME": "/root"}
    env = engine_env({"OMP_NUM_THREADS": "1"}, inherited)
    assert env == {
        **{"PATH": "/bin", "HOME": "/root", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"},
        **{"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"},
    }


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            [
                "(APIServer pid=7) INFO 11-24 01:00:00 [api_server.py:1] vLLM API server",
                "(APIServer pid=7) Traceback (most recent call last):",
                '(APIServer pid=7)   File "x.py", line 1, in f',
                "(APIServer pid=7) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
                "(APIServer pid=7)   Value error, Unknown quantization method: x. [type=value_error]",
                "(APIServer pid=7)     For further information visit https://errors.pydantic.dev",
            ],
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig "
            "Value error, Unknown quantization method: x. [type=value_error]",
        ),
        (
            [
                "(EngineCore pid=8) ERROR 11-24 01:00:00 [core.py:9] ValueError: No kernel for this layer",
                "(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above.",
            ],
            "ValueError: No kernel for this layer",
        ),
        (
            [
                "(EngineCore pid=8) ValueError: Failed to find a kernel for the WNA16 linear layer. Reasons:",
                "(EngineCore pid=8)   Dynamic4bit cannot implement due to: Unsupported quant type uint8b128",
                "(EngineCore pid=8)   CPUWNA16 cannot implement due to: weight type",
            ],
            "ValueError: Failed to find a kernel for the WNA16 linear layer. Reasons: "
            "Dynamic4bit cannot implement due to: Unsupported quant type uint8b128",
        ),
        (["usage: api_server.py", "api_server.py: error: no such --x"], "api_server.py: error: no such --x"),
        (["INFO 11-24 01:00:00 [api_server.py:1] all is well"], None),
        ([], None),
    ],
)
def test_the_reason_of_an_engine_that_gives_up(lines: list[str], reason: str | None) -> None:
    assert engine_reason(lines) == reason


def test_an_engine_that_cannot_be_started_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    before = descendants(os.getpid())
    with (
        pytest.raises(CompressionError, match=r"does not serve .*: it ended with code 127 before it was ready"),
        Engine(tmp_path, EngineSettings(python=tmp_path / "python")),
    ):
        pass
    with (
        pytest.raises(CompressionError, match="is no folder"),
        Engine(tmp_path / "no", EngineSettings(python=tmp_path)),
    ):
        pass
    assert set(descendants(os.getpid())) <= set(before)


def test_an_engine_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\necho loading\nsleep 60\n")
    slow.chmod(0o755)
    told: list[str] = []
    log = tmp_path / "engine.log"
    before = descendants(os.getpid())
    with (
        pytest.raises(CompressionError, match=r"it was not ready in 0.3 s\nIts last lines \(.*engine.log\):\nloading"),
        Engine(tmp_path, EngineSettings(python=slow, start_timeout_s=0.3), log=log, progress=told.append),
    ):
        pass
    assert log.read_text() == "loading\n"
    assert set(descendants(os.getpid())) <= set(before)

"""Real processes: the fake engine under the real guard."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from economizer.engine.guard import descendants, guarded
from economizer.engine.process import EngineProcess
from economizer.engine.types import EngineSpec
from economizer.errors import CheckpointDamaged, EngineFailed

FAKE_ENGINE = str(Path(__file__).parents[2] / "fake_engine.py")
CHAT = "/v1/chat/completions"


def fake(*args: str, **fields: Any) -> EngineSpec:
    words = (sys.executable, FAKE_ENGINE, "--host", "{host}", "--port", "{port}", "--name", "{name}", *args)
    return EngineSpec(command=words, **{"start_timeout_s": 30.0, "restart_backoff_s": 0.1, **fields})


@asynccontextmanager
async def running(spec: EngineSpec) -> AsyncIterator[EngineProcess]:
    engine = EngineProcess(spec, name="m@full", host="127.0.0.1")
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - other processes set no events
            await asyncio.sleep(0.05)


async def post(engine: EngineProcess, path: str, body: object, **headers: str) -> int:
    assert engine.endpoint is not None
    async with (
        aiohttp.ClientSession() as client,
        client.post(engine.endpoint.url + path, json=body, headers=headers or engine.endpoint.headers) as answer,
    ):
        await answer.read()
        return answer.status


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if pid in set(descendants(1))]


async def gone(pids: list[int], timeout_s: float = 8.0) -> None:
    """Wait until none of the processes is left."""
    await until(lambda: not alive(pids), timeout_s)


async def test_a_started_engine_is_ready_and_takes_only_requests_with_its_secret() -> None:
    async with running(fake()) as engine:
        assert engine.endpoint is not None
        assert engine.endpoint.url.startswith("http://127.0.0.1:")
        body = {"messages": [{"role": "user", "content": "hello"}]}
        assert await post(engine, CHAT, body) == 200
        assert await post(engine, CHAT, body, authorization="Bearer guess") == 401
        assert (await engine.load()).idle
    assert engine.endpoint is None


def checkpoint(folder: Path) -> Path:
    """A model's folder with a manifest; returns its weights."""
    weights = folder / "model.safetensors"
    weights.write_bytes(b"weights")
    digest = {"sha256": hashlib.sha256(b"weights").hexdigest(), "size_bytes": 7}
    (folder / "manifest.json").write_text(json.dumps({"files": {weights.name: digest}}))
    return weights


async def test_an_engine_is_not_started_on_a_damaged_checkpoint(tmp_path: Path) -> None:
    checkpoint(tmp_path).write_bytes(b"weightx")
    engine = EngineProcess(fake(model=str(tmp_path)), name="m@full", host="127.0.0.1")
    with pytest.raises(CheckpointDamaged, match=r"m@full .* is damaged: model\.safetensors has another content"):
        await engine.start()
    assert (engine.state, engine.pid, engine.lines) == ("failed", None, ())


async def test_a_checkpoint_that_is_damaged_later_lets_the_engine_fail_at_its_next_start(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path)
    async with running(fake(model=str(tmp_path), restarts_max=1)) as engine:
        weights.unlink()
        with pytest.raises(aiohttp.ClientError):
            await post(engine, CHAT, {"fake": {"die": "before"}})
        await until(lambda: engine.state == "failed", 20)
        with pytest.raises(CheckpointDamaged, match=r"model\.safetensors is missing"):
            engine.check()


async def test_an_engine_that_ends_at_its_start_is_reported_with_its_last_lines() -> None:
    with pytest.raises(EngineFailed, match=r"(?s)exited with code 3 before it was ready.*\| out of memory, says"):
        async with running(fake("--crash-at-start")):
            pass


async def test_an_engine_that_is_not_ready_by_the_deadline_is_reported_and_ended() -> None:
    before = set(descendants(os.getpid()))
    with pytest.raises(EngineFailed, match=r"(?s)not ready within 0.5 s.*\| fake engine m@full starts"):
        async with running(fake("--start-delay-s", "60", start_timeout_s=0.5)):
            pass
    assert set(descendants(os.getpid())) == before


async def test_a_command_that_does_not_exist_is_reported_by_its_name() -> None:
    with pytest.raises(EngineFailed, match=r"(?s)code 127.*no-such-server: No such file"):
        async with running(EngineSpec(command=("no-such-server",))):
            pass


async def test_a_crashed_engine_comes_back_at_another_place_with_another_secret() -> None:
    async with running(fake()) as engine:
        first = engine.endpoint
        assert first is not None
        with pytest.raises(aiohttp.ClientError):
            await post(engine, CHAT, {"fake": {"die": "before"}})
        await until(lambda: engine.state == "restarting")
        assert engine.endpoint is None
        await until(lambda: engine.state == "ready")
        assert engine.endpoint is not None
        assert engine.endpoint.secret != first.secret
        assert await post(engine, CHAT, {}) == 200


async def test_an_engine_that_died_is_not_offered_while_what_it_left_behind_is_cleared_away() -> None:
    async with running(fake("--child")) as engine:
        assert engine.pid is not None
        guard, tree = engine.pid, list(descendants(engine.pid))
        with pytest.raises(aiohttp.ClientError):
            await post(engine, CHAT, {"fake": {"die": "before"}})
        await until(lambda: engine.endpoint is None, timeout_s=3)
        assert guard in alive([guard])
        await until(lambda: engine.state == "ready", timeout_s=20)
        assert alive(tree) == []


async def test_after_too_many_crashes_in_a_row_the_engine_has_failed_and_says_why(tmp_path: Path) -> None:
    once = tmp_path / "started"
    script = f'[ -e {once} ] && {{ echo no luck; exit 4; }}; touch {once}; exec "$0" "$@"'
    spec = fake(restarts_max=2)
    spec = replace(spec, command=("sh", "-c", script, *spec.command))
    async with running(spec) as engine:
        engine.check()
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGTERM)
        await until(lambda: engine.state == "failed")
        with pytest.raises(EngineFailed, match=r"(?s)exited with code 4.*\| no luck"):
            engine.check()


@pytest.mark.parametrize("status", [0, 503], ids=["hangs", "503"])
async def test_an_engine_whose_health_stays_bad_is_ended_and_started_again(status: int) -> None:
    async with running(fake(health_timeout_s=1.0)) as engine:
        first = engine.endpoint
        assert await post(engine, f"/fake/health/{status}", None) == 200
        await until(lambda: engine.state == "ready" and engine.endpoint != first, timeout_s=20)


async def test_a_drained_engine_finishes_what_it_runs_before_it_stops() -> None:
    async with running(fake("--tokens", "4", drain_timeout_s=20)) as engine:
        request = asyncio.create_task(post(engine, CHAT, {"fake": {"ttft_s": 3.0}}))
        await asyncio.sleep(0.2)
        drain = asyncio.create_task(engine.drain())
        await asyncio.sleep(0.2)
        assert engine.state == "draining"
        assert engine.endpoint is not None
        await drain
        assert request.done()
        assert request.result() == 200


async def test_a_drain_ends_at_its_deadline() -> None:
    async with running(fake(drain_timeout_s=0.5)) as engine:
        request = asyncio.create_task(post(engine, CHAT, {"fake": {"hang": True}}))
        await asyncio.sleep(0.2)
        async with asyncio.timeout(2):
            await engine.drain()
        await engine.stop()
        with pytest.raises(aiohttp.ClientError):
            await request


async def test_stopping_an_engine_that_is_still_starting_ends_it() -> None:
    engine = EngineProcess(fake("--start-delay-s", "60"), name="m@full", host="127.0.0.1")
    start = asyncio.create_task(engine.start())
    await until(lambda: bool(engine.lines))
    assert engine.pid is not None
    tree = [engine.pid, *descendants(engine.pid)]
    await engine.stop()
    with pytest.raises(EngineFailed):
        await start
    assert engine.state == "stopped"
    assert alive(tree) == []


OWNER = """
import asyncio, subprocess, sys
from test_process import EngineProcess, fake

async def main():
    engine = EngineProcess(fake("--child"), name="m@full", host="127.0.0.1")
    await engine.start()
    if sys.argv[1] == "with-heir":
        subprocess.Popen(["sleep", "60"], close_fds=False)
    print(engine.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def start_owner(heir: str = "") -> tuple[subprocess.Popen[str], int]:
    """A process that owns an engine whose grandchild left its session and ignores SIGTERM; and the guard's id."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, heir], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert owner.stdout is not None
    return owner, int(owner.stdout.readline())


@pytest.mark.parametrize("heir", ["", "with-heir"])
async def test_an_engine_and_its_grandchildren_are_gone_after_their_owner_was_killed(heir: str) -> None:
    owner, guard = start_owner(heir)
    heirs = [pid for pid in descendants(owner.pid) if pid != guard and pid not in set(descendants(guard))]
    tree = [guard, *descendants(guard)]
    assert len(tree) == 5  # two guards, the engine, its grandchild and that one's sleep
    owner.kill()
    owner.wait()
    try:
        await gone(tree)
        assert alive(heirs) == heirs  # a process that the owner started meanwhile did not hold the pipe open
    finally:
        for pid in heirs:
            os.kill(pid, signal.SIGKILL)


def start_guarded(command: list[str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(guarded(command, grace_s=0.5), stdin=pipe, stdout=pipe, stderr=pipe)


@pytest.mark.parametrize("which", ["outer guard", "inner guard", "command"])
async def test_whichever_process_of_the_tree_is_killed_the_rest_of_it_goes_too(which: str) -> None:
    command = ["sh", "-c", "(setsid sleep 1000 &); echo $$; sleep 1000; true"]
    with start_guarded(command) as outer:
        assert outer.stdout is not None
        started = int(outer.stdout.readline())
        await until(lambda: len(list(descendants(outer.pid))) == 4)
        inner, *_ = descendants(outer.pid)
        tree = [outer.pid, *descendants(outer.pid)]
        os.kill({"outer guard": outer.pid, "inner guard": inner, "command": started}[which], signal.SIGKILL)
        assert outer.wait(timeout=8) == (-9 if which == "outer guard" else 137)
        await gone(tree)


def test_a_guard_passes_on_output_and_the_exit_code_untouched() -> None:
    with start_guarded(["sh", "-c", "printf out; printf err >&2; exit 7"]) as done:
        assert done.wait(timeout=8) == 7
        assert done.stdout is not None
        assert done.stderr is not None
        assert (done.stdout.read(), done.stderr.read()) == (b"out", b"err")

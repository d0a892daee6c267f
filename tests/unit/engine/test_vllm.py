import asyncio
import importlib.util
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from economizer.engine import vllm
from economizer.engine.types import EngineSpec
from economizer.engine.vllm import Launch, launch

SECRET = "s3cret"


def start(spec: EngineSpec, inherited: Mapping[str, str] | None = None) -> Launch:
    return launch(spec, name="m@full", host="127.0.0.1", port=8123, secret=SECRET, inherited=inherited or {})


def test_vllm_serves_the_model_under_the_variants_name_with_the_specs_arguments_last() -> None:
    spec = EngineSpec(model="org/model", python="engine/bin/python", args=("--enforce-eager",))
    assert start(spec).command == (
        *("engine/bin/python", "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", "org/model", "--served-model-name", "m@full", "--host", "127.0.0.1", "--port", "8123"),
        *("--middleware", "economizer_gate.Gate", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"),
        "--enforce-eager",
    )


@pytest.mark.parametrize(
    "spec",
    [EngineSpec(model="org/model"), EngineSpec(command=("server", "{host}", "{port}", "{model}", "{name}"))],
    ids=["vllm", "command"],
)
def test_the_secret_is_in_the_environment_and_never_among_the_words(spec: EngineSpec) -> None:
    started = start(spec)
    assert SECRET in started.env.values()
    assert not any(SECRET in word for word in started.command)


def test_a_command_gets_its_place_and_name_filled_in_and_other_braces_left_alone() -> None:
    spec = EngineSpec(model="weights", command=("run", "--at={host}:{port}", "{model}", "{name}", '{"a": {"b": 1}}'))
    started = start(spec)
    assert started.command == ("run", "--at=127.0.0.1:8123", "weights", "m@full", '{"a": {"b": 1}}')
    assert started.env["ECONOMIZER_ENGINE_SECRET"] == SECRET


def test_a_ray_workers_own_settings_do_not_reach_the_engine_but_its_gpus_do() -> None:
    inherited = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "PYTHONPATH": "worker",
        "RAY_ADDRESS": "x",
        "__RAY_X": "y",
        "OMP_NUM_THREADS": "1",
        "ECONOMIZER_HOME": "home",
        "VLLM_PORT": "tcp://10.0.0.1:80",
    }
    env = start(EngineSpec(command=("run",)), inherited).env
    assert env == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        "ECONOMIZER_ENGINE_SECRET": SECRET,
    }


def test_the_specs_environment_wins_over_what_was_dropped_and_over_the_defaults_but_not_over_the_secret() -> None:
    own = {"OMP_NUM_THREADS": "8", "DO_NOT_TRACK": "0", "VLLM_API_KEY": "open", "PYTHONPATH": "own"}
    env = start(EngineSpec(model="org/model", env=own), {"OMP_NUM_THREADS": "1"}).env
    assert (env["OMP_NUM_THREADS"], env["DO_NOT_TRACK"], env["VLLM_API_KEY"]) == ("8", "0", SECRET)
    assert env["PYTHONPATH"].split(":")[1:] == ["own"]


def test_a_local_model_is_served_without_asking_any_hub(tmp_path: Path) -> None:
    assert start(EngineSpec(model=str(tmp_path))).env["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in start(EngineSpec(model="org/model")).env


Messages = list[MutableMapping[str, Any]]


async def through_gate(path: str, *, method: str = "GET", headers: tuple[tuple[bytes, bytes], ...] = ()) -> int:
    """The status that the gate, as vLLM imports it, lets a request end with; the app behind it says 200."""
    place = Path(vllm.__file__).parent / "gate" / "economizer_gate.py"
    module_spec = importlib.util.spec_from_file_location("economizer_gate", place)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    sent: Messages = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request"}

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    await module.Gate(app)(scope, receive, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/metrics", 200),
        ("POST", "/v1/chat/completions", 401),
        ("POST", "/invocations", 401),
        ("POST", "/tokenize", 401),
        ("POST", "/health", 401),
        ("OPTIONS", "/v1/chat/completions", 401),
    ],
)
def test_the_gate_refuses_what_comes_without_the_secret(
    method: str, path: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", SECRET)
    assert asyncio.run(through_gate(path, method=method)) == status


def test_the_gate_takes_the_secret_and_no_other_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", SECRET)
    right, wrong = (b"authorization", b"Bearer s3cret"), (b"authorization", b"Bearer s3cre")
    assert asyncio.run(through_gate("/invocations", method="POST", headers=(right,))) == 200
    assert asyncio.run(through_gate("/invocations", method="POST", headers=(wrong,))) == 401
    assert asyncio.run(through_gate("/invocations", method="POST", headers=(right, right))) == 401


def test_the_gates_folder_holds_nothing_that_could_hide_a_module_of_the_engine() -> None:
    folder = Path(start(EngineSpec(model="org/model")).env["PYTHONPATH"])
    assert [path.name for path in folder.glob("*.py")] == ["economizer_gate.py"]

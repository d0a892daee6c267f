"""The README's way: a variant made, measured and published, ``make run`` over it, real vLLM, the official client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from compress import ROOT, compress
from fleet import Fleet, free_port
from openai import DefaultHttpxClient, OpenAI

BASE = ROOT / ".economizer" / "models" / "smollm2-135m-instruct"
SUITE = {
    "name": "short",
    "calibration": [],
    "evaluation": [{"slice": "documents", "text": "builtin:documents", "tokens": 1536, "window": 256}],
}
METER = {"kind": "cpu", "watts_per_core": 3.75, "watts_per_core_idle": 0.75}  # whatever CPU the tests run on


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the full model and INT8: compressed, evaluated on the engine that serves, gated, published."""
    folder = tmp_path_factory.mktemp("variants")
    store, suite, engine = folder / "store", folder / "suite.yaml", folder / "engine.yaml"
    suite.write_text(yaml.safe_dump(SUITE))
    settings = yaml.safe_load((ROOT / "compression" / "engines" / "vllm-cpu.yaml").read_text())
    engine.write_text(yaml.safe_dump({**settings, "rounds": 1, "batches": [1, 8], "meter": METER}))
    full, int8 = folder / "bf16", folder / "int8"
    family = ("--family", "smollm2-135m")
    compress("import", BASE, "--out", full, *family, "--variant", "bf16", "--full")
    compress("run", "int8-rtn", "--model", full, "--out", int8, *family, "--variant", "int8", "--suite", suite)
    compress("evaluate", int8, "--reference", full, "--suite", suite, "--engine", engine)
    compress("publish", full, "--store", store)
    assert "is promoted" in compress("gate", int8, "--store", store)
    compress("publish", int8, "--store", store)
    return store


@pytest.fixture(scope="package")
def fleet(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """``make run`` over that store, ready; ended as Ctrl-C ends it, with no process left behind."""
    content = yaml.safe_load((ROOT / "deploy" / "config.yaml").read_text())
    content["http_options"]["port"] = free_port()
    arguments = content["applications"][0]["args"]
    arguments["catalogue"] = str(store / "catalogue.yaml")
    arguments["ledger"] = {"meter": METER}
    file = tmp_path_factory.mktemp("e2e") / "config.yaml"
    running = Fleet(file, content, ["make", "run", f"CONFIG={file}"])
    try:
        running.wait_until_ready()
        yield running
        _, left = running.end()  # the code is make's own, for a recipe that was interrupted
        assert left == []
        assert "every process is gone" in running.output
    finally:
        running.kill()


@pytest.fixture(scope="package")
def answered() -> set[str]:
    """The ids of the client's requests that were answered."""
    return set()


@pytest.fixture(scope="package")
def client(fleet: Fleet, answered: set[str]) -> Iterator[OpenAI]:
    """OpenAI's own client, which does not retry here: a failure is to be seen."""

    def note(response: httpx.Response) -> None:
        if response.is_success and "x-economizer-request-id" in response.headers:
            answered.add(response.headers["x-economizer-request-id"])

    http = DefaultHttpxClient(event_hooks={"response": [note]})
    with OpenAI(base_url=f"{fleet.url}/v1", api_key="sk-e2e", max_retries=0, timeout=120, http_client=http) as made:
        yield made

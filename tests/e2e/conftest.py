"""The README's way: ``make run`` with its own configuration (on a free port), real vLLM, and the official client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fleet import Fleet, free_port
from openai import OpenAI

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """``make run``, ready; ended as Ctrl-C ends it, with no process left behind."""
    content = yaml.safe_load((ROOT / "deploy" / "config.yaml").read_text())
    content["http_options"]["port"] = free_port()
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


@pytest.fixture(scope="session")
def client(fleet: Fleet) -> Iterator[OpenAI]:
    """OpenAI's own client, which does not retry here: a failure is to be seen."""
    with OpenAI(base_url=f"{fleet.url}/v1", api_key="sk-e2e", max_retries=0, timeout=120) as made:
        yield made

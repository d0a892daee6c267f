"""The vLLM servers that a running fleet has started, as their processes and their own metrics show them."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from fleet import Fleet


def engine_process(fleet: Fleet, variant: str) -> int:
    """The process id of a variant's vLLM server."""
    for pid in fleet.processes():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"vllm.entrypoints.openai.api_server" in words[:4] and variant.encode() in words:
            return pid
    raise AssertionError(f"no engine of {variant} runs")


class EnginePage:
    """An engine's own metrics page, which is open on loopback."""

    def __init__(self, fleet: Fleet, variant: str) -> None:
        pid = engine_process(fleet, variant)
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        self._url = f"http://127.0.0.1:{words[words.index('--port') + 1]}/metrics"

    def _value(self, name: str) -> float:
        with urllib.request.urlopen(self._url, timeout=10) as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))

    def running(self) -> float:
        """Requests in its batch."""
        return self._value("vllm:num_requests_running")

    def generated(self) -> float:
        """Tokens that it has produced so far."""
        return self._value("vllm:generation_tokens_total")

"""What an engine is started with, and the states it goes through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from economizer.variants.types import require

EngineState = Literal["starting", "ready", "restarting", "draining", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """One OpenAI-compatible server process: vLLM serving ``model``, or any other ``command``. Times in seconds.

    ``python`` is the interpreter of the environment that vLLM is installed in; ``args`` go to vLLM's command line.
    A ``command`` replaces vLLM: its words may hold ``{host} {port} {model} {name}``, and its environment has the
    secret it must ask for as ``ECONOMIZER_ENGINE_SECRET``. ``host`` is the address to listen on: loopback, or
    ``node`` for the address of the Ray node, which a gateway on another node needs.
    ``start_timeout_s`` bounds a start; ``drain_timeout_s`` is how long running requests may take once the replica is
    told to go; after ``restarts_max`` crashes in a row the replica reports itself unhealthy and Serve replaces it.
    Paths that begin with ``./`` are relative to the checkout or ``ECONOMIZER_HOME``.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    model: str = ""
    python: str = "./.venvs/engine/bin/python"
    args: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    start_timeout_s: float = 600.0
    health_timeout_s: float = 10.0
    drain_timeout_s: float = 120.0
    restart_backoff_s: float = 1.0
    restarts_max: int = 5

    def __post_init__(self) -> None:
        require(bool(self.model or self.command), "model", self.model, "must name a model, unless there is a command")
        for name in ("start_timeout_s", "health_timeout_s", "restart_backoff_s"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")
        require(self.drain_timeout_s >= 0, "drain_timeout_s", self.drain_timeout_s, "must be 0 or more")
        require(self.restarts_max >= 0, "restarts_max", self.restarts_max, "must be 0 or more")

"""What a run has done and cost so far: a line of JSON for each step and each score, appended to ``metrics.jsonl``.

Costs are sums over all workers since the run began, work that was lost when a worker died and done again included.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Seconds on the clock, CPU seconds, and joules: all that the workers' cores or GPUs used, and without idle.

    ``paused_s`` and ``paused_j`` are what of it passed while the workers waited for a cleaner grid. None is unknown,
    and stays so: a sum with an unknown part is unknown.
    """

    seconds: float = 0.0
    cpu_s: float = 0.0
    energy_j: float | None = 0.0
    active_j: float | None = 0.0
    paused_s: float = 0.0
    paused_j: float | None = 0.0

    @property
    def in_pause(self) -> Cost:
        """The same, all of it in a pause."""
        return replace(self, paused_s=self.seconds, paused_j=self.energy_j)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            seconds=self.seconds + other.seconds,
            cpu_s=self.cpu_s + other.cpu_s,
            energy_j=_sum(self.energy_j, other.energy_j),
            active_j=_sum(self.active_j, other.active_j),
            paused_s=self.paused_s + other.paused_s,
            paused_j=_sum(self.paused_j, other.paused_j),
        )


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


class Record:
    """``metrics.jsonl`` of a run, and what the run has cost."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / METRICS
        known = [line for line in lines(folder) if "seconds" in line]
        self.cost = Cost(**{name: known[-1][name] for name in asdict(Cost()) if name in known[-1]}) if known else Cost()

    def add(self, cost: Cost) -> None:
        """Books what all workers used since the last time."""
        self.cost = self.cost + cost

    def write(self, kind: str, **figures: Any) -> None:
        """One line with the cost so far."""
        line = {"kind": kind, **figures, **asdict(_rounded(self.cost))}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _rounded(cost: Cost) -> Cost:
    return replace(cost, **{name: value and round(value, 3) for name, value in asdict(cost).items()})


def lines(folder: Path) -> list[dict[str, Any]]:
    """What a run has written; a last line that a killed run left half is left out."""
    path = folder / METRICS
    if not path.is_file():
        return []
    whole: Sequence[str] = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in whole if line.startswith("{") and line.endswith("}")]


def scores(folder: Path) -> list[dict[str, Any]]:
    """The lines of held-out scores, one for each step, the later one where a step was done again."""
    by_step = {line["step"]: line for line in lines(folder) if line["kind"] == "heldout"}
    return [by_step[step] for step in sorted(by_step)]

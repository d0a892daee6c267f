"""What the runs came to, as a table and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from economizer_compression.markdown import UNKNOWN, number, table

from economizer_training.record import Cost

MADE = ("prepare", "train")  # the stages that make a classifier; scoring it is no part of that
POINTS_MAX = 1.0
SHARE_MAX = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One run: ``accuracy`` on the test file, ``texts`` that it learnt from, and what each stage cost."""

    name: str
    seed: int
    texts: int
    accuracy: float
    costs: Mapping[str, Cost]
    method: str
    meter: str

    @classmethod
    def read(cls, line: Mapping[str, Any], name: str) -> Outcome:
        """From what ``asdict`` made of one, under the name that its settings have now."""
        known = {key: line[key] for key in ("seed", "texts", "accuracy", "method", "meter")}
        return cls(name=name, costs={stage: Cost(**cost) for stage, cost in line["costs"].items()}, **known)

    @property
    def cost(self) -> Cost:
        """What making it cost."""
        return sum((self.costs[stage] for stage in MADE), Cost())

    def told(self) -> str:
        """In a line."""
        cost = self.cost
        joules = UNKNOWN if cost.energy_j is None else f"{cost.energy_j:.0f}"
        return f"accuracy {self.accuracy:.4f}, {cost.seconds:.0f} s, {cost.cpu_s:.0f} CPU s, {joules} J"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All outcomes. ``names`` are the runs', the plain one first and ours last."""

    names: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    hardware: str

    def of(self, name: str) -> list[Outcome]:
        """A run's, by seed."""
        return sorted((found for found in self.outcomes if found.name == name), key=lambda found: found.seed)

    def shares(self, name: str, figure: Callable[[Cost], float | None]) -> list[float] | None:
        """A run's cost over the plain one's of the same seed, for each seed that both have; None is unknown."""
        plain = {found.seed: figure(found.cost) for found in self.of(self.names[0])}
        pairs = [(figure(found.cost), plain[found.seed]) for found in self.of(name) if found.seed in plain]
        known = [(one, other) for one, other in pairs if one is not None and other]
        return [one / other for one, other in known] if pairs and len(known) == len(pairs) else None

    def points_lost(self, name: str) -> list[float]:
        """Points of accuracy that a run has less than the plain one of the same seed."""
        plain = {found.seed: found.accuracy for found in self.of(self.names[0])}
        return [100 * (plain[found.seed] - found.accuracy) for found in self.of(name) if found.seed in plain]

    def reached(self) -> dict[str, bool | None]:
        """Whether ours took at most half the time and half the energy, and lost at most a point; None is unknown."""
        ours = self.names[-1]
        shares = {"half the time": self.shares(ours, _seconds), "half the energy": self.shares(ours, _energy)}
        told: dict[str, bool | None] = {
            name: None if found is None else mean(found) <= SHARE_MAX for name, found in shares.items()
        }
        return told | {"at most a point of accuracy lost": mean(self.points_lost(ours)) <= POINTS_MAX}

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        rows = [
            {
                "name": name,
                "outcomes": [asdict(found) | {"cost": asdict(found.cost)} for found in self.of(name)],
                "points_lost": self.points_lost(name),
                "time_share": self.shares(name, _seconds),
                "cpu_share": self.shares(name, _cpu),
                "energy_share": self.shares(name, _energy),
            }
            for name in self.names
        ]
        return {"hardware": self.hardware, "reached": self.reached(), "runs": rows}


def _seconds(cost: Cost) -> float | None:
    return cost.seconds


def _cpu(cost: Cost) -> float | None:
    return cost.cpu_s


def _energy(cost: Cost) -> float | None:
    return cost.energy_j


def markdown(report: Report) -> str:
    """The table: a row for each run, with means over its seeds and, of several, the range of the shares."""
    head = ("run", "seeds", "texts", "accuracy", "s", "CPU s", "J", "time", "energy")
    rows = [_row(report, name) for name in report.names if report.of(name)]
    missing = [name for name in report.names if not report.of(name)]
    plain = report.of(report.names[0])[0]
    lines = [
        *table(head, rows),
        "",
        f"Each run adds its measure to those before it. Shares are of `{plain.name}` with the same seeds.",
        *([f"Not made yet: {', '.join(missing)}."] if missing else []),
        f"{report.hardware}; {plain.method}: {plain.meter}.",
        "",
        *(f"- {what}: {_yes(holds)}" for what, holds in report.reached().items()),
    ]
    return "\n".join(lines) + "\n"


def _row(report: Report, name: str) -> list[str]:
    found = report.of(name)
    joules = [one.cost.energy_j for one in found]
    known = [value for value in joules if value is not None]
    return [
        name,
        ", ".join(str(one.seed) for one in found),
        str(found[0].texts),
        f"{100 * mean(one.accuracy for one in found):.2f} %",
        number(round(mean(one.cost.seconds for one in found))),
        number(round(mean(one.cost.cpu_s for one in found))),
        number(round(mean(known))) if len(known) == len(joules) else UNKNOWN,
        _share(report.shares(name, _seconds)),
        _share(report.shares(name, _energy)),
    ]


def _share(found: Sequence[float] | None) -> str:
    if not found:
        return UNKNOWN
    told = f"{mean(found):.2f}"
    return told if len(found) == 1 else f"{told} ({min(found):.2f}-{max(found):.2f})"


def _yes(holds: bool | None) -> str:
    return UNKNOWN if holds is None else "yes" if holds else "no"

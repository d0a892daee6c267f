"""When a run ends early and when it waits: by what its joules gain, and by how dirty the grid is. No torch here."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from typing import Any, Protocol

from economizer.energy.carbon import GridIntensity, HourlyTable, ProviderIntensity
from economizer.variants.types import CarbonProviderSettings, require
from economizer_compression.family import located

from economizer_training.errors import TrainingError

_FORBID = {"extra": "forbid"}
_J_PER_KJ = 1000
LOOK_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStopping:
    """Ends a run after ``patience`` scores in a row of which each gained less than ``kl_per_kj_min``.

    That is nats of held-out KL per kilojoule that all workers used since the score before, pauses left out.
    """

    __pydantic_config__ = _FORBID

    kl_per_kj_min: float
    patience: int = 3

    def __post_init__(self) -> None:
        require(0 <= self.kl_per_kj_min < inf, "kl_per_kj_min", self.kl_per_kj_min, "must be 0 or more and finite")
        require(self.patience >= 1, "patience", self.patience, "must be 1 or more")

    def too_little(self, gained: Sequence[float | None]) -> list[float]:
        """The last gains where they end the run, else none. A gain that is not known ends nothing."""
        latest = [gain for gain in gained[-self.patience :] if gain is not None and gain < self.kl_per_kj_min]
        return latest if len(latest) == self.patience else []


def gains(lines: Iterable[Mapping[str, Any]]) -> list[float | None]:
    """What each held-out score but the first gained in nats per kJ, from the lines of a run's metrics in their order.

    Where workers went on from a checkpoint, later scores are forgotten, and so are the joules of what was done twice:
    a run that was killed is judged as one that was not. None is not known.
    """
    scores: list[tuple[int, float, float | None]] = []  # step, KL, gain since the score before
    since_j: float | None = 0.0  # where the joules stood from which those count that the next score is held against
    unjudged_j: dict[int, float | None] = {}  # how many of these a step had behind it
    for line in lines:
        step, now_j = line.get("step", 0), learning_j(line)
        if line["kind"] == "step":
            unjudged_j[step] = _less(now_j, since_j)
        elif line["kind"] == "heldout":
            scores = [score for score in scores if score[0] < step]  # killed before a checkpoint, it began anew
            spent_j = _less(now_j, since_j)
            gain = _J_PER_KJ * (scores[-1][1] - line["kl"]) / spent_j if scores and spent_j else None
            scores.append((step, line["kl"], gain))
            since_j, unjudged_j[step] = now_j, 0.0
        elif line["kind"] == "reloaded":
            scores = [score for score in scores if score[0] <= step]
            since_j = _less(now_j, unjudged_j.get(step, 0.0))
    return [gain for _, _, gain in scores[1:]]


def learning_j(line: Mapping[str, Any]) -> float | None:
    """The joules so far without those of pauses; None is not known."""
    return _less(line["energy_j"], line.get("paused_j", 0.0))


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """The workers wait while the grid's carbon intensity is above ``carbon_g_per_kwh_max``.

    It is read from a table by the hour (a CSV file as for the gateway's prices) or asked of a provider. While it is
    not known nobody waits.
    """

    __pydantic_config__ = _FORBID

    carbon_g_per_kwh_max: float
    carbon_table: str | None = None
    carbon_provider: CarbonProviderSettings | None = None

    def __post_init__(self) -> None:
        rule = "must be 0 or more and finite"
        require(0 <= self.carbon_g_per_kwh_max < inf, "carbon_g_per_kwh_max", self.carbon_g_per_kwh_max, rule)
        given = [name for name in ("carbon_table", "carbon_provider") if getattr(self, name) is not None]
        require(len(given) == 1, "pause", given, "must have exactly one of carbon_table and carbon_provider")

    def is_above(self, g_per_kwh: float | None) -> bool:
        """Whether workers wait at this intensity; None is not known."""
        return g_per_kwh is not None and g_per_kwh > self.carbon_g_per_kwh_max

    def intensity(self, environment: Mapping[str, str]) -> GridIntensity:
        """What says how dirty the grid is; a provider's token is in ``environment``.

        Raises TrainingError where it never could, or where there is no hour to train in.
        """
        if self.carbon_provider is not None:
            token = self.carbon_provider.token_env
            if token is not None and token not in environment:
                raise TrainingError(f"pause.carbon_provider.token_env: {token} is not set in the environment")
            return ProviderIntensity.of(self.carbon_provider, environment)
        assert self.carbon_table is not None
        try:
            table = HourlyTable.read(located(self.carbon_table))
        except (OSError, ValueError) as error:
            raise TrainingError(f"pause.carbon_table: {self.carbon_table}: {error}") from None
        if (least := min(table.g_per_kwh.values())) > self.carbon_g_per_kwh_max:
            told = f"is {self.carbon_g_per_kwh_max:g}, and {self.carbon_table} has no hour under {least:g}"
            raise TrainingError(f"pause.carbon_g_per_kwh_max {told}: it would wait for ever")
        return table


class Clock(Protocol):
    """Time, and how to let it pass."""

    def now_s(self) -> float:
        """Seconds since the epoch."""

    def sleep(self, seconds: float) -> None:
        """Returns that much later."""


class SystemClock:
    """The machine's."""

    def now_s(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """The grid as it was last looked at: g/kWh, None where not known, and what went wrong."""

    g_per_kwh: float | None
    trouble: str | None = None


class Lookout:
    """Looks at the grid, once a minute at most however often it is asked: a provider may take seconds to answer."""

    def __init__(self, intensity: GridIntensity, clock: Clock) -> None:
        self._intensity, self._clock = intensity, clock
        self._looked_s = -inf
        self._sight = Sight(g_per_kwh=None)

    def look(self) -> Sight:
        """The grid as it is, or was less than a minute ago."""
        now_s = self._clock.now_s()
        if 0 <= now_s - self._looked_s < LOOK_EVERY_S:
            return self._sight
        self._looked_s = now_s
        trouble = self._intensity.refresh(now_s)
        g_per_kwh = self._intensity.at(now_s)
        if g_per_kwh is None and trouble is None:
            hour = datetime.fromtimestamp(now_s, UTC)
            trouble = f"the carbon intensity of {hour:%Y-%m-%dT%H}:00Z is not known"
        self._sight = Sight(g_per_kwh=g_per_kwh, trouble=trouble)
        return self._sight

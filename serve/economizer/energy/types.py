"""The words of metering: what a meter read, the window it read it over, and the work that engines did in it. Pure.

Energy is in whole microjoules from the meter on, so that sums are exact. Unknown is None, never 0.
"""

from __future__ import annotations

from math import inf, isfinite
from typing import Literal

from msgspec import Struct
from msgspec.structs import asdict

from economizer.errors import require

UJ_PER_J = 1_000_000

WindowState = Literal["starting", "serving", "gap"]


class Measurement(Struct, frozen=True, kw_only=True):
    """What a meter read between two moments.

    ``seconds`` is on a clock that never goes back. ``energy_uj`` is all that was used; ``idle_uj`` is how much of it
    would have been used with no work at all, 0 where the meter cannot tell. ``energy_uj`` is None where nothing could
    be measured, and ``note`` says why. ``method`` names the meter, such as ``nvml-total-energy``, ``rapl``,
    ``cpu-time-model``, ``replay``, ``none``. ``uncertainty`` is the half width of the 95 % interval of ``energy_uj``,
    relative to it; None is unknown.
    """

    seconds: float
    energy_uj: int | None
    idle_uj: int = 0
    method: str
    uncertainty: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        require(0 <= self.seconds < inf, "seconds", self.seconds, "must be 0 or more and finite")
        if self.energy_uj is not None:
            require(self.energy_uj >= 0, "energy_uj", self.energy_uj, "must be 0 or more")
        most = self.energy_uj or 0
        require(0 <= self.idle_uj <= most, "idle_uj", self.idle_uj, f"must be between 0 and energy_uj ({most})")
        if self.uncertainty is not None:
            require(
                isfinite(self.uncertainty) and self.uncertainty >= 0,
                "uncertainty",
                self.uncertainty,
                "must be 0 or more and finite",
            )

    @property
    def active_uj(self) -> int | None:
        """What the work took, or None where nothing was measured."""
        return None if self.energy_uj is None else self.energy_uj - self.idle_uj


class Window(Struct, frozen=True, kw_only=True):
    """A metered span of one engine's life.

    ``engine`` is the Serve replica's id and ``number`` counts its windows from 0: together they name a window for
    good. ``began_s`` and ``ended_s`` are seconds since the epoch; where the clock stepped back in between,
    ``began_s`` is ``ended_s`` less the measurement's seconds. ``state`` is ``starting`` until the engine is ready,
    ``serving`` then, and ``gap`` where a span went unmetered. ``steps``, ``prefill_tokens`` and ``decode_tokens`` are
    how much the engine's own counters grew, None where it has none. ``last`` says that the engine ends with it.
    """

    engine: str
    number: int
    variant: str
    began_s: float
    ended_s: float
    state: WindowState = "serving"
    measurement: Measurement
    steps: int | None = None
    prefill_tokens: int | None = None
    decode_tokens: int | None = None
    last: bool = False

    def __post_init__(self) -> None:
        require(self.number >= 0, "number", self.number, "must be 0 or more")
        require(self.ended_s >= self.began_s, "ended_s", self.ended_s, f"must be at least began_s ({self.began_s})")


class Work(Struct, frozen=True, kw_only=True, gc=False):
    """What one request made one engine do in a span, counted in the features of the attribution.

    ``prefill_tokens`` are those computed, not those found in the prefix cache; ``prefill_context`` is the sum, over
    those tokens, of the tokens that each attends to, and ``decode_context`` the same over decoded tokens. A prompt of
    P tokens of which C were cached has ``prefill_context`` of (P - C) * (P + C) / 2. Counts may be fractions: what a
    span shows of a request is prorated.
    """

    prefill_tokens: float = 0.0
    prefill_context: float = 0.0
    decode_tokens: float = 0.0
    decode_context: float = 0.0

    def __post_init__(self) -> None:
        if not (  # quickly, for there are many
            0 <= self.prefill_tokens < inf
            and 0 <= self.prefill_context < inf
            and 0 <= self.decode_tokens < inf
            and 0 <= self.decode_context < inf
        ):
            for name, value in asdict(self).items():
                require(0 <= value < inf, name, value, "must be 0 or more and finite")

    def __add__(self, other: Work) -> Work:
        return Work(
            prefill_tokens=self.prefill_tokens + other.prefill_tokens,
            prefill_context=self.prefill_context + other.prefill_context,
            decode_tokens=self.decode_tokens + other.decode_tokens,
            decode_context=self.decode_context + other.decode_context,
        )

    def scaled(self, share: float) -> Work:
        """The same, times ``share``."""
        return Work(
            prefill_tokens=self.prefill_tokens * share,
            prefill_context=self.prefill_context * share,
            decode_tokens=self.decode_tokens * share,
            decode_context=self.decode_context * share,
        )

    @property
    def none(self) -> bool:
        """Nothing was done."""
        return not (self.prefill_tokens or self.decode_tokens)


NO_WORK = Work()

"""Token buckets: a rate that may be used in bursts of up to a minute's worth. Pure: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

MINUTE_S = 60.0
_RESOLUTION_S = 1e-3  # added to waits, since a float of seconds since the epoch rounds


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """How a limit per minute stands: what is left of it now, and the seconds until all of it is there again."""

    limit: int
    remaining: int
    reset_s: float


class Bucket:
    """What is left of a limit per minute. It begins full, and may fall below 0 by what was taken without asking."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at_s = now_s

    def refill(self, per_minute: int, now_s: float) -> None:
        """Add what came since the last time, at the rate that holds now. A clock that stepped back adds nothing, and
        from there on counts as ever."""
        self.per_minute = per_minute
        elapsed_s = max(0.0, now_s - self._at_s)
        self._level = min(float(per_minute), self._level + elapsed_s * per_minute / MINUTE_S)
        self._at_s = now_s

    def wait_s(self, count: int) -> float:
        """The seconds until ``count`` is there, 0 where it is there now."""
        missing = count - self._level
        return missing * MINUTE_S / self.per_minute + _RESOLUTION_S if missing > 0 else 0.0

    def take(self, count: int) -> None:
        """Take ``count``, whether it is there or not; what is negative is given back, up to the limit."""
        self._level -= count

    def full(self, now_s: float) -> bool:
        """All of it is there."""
        self.refill(self.per_minute, now_s)
        return self._level >= self.per_minute

    @property
    def rate(self) -> Rate:
        """How it stands, as of the last refill."""
        return Rate(
            limit=self.per_minute,
            remaining=max(0, floor(self._level)),
            reset_s=(self.per_minute - self._level) * MINUTE_S / self.per_minute,
        )

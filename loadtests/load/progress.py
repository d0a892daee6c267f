"""How far a run is, in a line every few seconds, and what came of it in a dictionary at its end."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence

import numpy as np

from load.sending import INTERRUPTED
from load.types import Outcome, Planned

_EVERY_S = 5.0
_LATELY = 1_000  # requests that the line's lateness is of; all of them would take long to sort


class Progress:
    """Counts what ``replay`` tells of requests that are sent and have ended. ``outcomes`` are those until now."""

    def __init__(self, plan: Sequence[Planned]) -> None:
        self._planned = len(plan)
        self._last_due_s = max((one.due_s for one in plan), default=0.0)
        self._prompt_tokens = 0
        self._sent = 0
        self._failed = 0
        self._late_s: deque[float] = deque(maxlen=_LATELY)
        self._began_s = time.monotonic()
        self.outcomes: list[Outcome] = []

    @property
    def accounted(self) -> bool:
        """Whether every request was sent, and something came of each."""
        return len(self.outcomes) == self._planned and all(one.error != INTERRUPTED for one in self.outcomes)

    def sent(self, _planned: Planned, late_s: float) -> None:
        """A request was sent, so much later than it was due."""
        self._sent += 1
        self._late_s.append(late_s)

    def ended(self, outcome: Outcome) -> None:
        """Something came of a request."""
        self.outcomes.append(outcome)
        self._failed += not outcome.answered

    async def show(self) -> None:
        """Print a line every few seconds to stderr, until cancelled."""
        self._began_s = time.monotonic()
        while True:
            await asyncio.sleep(_EVERY_S)
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """Now."""
        left_s = self._last_due_s - (time.monotonic() - self._began_s)
        flying = self._sent - len(self.outcomes)
        until = f"{left_s:.0f} s to send" if left_s > 0 else f"waiting for {flying} answers"
        late_s = _percentile(self._late_s, 99)
        return (
            f"sent {self._sent}/{self._planned}  in flight {flying}  answered {len(self.outcomes) - self._failed}  "
            f"failed {self._failed}  late p99 {(late_s or 0.0) * 1e3:.1f} ms  {until}"
        )

    def summary(self) -> dict[str, object]:
        """What came of the run. Sums of energy, dollars and tokens are of the answers that say theirs; None of none."""
        outcomes = self.outcomes
        answered = [one for one in outcomes if one.answered]
        return {
            "planned": self._planned,
            "sent": self._sent,
            "answered": len(answered),
            "failed": dict(Counter(one.error for one in outcomes if one.error is not None)),
            "met": sum(one.met for one in outcomes),
            "variants": dict(Counter(one.variant for one in answered if one.variant is not None)),
            "ttft_p50_s": _percentile((one.ttft_s for one in answered), 50),
            "ttft_p95_s": _percentile((one.ttft_s for one in answered), 95),
            "tpot_p50_s": _percentile((one.tpot_s for one in answered), 50),
            "tpot_p95_s": _percentile((one.tpot_s for one in answered), 95),
            "e2e_p95_s": _percentile((one.e2e_s for one in answered), 95),
            "late_p99_s": _percentile((one.sent_s - one.due_s for one in outcomes), 99),
            "late_max_s": _percentile((one.sent_s - one.due_s for one in outcomes), 100),
            "prompt_tokens": _sum(one.prompt_tokens for one in outcomes),
            "output_tokens": _sum(one.output_tokens for one in outcomes),
            "energy_j": _sum(one.energy_j for one in outcomes),
            "cost_usd": _sum(one.cost_usd for one in outcomes),
        }


def _percentile(values: Iterable[float | None], percent: float) -> float | None:
    """Between the two nearest, as NumPy does by default; None of nothing."""
    known = [value for value in values if value is not None]
    return round(float(np.percentile(known, percent)), 6) if known else None


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None

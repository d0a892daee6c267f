"""The gateways as the books know them: who is heard of, what each has told, and what each is to be told. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from economizer.ledger.splitting import AttemptKey
from economizer.ledger.types import Amounts, Charge, Report

LATE_S = 3.0  # a gateway that has not told by then is not waited for
DEAD_S = 60.0  # a gateway that has not told by then is dead, and not only in a stall
FORGOTTEN_S = 3600.0
_CHARGES_MAX = 20_000  # kept for a gateway that does not say that it has them; some 10 MiB
_NEVER = float("-inf")


@dataclass(slots=True)
class Told:
    """A report, of which ``open`` slices are not settled yet."""

    number: int
    open: int


@dataclass(slots=True)
class _Gateway:
    heard_s: float
    told_until_s: float = _NEVER
    gone: bool = False
    number: int = -1
    reports: deque[Told] = field(default_factory=deque)
    charges: deque[Charge] = field(default_factory=lambda: deque(maxlen=_CHARGES_MAX))
    charged: int = 0  # how many there ever were, and so the number of the last one


class Gateways:
    """Those that are not forgotten, by name."""

    def __init__(self) -> None:
        self._known: dict[str, _Gateway] = {}
        self._telling: dict[AttemptKey, tuple[str, Charge]] = {}  # what they are told next, and who of them

    @property
    def names(self) -> Collection[str]:
        """Of all."""
        return self._known.keys()

    def heard(self, name: str, now_s: float) -> None:
        """It lives, whatever becomes of what it tells."""
        known = self._known.setdefault(name, _Gateway(heard_s=now_s))
        known.heard_s, known.gone = now_s, False

    def nobody_was_silent(self, by_s: float) -> None:
        """Who was heard of was so as long ago as before, though ``by_s`` more has passed."""
        for gateway in self._known.values():
            gateway.heard_s += by_s

    def take(self, report: Report) -> Told | None:
        """The report is the next of a gateway that was heard of; None where it was told before, or where an earlier
        one is to come first, which the gateway tells again."""
        gateway = self._known[report.gateway]
        oldest = report.number if report.oldest is None else report.oldest
        if report.number <= gateway.number or report.number > max(oldest, gateway.number + 1):
            return None
        gateway.number, gateway.told_until_s = report.number, report.now_s
        told = Told(report.number, len(report.slices))
        gateway.reports.append(told)
        return told

    def awaited(self, now_s: float) -> list[str]:
        """Those that have reported lately: what they tell is waited for."""
        return [name for name, gateway in self._known.items() if now_s - gateway.heard_s <= LATE_S]

    def told_until_s(self, now_s: float) -> float:
        """All that happened until then was told by everybody who is waited for."""
        return min((self._known[name].told_until_s for name in self.awaited(now_s)), default=_NEVER)

    def gone(self, now_s: float) -> list[str]:
        """Those that have not reported for so long that they are dead, each told once; they are forgotten later."""
        names = []
        for name, gateway in list(self._known.items()):
            if not gateway.gone and now_s - gateway.heard_s > DEAD_S:
                gateway.gone = True
                names.append(name)
            if now_s - gateway.heard_s > FORGOTTEN_S:
                del self._known[name]
        return names

    def settled(self) -> dict[str, int]:
        """By gateway the number up to which all slices of its reports are settled, where that has grown."""
        numbers: dict[str, int] = {}
        for name, gateway in self._known.items():
            while gateway.reports and gateway.reports[0].open == 0:
                numbers[name] = gateway.reports.popleft().number
        return numbers

    def tell(
        self, name: str, key: AttemptKey, usage: Amounts, idle: Amounts, variance_uj2: float, method: str, final: bool
    ) -> None:
        """Of a gateway's attempt: what was charged to it, together with what was since the last ``hand_out``."""
        if key in self._telling:
            _, before = self._telling[key]
            usage, idle, variance_uj2 = before.usage + usage, before.idle + idle, before.variance_uj2 + variance_uj2
            method, final = method or before.method, final or before.final
        charge = Charge(
            request_id=key[0], usage=usage, idle=idle, variance_uj2=variance_uj2, method=method, final=final
        )
        self._telling[key] = name, charge

    def hand_out(self) -> None:
        """Number what is to be told."""
        for name, charge in self._telling.values():
            if (gateway := self._known.get(name)) is not None:
                gateway.charged += 1
                gateway.charges.append(charge)
        self._telling.clear()

    def charges(self, name: str, seen: int) -> tuple[int, tuple[Charge, ...]]:
        """What was charged to a gateway's requests after the charge with the number ``seen``, and the last one's
        number. They are kept until the gateway says that it has seen them, since an answer may be lost."""
        known = self._known.get(name)
        if known is None:
            return seen, ()
        if seen > known.charged:  # the gateway was forgotten meanwhile
            known.charged = seen + len(known.charges)
        while len(known.charges) > known.charged - seen:
            known.charges.popleft()
        return known.charged, tuple(known.charges)

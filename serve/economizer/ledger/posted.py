"""What was booked and no gateway was told yet, for its metrics. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import asdict, replace

from economizer.ledger.types import UNKNOWN, Account, Amounts, Posting


class Posted:
    """Sums by account, whatever the hour, since gateways' counters have none; so there are never many.

    Counters can only grow. What is taken back waits until as much is put there again.
    """

    def __init__(self) -> None:
        self._sums: dict[Account, Posting] = {}

    def add(self, postings: Iterable[Posting]) -> None:
        """These were booked."""
        for posting in postings:
            key = replace(posting.account, hour=0)
            before = self._sums[key].amounts if key in self._sums else UNKNOWN
            self._sums[key] = replace(posting, amounts=before + posting.amounts)

    def take(self) -> tuple[Posting, ...]:
        """All that counters can be told of now, once."""
        told = tuple(replace(posting, amounts=_grown(posting.amounts)) for posting in self._sums.values())
        left = {key: replace(posting, amounts=_owed(posting.amounts)) for key, posting in self._sums.items()}
        self._sums = {key: posting for key, posting in left.items() if posting.amounts != UNKNOWN}
        return tuple(posting for posting in told if posting.amounts != UNKNOWN)


def _grown(amounts: Amounts) -> Amounts:
    return _where(amounts, lambda amount: amount > 0)


def _owed(amounts: Amounts) -> Amounts:
    return _where(amounts, lambda amount: amount < 0)


def _where(amounts: Amounts, holds: Callable[[int], bool]) -> Amounts:
    known = asdict(amounts)
    return Amounts(**{name: amount for name, amount in known.items() if amount is not None and holds(amount)})

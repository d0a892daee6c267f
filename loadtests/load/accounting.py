"""Whether every request of a run is accounted for, and whether the books say the same as the clients saw. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from economizer.ledger.types import RequestRow

from load.sending import CANCELLED, INTERRUPTED
from load.types import Outcome

_REFUSALS = frozenset({"not_ready", "ledger_unavailable"})  # of status 503: no engine was asked, or none is left
_IN_STREAM = frozenset({"engine_failed", "engine_timeout", "server_error"})  # an error event after the first byte
_NO_OPENAI_ERROR = "http_"  # how the client calls an answer of a status above 399 without OpenAI's error object
_UNITS = (
    ("energy_uj", "measured_uj", ("attributed_uj", "idle_uj", "overhead_uj")),
    ("cost_uusd", "billed_uusd", ("attributed_uusd", "idle_uusd", "overhead_uusd")),
    ("carbon_ug", "emitted_ug", ("attributed_ug", "idle_ug", "overhead_ug")),
)
_NAMED_MAX = 5

Fate = Literal["answered", "refused", "failed", "cancelled", "lost"]
FATES: tuple[Fate, ...] = ("answered", "refused", "failed", "cancelled", "lost")
_BOOKED_AS: Mapping[Fate, frozenset[str]] = {
    "answered": frozenset({"ok"}),
    "refused": frozenset({"refused", "failed", "engine_error"}),
    "failed": frozenset({"engine_error", "failed"}),
    # Who leaves does not see what was on its way to it.
    "cancelled": frozenset({"client_closed", "ok", "refused", "engine_error", "failed"}),
    "lost": frozenset(),
}


def fate(outcome: Outcome) -> Fate:
    """What became of a request, as its client saw it; ``lost`` is what has no answer, no reason and no error."""
    if outcome.error is None:
        return "answered"
    if outcome.error in (CANCELLED, INTERRUPTED):
        return "cancelled"
    if outcome.status is None or outcome.error.startswith(_NO_OPENAI_ERROR):
        return "lost"
    if outcome.status == 200:
        return "failed" if outcome.error in _IN_STREAM else "lost"
    return "refused" if outcome.status < 500 or outcome.error in _REFUSALS else "failed"


def fates(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many requests had each fate, and ``CODE`` for each reason of those that were not answered."""
    return dict(Counter(fate(outcome) for outcome in outcomes))


def reasons(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many requests ended with each error, with the status before it."""
    told = Counter(f"{one.status or 'no status'} {one.error}" for one in outcomes if one.error is not None)
    return dict(told.most_common())


class Books:
    """What the ledger has of a run's requests, held against what its clients saw.

    ``rows`` are those of the run's tenants, by request id. ``bill`` is ``economizer bill --by tenant --json``.
    """

    def __init__(self, outcomes: Sequence[Outcome], rows: Mapping[str, RequestRow], bill: Mapping[str, Any]) -> None:
        self._outcomes = outcomes
        self._rows = rows
        self._bill = bill

    def problems(self) -> list[str]:
        """All that does not agree, a line for each kind of it with how often and the first few examples."""
        return [
            *_grouped(self._unaccounted()),
            *_grouped(self._unlike_books()),
            *self._uncalled(),
            *self._bill_unlike_books(),
            *self._not_closed(),
        ]

    def numbers(self) -> dict[str, Any]:
        """What was compared, by tenant: requests sent, those in the books, those of them that an engine was asked for,
        which are the ones that a bill counts, and the bill's own count."""
        found: dict[str, Any] = {}
        for tenant in sorted({one.tenant for one in self._outcomes}):
            mine = [one for one in self._outcomes if one.tenant == tenant]
            rows = [row for row in self._rows.values() if row.tenant == tenant]
            billed = self._billed(tenant)
            found[tenant] = {
                "sent": len(mine),
                **fates(mine),
                "booked": len(rows),
                "asked": sum(_asked(row) for row in rows),
                "billed": billed.get("requests", 0),
                "booked_uj": _sum(rows, "energy_uj"),
                "billed_uj": (billed.get("usage") or {}).get("energy_uj") or 0,
            }
        return found

    def _unaccounted(self) -> Iterator[tuple[str, str]]:
        for one in self._outcomes:
            if fate(one) == "lost":
                yield f"{one.status or 'no status'}, {one.error}: neither an answer nor an OpenAI error", _name(one)

    def _unlike_books(self) -> Iterator[tuple[str, str]]:
        """Requests that the books do not have, or have otherwise; what was refused before a decision is not booked."""
        for one in self._outcomes:
            became = fate(one)
            row = self._rows.get(one.request_id or "")
            if row is None or row.booking is None:
                must_be = became in ("answered", "failed") or (became == "cancelled" and one.status == 200)
                if one.request_id is not None and must_be:
                    yield f"{became}, and not in the books", _name(one)
                continue
            if became != "lost" and row.booking.outcome not in _BOOKED_AS[became]:
                yield f"{became}, and booked as {row.booking.outcome}", _name(one)
            if row.tenant != one.tenant:
                yield f"sent by {one.tenant}, and booked on {row.tenant}", _name(one)
            if became == "answered" and one.output_tokens not in (None, row.booking.output_tokens):
                yield "answered and booked with other output tokens", _name(one)

    def _uncalled(self) -> Iterator[str]:
        """Requests in the books that no client has the id of: only those that left before the answer's head came."""
        known = {one.request_id for one in self._outcomes}
        left = Counter(one.tenant for one in self._outcomes if fate(one) == "cancelled" and one.request_id is None)
        for tenant in sorted({one.tenant for one in self._outcomes}):
            extra = [row for name, row in self._rows.items() if row.tenant == tenant and name not in known]
            if len(extra) > left[tenant]:
                yield f"{tenant}: {len(extra)} requests are booked that no client sent; {left[tenant]} left early"

    def _bill_unlike_books(self) -> Iterator[str]:
        for tenant in sorted({one.tenant for one in self._outcomes}):
            rows, billed = [row for row in self._rows.values() if row.tenant == tenant], self._billed(tenant)
            asked = sum(_asked(row) for row in rows)
            if asked != billed.get("requests", 0):
                yield f"{tenant}: engines were asked for {asked} requests, and the bill has {billed.get('requests', 0)}"
            for unit, _, _ in _UNITS:
                whole, of_bill = _sum(rows, unit), (billed.get("usage") or {}).get(unit) or 0
                if whole != of_bill:
                    yield f"{tenant}: its requests took {whole} {unit}, and the bill says {of_bill}"

    def _not_closed(self) -> Iterator[str]:
        totals = self._bill["totals"]
        if not self._bill["closes"]:
            yield f"the bill does not close: meters less accounts {self._bill['difference']}"
        for unit, whole, parts in _UNITS:
            sum_of_parts = sum(totals[part] or 0 for part in parts)
            if (totals[whole] or 0) != sum_of_parts:
                yield f"the bill does not close: {whole} {totals[whole]}, its parts {sum_of_parts}"
            if (totals[whole] or 0) != sum(meter[unit] or 0 for meter in self._bill["meters"]):
                yield f"the bill does not close: {whole} is not the sum of its meters' {unit}"

    def _billed(self, tenant: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = next((row for row in self._bill["rows"] if row["tenant"] == tenant), {})
        return found


def _sum(rows: Collection[RequestRow], unit: str) -> int:
    return sum(getattr(row.usage, unit) or 0 for row in rows)


def _asked(row: RequestRow) -> bool:
    """Whether an engine was asked: what is refused before that is booked, and on no bill."""
    return row.booking is not None and row.booking.attempts > 0


def _name(outcome: Outcome) -> str:
    return f"{outcome.kind} {outcome.number}"


def _grouped(found: Iterator[tuple[str, str]]) -> list[str]:
    """One line for each kind of problem: how many, and the first few."""
    by_kind: dict[str, list[str]] = {}
    for kind, name in found:
        by_kind.setdefault(kind, []).append(name)
    return [
        f"{len(names)} requests: {kind} ({', '.join(names[:_NAMED_MAX])}{', ...' if len(names) > _NAMED_MAX else ''})"
        for kind, names in by_kind.items()
    ]

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from economizer.ledger.types import Amounts, RequestRow
from ledger_batches import booking
from load.accounting import Books, fate, reasons
from load.types import Outcome, Terms


def outcome(number: int = 1, **changes: Any) -> Outcome:
    """A chat of acme that was answered with 7 tokens."""
    values: dict[str, Any] = {
        "number": number,
        "kind": "chat",
        "model": "boiler",
        "tenant": "acme",
        "terms": Terms(),
        "due_s": 0.0,
        "sent_s": 0.0,
        "ended_s": 1.0,
        "status": 200,
        "output_tokens": 7,
        "request_id": f"request-{number}",
    }
    return Outcome(**(values | changes))


def row(number: int = 1, **changes: Any) -> RequestRow:
    """The same in the books."""
    request_id = f"request-{number}"
    usage = changes.pop("usage", Amounts(energy_uj=100, cost_uusd=5, carbon_ug=3))
    return RequestRow(
        request_id=request_id,
        tenant=changes.pop("tenant", "acme"),
        family="boiler",
        variant="int8",
        booking=booking(request_id, **changes),
        usage=usage,
    )


def bill(requests: int, energy_uj: int, **changes: Any) -> dict[str, Any]:
    """A bill of acme alone, whose engines were idle for 50 microjoules more."""
    parts = {"energy": ("uj", energy_uj, "measured"), "cost": ("uusd", 5 * requests, "billed")}
    parts["carbon"] = ("ug", 3 * requests, "emitted")
    totals: dict[str, int] = {}
    for unit, attributed, whole in parts.values():
        own = {f"{whole}_{unit}": attributed + 50, f"attributed_{unit}": attributed}
        totals |= {**own, f"idle_{unit}": 50, f"overhead_{unit}": 0}
    usage = {f"{name}_{unit}": attributed for name, (unit, attributed, _) in parts.items()}
    return {
        "closes": True,
        "difference": {},
        "totals": totals,
        "rows": [{"tenant": "acme", "requests": requests, "usage": usage}],
        "meters": [{name: value + 50 for name, value in usage.items()}],
        **changes,
    }


def problems(outcomes: list[Outcome], rows: list[RequestRow], of_bill: Mapping[str, Any]) -> list[str]:
    return Books(outcomes, {one.request_id: one for one in rows}, of_bill).problems()


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (200, None, "answered"),
        (422, "terms_unmet", "refused"),
        (429, "rate_limit_exceeded", "refused"),
        (503, "not_ready", "refused"),
        (502, "engine_failed", "failed"),
        (504, "engine_timeout", "failed"),
        (200, "engine_failed", "failed"),
        (200, "cancelled", "cancelled"),
        (None, "cancelled", "cancelled"),
        (200, "interrupted", "cancelled"),
        (200, "stream_cut", "lost"),
        (200, "broken_off", "lost"),
        (None, "timeout", "lost"),
        (None, "not_connected", "lost"),
        (503, "http_503", "lost"),
    ],
)
def test_a_request_has_one_fate_and_is_lost_where_its_client_saw_no_answer_reason_or_error(
    status: int | None, error: str | None, expected: str
) -> None:
    assert fate(outcome(status=status, error=error)) == expected


def test_nothing_is_wrong_where_clients_books_and_bill_agree() -> None:
    outcomes = [
        outcome(1),
        outcome(2, error="cancelled", output_tokens=None),
        outcome(3, status=429, error="rate_limit_exceeded", output_tokens=None),
        outcome(4, status=502, error="engine_failed", output_tokens=None),
        outcome(5, error="cancelled", status=None, request_id=None, output_tokens=None),
    ]
    rows = [row(1), row(2, outcome="client_closed"), row(4, outcome="engine_error"), row(9, outcome="client_closed")]
    rows.append(row(6, outcome="refused", attempts=0, usage=Amounts()))
    outcomes.append(outcome(6, status=422, error="terms_unmet", output_tokens=None))
    books = Books(outcomes, {one.request_id: one for one in rows}, bill(4, 400))
    assert books.problems() == []
    numbers = books.numbers()["acme"]
    assert (numbers["sent"], numbers["booked"], numbers["billed"]) == (6, 5, 4)
    assert numbers["booked_uj"] == numbers["billed_uj"] == 400
    assert reasons(outcomes) == {
        "200 cancelled": 1,
        "422 terms_unmet": 1,
        "429 rate_limit_exceeded": 1,
        "502 engine_failed": 1,
        "no status cancelled": 1,
    }


def test_what_is_lost_is_named_with_its_kind_and_number() -> None:
    (problem,) = problems([outcome(7, error="stream_cut")], [row(7, outcome="engine_error")], bill(1, 100))
    assert problem == "1 requests: 200, stream_cut: neither an answer nor an OpenAI error (chat 7)"


def test_an_answer_that_the_books_do_not_have_is_missing() -> None:
    (problem,) = problems([outcome(1), outcome(2)], [row(1)], bill(1, 100))
    assert problem == "1 requests: answered, and not in the books (chat 2)"


def test_an_answer_booked_as_an_error_on_another_tenant_or_with_other_tokens_is_told() -> None:
    outcomes = [outcome(1), outcome(2), outcome(3)]
    rows = [row(1, outcome="engine_error"), row(2, tenant="beta"), row(3, output_tokens=8)]
    found = problems(outcomes, rows, bill(2, 200))
    assert found == [
        "1 requests: answered, and booked as engine_error (chat 1)",
        "1 requests: sent by acme, and booked on beta (chat 2)",
        "1 requests: answered and booked with other output tokens (chat 3)",
    ]


def test_a_booked_request_that_no_client_sent_is_told_unless_somebody_left_before_its_answer_began() -> None:
    rows = [row(1), row(2, outcome="client_closed")]
    (problem,) = problems([outcome(1)], rows, bill(2, 200))
    assert problem == "acme: 1 requests are booked that no client sent; 0 left early"
    early = outcome(2, request_id=None, status=None, error="cancelled", output_tokens=None)
    assert problems([outcome(1), early], rows, bill(2, 200)) == []


def test_a_bill_that_differs_from_its_requests_or_does_not_close_is_told_with_the_numbers() -> None:
    assert problems([outcome(1)], [row(1)], bill(2, 100)) == [
        "acme: engines were asked for 1 requests, and the bill has 2",
        "acme: its requests took 5 cost_uusd, and the bill says 10",
        "acme: its requests took 3 carbon_ug, and the bill says 6",
    ]
    open_bill = bill(1, 100, closes=False, difference={"energy_uj": 7})
    open_bill["totals"]["measured_uj"] += 7
    assert problems([outcome(1)], [row(1)], open_bill) == [
        "the bill does not close: meters less accounts {'energy_uj': 7}",
        "the bill does not close: measured_uj 157, its parts 150",
        "the bill does not close: measured_uj is not the sum of its meters' energy_uj",
    ]

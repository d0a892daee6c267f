from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from economizer.energy.carbon import ConstantIntensity
from economizer.energy.types import Measurement, Window, Work
from economizer.ledger.books import Books, Drawn
from economizer.ledger.gateways import LATE_S
from economizer.ledger.prices import PriceList
from economizer.ledger.types import GAPS_FROM, Amounts, Booking, Charge, Kind, Report, Slice
from economizer.variants.types import Price
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

T0 = 1_800_000_000.0  # the beginning of an hour
HOUR = int(T0 // 3600)
PRICE = Price(
    usd_per_hour=3.6, carbon_g_per_kwh=360.0, source="made up"
)  # 1,000 micro-dollars a second, 100 ug a joule


def books(price: Price | None = PRICE) -> Books:
    prices = {"m@a": price} if price is not None else {}
    return Books(PriceList(prices=prices, intensities={name: ConstantIntensity(360.0) for name in prices}))


def window(number: int, *, energy_uj: int | None = 1_000_000, idle_uj: int = 0, **fields: Any) -> Window:
    """The second that begins ``number`` seconds after T0."""
    values: dict[str, Any] = {
        "engine": "e",
        "number": number,
        "variant": "m@a",
        "began_s": T0 + number,
        "ended_s": T0 + number + 1,
        "measurement": Measurement(seconds=1.0, energy_uj=energy_uj, idle_uj=idle_uj, method="replay"),
    }
    return Window(**{**values, **fields})


def piece(
    request_id: str,
    began_s: float,
    ended_s: float,
    work: Work,
    *,
    last: bool = False,
    lost: bool = False,
    **fields: Any,
) -> Slice:
    """A slice of a tenant's request that is named like it, at seconds after T0."""
    values: dict[str, Any] = {
        "request_id": request_id,
        "attempt": 0,
        "tenant": f"of-{request_id}",
        "family": "m",
        "variant": "a",
        "engine": "e",
        "began_s": T0 + began_s,
        "ended_s": T0 + ended_s,
        "work": work,
        "last": last,
        "lost": lost,
    }
    return Slice(**{**values, **fields})


def report(number: int, now_s: float, *slices: Slice, gateway: str = "g", bookings: Sequence[Booking] = ()) -> Report:
    return Report(gateway=gateway, number=number, now_s=T0 + now_s, slices=slices, bookings=tuple(bookings))


def posted(drawn: Drawn) -> dict[tuple[str, Kind], Amounts]:
    """What is posted by tenant and kind, transfers included."""
    found: dict[tuple[str, Kind], Amounts] = {}
    for posting in (posting for one in (*drawn.settled, *drawn.transfers) for posting in one.postings):
        key = (posting.account.tenant, posting.account.kind)
        found[key] = found.get(key, Amounts()) + posting.amounts
    return found


def charges_of(told: Books) -> tuple[Charge, ...]:
    """All that was ever charged to the requests of the gateway g, which has seen none of it."""
    return told.gateways.charges("g", 0)[1]


PREFILL = Work(prefill_tokens=100.0, prefill_context=5000.0)
DECODE = Work(decode_tokens=50.0, decode_context=6000.0)


def test_a_lone_request_gets_all_active_energy_and_the_time_that_it_was_there() -> None:
    told = books()
    told.report(report(1, 1.0, piece("r", 0.25, 0.75, PREFILL, last=True)), T0 + 1)
    told.window(window(0, energy_uj=5_000_000, idle_uj=1_000_000), T0 + 1)
    told.settle(T0 + 1)
    drawn = told.draw()
    assert posted(drawn) == {
        ("of-r", "active"): Amounts(energy_uj=4_000_000, cost_uusd=500, carbon_ug=400),
        ("", "idle"): Amounts(energy_uj=1_000_000, cost_uusd=500, carbon_ug=100),
    }
    (settled,) = drawn.settled
    assert settled.total == Amounts(energy_uj=5_000_000, cost_uusd=1000, carbon_ug=500)
    (share,) = settled.shares
    assert (share.usage, share.idle) == (
        Amounts(energy_uj=4_000_000, cost_uusd=500, carbon_ug=400),
        Amounts(energy_uj=1_000_000, cost_uusd=500, carbon_ug=100),
    )
    assert [(c.request_id, c.usage.energy_uj, c.final) for c in charges_of(told)] == [
        ("r", 4_000_000, True),
    ]
    assert (drawn.reports, drawn.windows) == ({"g": 1}, {"e": 0})


def test_a_window_waits_until_every_gateway_has_told_of_it() -> None:
    told = books()
    told.report(report(1, 1.5), T0 + 1.5)
    told.report(report(1, 0.9, gateway="slow"), T0 + 1.5)
    told.window(window(0), T0 + 1.5)
    told.settle(T0 + 1.5)
    assert told.draw().settled == ()
    told.report(report(2, 1.1, gateway="slow"), T0 + 1.6)
    told.settle(T0 + 1.6)
    assert len(told.draw().settled) == 1


def test_a_gateway_that_is_late_is_not_waited_for() -> None:
    told = books()
    told.report(report(1, 0.5, gateway="dead"), T0 + 0.5)
    told.window(window(0), T0 + 1)
    told.settle(T0 + 1 + LATE_S)
    assert len(told.draw().settled) == 1
    assert told.gateways.awaited(T0 + 1 + LATE_S) == []


def test_a_gateway_is_dead_after_a_minute_of_silence_and_not_after_a_stall() -> None:
    told = books()
    told.report(report(1, 0.5), T0 + 0.5)
    assert told.gateways.gone(T0 + 50) == []
    assert told.gateways.gone(T0 + 61) == ["g"]
    assert told.gateways.gone(T0 + 62) == []
    told.report(report(2, 63), T0 + 63)
    assert told.gateways.gone(T0 + 64) == []


def test_work_that_is_told_late_is_charged_in_the_next_window() -> None:
    told = books()
    told.window(window(0), T0 + 1)
    told.settle(T0 + 1 + LATE_S)
    told.report(report(1, 2.0, piece("r", 0.5, 0.9, PREFILL, last=True)), T0 + 2)
    told.window(window(1), T0 + 2)
    told.settle(T0 + 2 + LATE_S)
    found = posted(told.draw())
    assert found["of-r", "active"].energy_uj == 1_000_000


def test_what_a_failed_attempt_was_charged_is_moved_to_lost_and_its_request_told() -> None:
    told = books()
    told.report(report(1, 1.0, piece("r", 0.0, 1.0, PREFILL)), T0 + 1)
    told.window(window(0), T0 + 1)
    told.settle(T0 + 1)
    first = told.draw()
    assert posted(first)["of-r", "active"] == Amounts(energy_uj=1_000_000, cost_uusd=1000, carbon_ug=100)
    told.report(report(2, 2.0, piece("r", 1.0, 1.5, DECODE, last=True, lost=True)), T0 + 2)
    told.window(window(1), T0 + 2)
    told.settle(T0 + 2)
    second = told.draw()
    whole = posted(
        Drawn(**{**_fields(first), "settled": first.settled + second.settled, "transfers": second.transfers})
    )
    assert whole["of-r", "active"] == Amounts(energy_uj=0, cost_uusd=0, carbon_ug=0)
    assert whole["", "lost"] == Amounts(energy_uj=2_000_000, cost_uusd=1500, carbon_ug=200)
    assert sum(charge.usage.energy_uj or 0 for charge in charges_of(told)) == 0
    (transfer,) = second.transfers
    assert [(part.number, part.share.usage.energy_uj) for part in transfer.parts] == [(0, 1_000_000), (1, 1_000_000)]


def test_an_attempt_whose_last_slice_has_no_length_ends_in_the_window_that_it_ended_in() -> None:
    told = books()
    slices = piece("r", 0.5, 1.5, PREFILL), piece("r", 1.5, 1.5, DECODE, last=True, lost=True)
    told.report(report(1, 2.5, *slices), T0 + 2.5)
    told.window(window(0), T0 + 2.5)
    told.window(window(1), T0 + 2.5)
    told.settle(T0 + 2.5)
    assert posted(told.draw())["of-r", "active"].energy_uj == 0
    assert [(charge.usage.energy_uj, charge.final) for charge in charges_of(told)] == [(0, True)]


def test_settling_returns_what_was_posted_and_what_was_moved_to_lost() -> None:
    told = books()
    told.report(report(1, 1.0, piece("r", 0.0, 1.0, PREFILL, last=True, lost=True)), T0 + 1)
    told.window(window(0), T0 + 1)
    found = Counter[str]()
    for posting in told.settle(T0 + 1):
        found[posting.account.kind] += posting.amounts.energy_uj or 0
    assert found == {"active": 0, "idle": 0, "lost": 1_000_000}
    assert told.settle(T0 + 1.5) == []


def _fields(drawn: Drawn) -> dict[str, Any]:
    return {name: getattr(drawn, name) for name in Drawn.__dataclass_fields__}


def test_energy_of_a_start_is_startup_and_work_waits_for_a_window_in_which_the_engine_served() -> None:
    told = books()
    told.report(report(1, 2.0, piece("r", 0.5, 1.5, PREFILL, last=True)), T0 + 2)
    told.window(window(0, state="starting"), T0 + 2)
    told.window(window(1), T0 + 2)
    told.settle(T0 + 2)
    found = posted(told.draw())
    assert found["", "startup"] == Amounts(energy_uj=1_000_000, cost_uusd=1000, carbon_ug=100)
    assert found["of-r", "active"].energy_uj == 1_000_000


def test_an_unmeasured_window_costs_money_and_its_energy_is_unknown_not_0() -> None:
    told = books()
    told.report(report(1, 1.0, piece("r", 0.0, 0.5, PREFILL, last=True)), T0 + 1)
    told.window(window(0, energy_uj=None), T0 + 1)
    told.settle(T0 + 1)
    assert posted(told.draw()) == {
        ("of-r", "active"): Amounts(cost_uusd=500),
        ("", "idle"): Amounts(cost_uusd=500),
    }


def test_without_a_price_money_is_unknown_and_energy_is_not() -> None:
    told = books(price=None)
    told.window(window(0), T0 + 1)
    told.settle(T0 + 1 + LATE_S)
    assert posted(told.draw()) == {("", "idle"): Amounts(energy_uj=1_000_000)}


def test_work_that_only_the_engine_saw_is_unclaimed_and_not_the_other_requests_to_pay() -> None:
    told = books()
    told.report(report(1, 1.0, piece("r", 0.0, 1.0, DECODE, last=True)), T0 + 1)
    told.window(window(0, decode_tokens=1050, prefill_tokens=0), T0 + 1)
    told.settle(T0 + 1)
    found = posted(told.draw())
    assert found["", "unclaimed"].energy_uj is not None
    assert found["", "unclaimed"].energy_uj > 800_000
    assert found["of-r", "active"].energy_uj is not None
    assert found["of-r", "active"].energy_uj < 100_000


def test_counters_that_run_a_little_ahead_of_what_gateways_tell_claim_nothing() -> None:
    told = books()
    for number in range(30):
        seen = 60 if number % 2 else 40
        told.report(report(number + 1, number + 1.0, piece("r", number, number + 1.0, DECODE)), T0 + number + 1)
        told.window(window(number, decode_tokens=seen, prefill_tokens=0), T0 + number + 1)
        told.settle(T0 + number + 1)
    assert ("", "unclaimed") not in posted(told.draw())


def test_a_report_or_a_window_that_comes_twice_counts_once() -> None:
    told = books()
    for _ in range(2):
        told.report(report(1, 1.0, piece("r", 0.0, 1.0, PREFILL, last=True)), T0 + 1)
        told.window(window(0), T0 + 1)
        told.settle(T0 + 1)
    drawn = told.draw()
    assert len(drawn.settled) == 1
    assert posted(drawn)["of-r", "active"].energy_uj == 1_000_000


def test_a_new_bookkeeper_takes_no_report_before_the_oldest_that_is_not_on_disk() -> None:
    told = books()
    told.report(replace(report(5, 2.0), oldest=3), T0 + 2)
    told.report(replace(report(3, 1.0), oldest=3), T0 + 2)
    told.report(replace(report(5, 2.0), oldest=3), T0 + 2)
    assert told.draw().reports == {"g": 3}
    told.report(replace(report(4, 1.5), oldest=3), T0 + 2)
    told.report(replace(report(5, 2.0), oldest=3), T0 + 2)
    assert told.draw().reports == {"g": 5}


def test_a_report_is_acknowledged_when_all_of_it_is_settled_and_not_before() -> None:
    told = books()
    told.report(report(1, 1.0, piece("r", 0.0, 1.0, PREFILL)), T0 + 1)
    told.report(report(2, 1.2), T0 + 1.2)
    assert told.draw().reports == {}
    told.window(window(0), T0 + 1.2)
    told.settle(T0 + 1.2)
    assert told.draw().reports == {"g": 2}


def test_slices_of_an_engine_that_sends_no_more_windows_are_given_up() -> None:
    told = books()
    told.report(report(1, 1.0, piece("r", 0.0, 1.0, PREFILL, last=True)), T0 + 1)
    told.settle(T0 + 3)
    assert told.draw().reports == {}
    told.report(report(2, 20.0), T0 + 20)
    told.settle(T0 + 20)
    assert told.draw().reports == {"g": 2}
    assert [charge.final for charge in charges_of(told)] == [True]


def test_an_engine_that_sends_no_windows_holds_no_report_back_for_long_while_it_is_worked_with() -> None:
    told = books()
    acknowledged = {}
    for number in range(1, 40):
        told.report(report(number, number, piece(f"r{number}", number - 1, number, DECODE, last=True)), T0 + number)
        told.settle(T0 + number)
        acknowledged[number] = told.draw().reports.get("g", 0)
    assert acknowledged == {number: max(0, number - 9) for number in range(1, 40)}


@pytest.mark.parametrize("work_s", [3700.0, 9000.0])
def test_work_told_of_an_engine_silent_for_an_hour_holds_no_report_back_wherever_the_clock_was_set(
    work_s: float,
) -> None:
    told = books()
    told.report(report(1, 1.0, piece("r", 0.0, 1.0, DECODE, last=True)), T0 + 1)
    told.report(report(2, 3700.0, piece("s", work_s - 1, work_s, DECODE, last=True)), T0 + 3700)
    told.settle(T0 + 3700)
    told.settle(T0 + 3710)
    assert told.draw().reports == {"g": 2}


def test_an_engine_whose_windows_are_some_seconds_late_is_charged_for() -> None:
    told = books()
    told.report(report(1, 1.0), T0 + 1)
    told.window(window(0), T0 + 1)
    told.settle(T0 + 1)
    for number in range(2, 12):
        told.report(report(number, number, piece("r", number - 1, number, DECODE)), T0 + number)
        told.settle(T0 + number)
    for number in range(1, 11):
        told.window(window(number), T0 + 11)
    told.settle(T0 + 11)
    charged = {one.window.number for one in told.draw().settled if any(share.usage.energy_uj for share in one.shares)}
    assert charged == set(range(2, 11)), "all but the first, whose work was given up after 8 seconds"


def test_an_engine_that_ends_without_a_last_window_leaves_a_gap_that_the_books_show() -> None:
    told = books()
    told.window(window(0), T0 + 1)
    told.settle(T0 + 100)
    (_, gap) = told.draw().settled
    assert gap.window.state == "gap"
    assert gap.window.number > 0
    assert (gap.window.began_s, gap.window.ended_s) == (T0 + 1, T0 + 1)
    assert gap.window.measurement.energy_uj is None
    assert (gap.total, gap.postings) == (Amounts(), ())
    told.settle(T0 + 200)
    assert told.draw().settled == ()


def test_an_engine_that_ends_with_its_last_window_leaves_none() -> None:
    told = books()
    told.window(window(0, last=True), T0 + 1)
    told.settle(T0 + 100)
    assert [one.window.state for one in told.draw().settled] == ["serving"]


def test_an_engine_that_died_while_nobody_kept_books_leaves_a_gap_and_one_that_lives_does_not() -> None:
    told = books()
    told.recall([window(7), window(7, engine="alive")], T0 + 100)
    told.window(window(99, engine="alive"), T0 + 108)
    told.settle(T0 + 109)
    found = {(one.window.engine, one.window.state) for one in told.draw().settled}
    assert found == {("alive", "serving"), ("e", "gap")}


def test_windows_that_are_on_disk_are_not_settled_again_though_they_are_told_before_the_recall() -> None:
    told = books()
    for number in (6, 7, 8):
        told.window(window(number), T0 + 9)
    told.recall([window(7)], T0 + 9)
    told.window(window(5), T0 + 9)
    told.settle(T0 + 9 + LATE_S)
    drawn = told.draw()
    assert [one.window.number for one in drawn.settled] == [8]
    assert drawn.windows == {"e": 8}


def test_an_engine_whose_windows_are_all_on_disk_is_told_so_by_the_next_bookkeeper() -> None:
    told = books()
    told.window(window(7), T0 + 9)
    told.recall([window(7)], T0 + 9)
    told.settle(T0 + 9 + LATE_S)
    drawn = told.draw()
    assert (drawn.settled, drawn.windows) == ((), {"e": 7})


@pytest.mark.parametrize("told_first", [True, False])
def test_work_in_windows_that_are_on_disk_is_charged_to_nobody_again_and_a_slice_half_in_one_by_half(
    told_first: bool,
) -> None:
    told = books()
    retold = report(1, 1.5, piece("r", 0.0, 1.0, DECODE, last=True), piece("half", 0.5, 1.5, DECODE))
    if told_first:
        told.report(retold, T0 + 2)
    told.recall([window(0)], T0 + 2)
    if not told_first:
        told.report(retold, T0 + 2)
    told.report(report(2, 2.0, piece("s", 1.0, 1.5, DECODE.scaled(0.5))), T0 + 2)
    told.window(window(1), T0 + 2)
    told.settle(T0 + 2)
    drawn = told.draw()
    assert {share.request_id: share.usage.energy_uj for share in drawn.settled[0].shares} == {
        "half": 500_000,
        "s": 500_000,
    }
    assert drawn.reports == {"g": 2}
    assert [charge.request_id for charge in charges_of(told) if charge.final] == ["r"]


@pytest.mark.parametrize("on_disk", [window(0, state="starting"), window(0, began_s=T0 + 3600, ended_s=T0 + 3601)])
def test_a_window_on_disk_of_a_start_or_of_before_the_clock_was_set_back_has_no_work_in_it(on_disk: Window) -> None:
    told = books()
    told.recall([on_disk], T0 + 2)
    told.report(report(1, 2.0, piece("r", 0.0, 1.0, DECODE)), T0 + 2)
    told.window(window(1), T0 + 2)
    told.settle(T0 + 2)
    assert posted(told.draw())["of-r", "active"].energy_uj == 1_000_000


@pytest.mark.parametrize(("recalled", "settles_after_s"), [(True, LATE_S), (False, 10.0)])
def test_new_books_settle_once_they_know_the_gateways_and_the_disk_and_without_the_disk_later(
    recalled: bool, settles_after_s: float
) -> None:
    told = Books(PriceList(prices={}, intensities={}), began_s=T0)
    told.window(window(0, began_s=T0 - 9, ended_s=T0 - 8), T0)
    if recalled:
        told.recall([], T0 + 0.1)
    told.heard_engine("e", T0 + settles_after_s - 0.1)
    told.settle(T0 + settles_after_s - 0.1)
    assert told.draw().settled == ()
    told.settle(T0 + settles_after_s)
    assert len(told.draw().settled) == 1


def test_an_engine_that_was_given_up_and_tells_its_windows_again_is_settled_once() -> None:
    told = books()
    told.window(window(0), T0 + 1)
    told.settle(T0 + 20)
    told.window(window(0), T0 + 21)
    told.window(window(1, began_s=T0 + 20, ended_s=T0 + 21), T0 + 21)
    told.settle(T0 + 21 + LATE_S)
    assert [one.window.number for one in told.draw().settled] == [0, GAPS_FROM, 1]


def test_a_gap_does_not_say_that_its_engine_ended() -> None:
    told = books()
    told.window(window(0), T0 + 1)
    told.settle(T0 + 20)
    assert [one.window.last for one in told.draw().settled] == [False, False]


def test_charges_are_told_again_until_the_gateway_says_that_it_has_them() -> None:
    told = books()
    for number in range(2):
        pieces = [piece("r", float(number), number + 1.0, PREFILL, last=number == 1)]
        told.report(report(number + 1, number + 1.0, *pieces), T0 + number + 1)
        told.window(window(number), T0 + number + 1)
        told.settle(T0 + number + 1)
    number, charges = told.gateways.charges("g", 0)
    assert (number, [charge.final for charge in charges]) == (2, [False, True])
    assert told.gateways.charges("g", 0) == (2, charges)
    assert told.gateways.charges("g", 1) == (2, charges[1:])
    assert told.gateways.charges("g", 2) == (2, ())


def test_a_gateway_that_was_forgotten_gets_the_charges_since_it_is_back() -> None:
    told = books()
    told.report(report(1, 1.0, piece("r", 0.0, 1.0, PREFILL)), T0 + 1)
    told.window(window(0), T0 + 1)
    told.settle(T0 + 1)
    number, charges = told.gateways.charges("g", 500)
    assert (number, len(charges)) == (501, 1)
    assert told.gateways.charges("g", 501) == (501, ())


def test_an_attempt_whose_gateway_died_is_forgotten_and_one_that_goes_on_is_not() -> None:
    told = books()
    for number in range(2):
        pieces = [piece("goes-on", number * 3600.0, number * 3600.0 + 1, PREFILL)]
        if number == 0:
            pieces.append(piece("dead", 0.0, 1.0, PREFILL))
        told.report(report(number + 1, number * 3600.0 + 1, *pieces), T0 + number * 3600 + 1)
        told.window(window(number, began_s=T0 + number * 3600, ended_s=T0 + number * 3600 + 1), T0 + number * 3600 + 1)
        told.settle(T0 + number * 3600 + 1)
    told.settle(T0 + 3700)
    ends = [piece(name, 3601.0, 3602.0, PREFILL, last=True, lost=True) for name in ("goes-on", "dead")]
    told.report(report(3, 3702.0, *ends), T0 + 3702)
    told.settle(T0 + 3720)
    assert [(one.request_id, len(one.parts)) for one in told.draw().transfers] == [("goes-on", 2)]


def test_unclaimed_work_alone_takes_the_engines_time_too() -> None:
    told = books()
    told.window(window(0, decode_tokens=1000, prefill_tokens=0), T0 + 1)
    told.settle(T0 + 1 + LATE_S)
    found = posted(told.draw())
    assert found["", "unclaimed"].energy_uj == 1_000_000
    assert found["", "unclaimed"].cost_uusd == 1000


def test_work_told_of_an_engine_that_starts_for_long_is_given_up_and_holds_no_report_back() -> None:
    told = books()
    told.report(report(1, 1.0, piece("r", 0.0, 1.0, PREFILL)), T0 + 1)
    told.window(window(0), T0 + 1)
    told.settle(T0 + 1)
    told.draw()
    told.report(report(2, 2.0, piece("r", 1.0, 2.0, PREFILL, last=True, lost=True)), T0 + 2)
    for number in range(1, 10):
        told.report(report(number + 2, number + 1.0), T0 + number + 1)
        told.window(window(number, state="starting"), T0 + number + 1)
        told.settle(T0 + number + 1)
        assert told.draw().reports == {}
    told.report(report(12, 11.0), T0 + 11)
    told.window(window(10, state="starting"), T0 + 11)
    told.settle(T0 + 11)
    drawn = told.draw()
    assert drawn.reports == {"g": 12}
    assert [len(one.parts) for one in drawn.transfers] == [1]


def test_a_window_belongs_to_the_hour_in_which_it_ended() -> None:
    told = books()
    told.window(window(0, began_s=T0 - 0.5, ended_s=T0 + 0.5), T0 + 1)
    told.window(window(1, began_s=T0 + 3599.5, ended_s=T0 + 3600), T0 + 3600)
    told.settle(T0 + 4000)
    hours = [posting.account.hour for settled in told.draw().settled for posting in settled.postings]
    assert hours == [HOUR, HOUR + 1]


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[Window], list[list[Slice]]]:
    """An engine's windows, and for each second the slices that are told: overlapping, cancelled, lost, late, empty."""
    count = draw(st.integers(1, 6))
    windows = []
    for number in range(count):
        energy = draw(st.one_of(st.none(), st.integers(0, 10**9)))
        idle = draw(st.integers(0, energy)) if energy else 0
        state = draw(st.sampled_from(["serving", "serving", "serving", "starting"]))
        counted = draw(st.one_of(st.none(), st.integers(0, 5000)))
        windows.append(window(number, energy_uj=energy, idle_uj=idle, state=state, decode_tokens=counted))
    told: list[list[Slice]] = [[] for _ in range(count)]
    for _ in range(draw(st.integers(0, 8))):
        began = draw(st.floats(0, count))
        length = draw(st.floats(0, 3))
        prefill, decode = draw(st.floats(0, 4000)), draw(st.floats(0, 500))
        work = Work(
            prefill_tokens=prefill,
            prefill_context=prefill * draw(st.floats(0, 8000)),
            decode_tokens=decode,
            decode_context=decode * draw(st.floats(0, 8000)),
        )
        lost = draw(st.booleans())
        request, attempt = f"r{draw(st.integers(0, 3))}", draw(st.integers(0, 1))
        slices = told[draw(st.integers(0, count - 1))]
        last = draw(st.booleans())
        slices.append(piece(request, began, began + length, work, last=last, lost=lost, attempt=attempt))
    return windows, told


@given(lives())
def test_every_unit_that_is_measured_and_charged_is_posted_exactly_once(
    life: tuple[list[Window], list[list[Slice]]],
) -> None:
    windows, told_each_second = life
    told = books()
    drawn: list[Drawn] = []
    for number, (one, slices) in enumerate(zip(windows, told_each_second, strict=True)):
        told.report(report(number + 1, number + 1.0, *slices), T0 + number + 1)
        told.window(one, T0 + number + 1)
        told.settle(T0 + number + 1)
        drawn.append(told.draw())
    told.settle(T0 + 1000)
    drawn.append(told.draw())
    settled = [one for part in drawn for one in part.settled if one.window.state != "gap"]
    transfers = [one for part in drawn for one in part.transfers]
    assert [one.window for one in settled] == windows
    postings = [posting for one in (*settled, *transfers) for posting in one.postings]
    measured = sum(one.measurement.energy_uj or 0 for one in windows)
    assert sum(posting.amounts.energy_uj or 0 for posting in postings) == measured
    assert sum(posting.amounts.cost_uusd or 0 for posting in postings) == 1000 * len(windows)
    for one in settled:
        assert one.total.energy_uj == one.window.measurement.energy_uj
    accounts: Counter[tuple[int, str, str]] = Counter()
    for posting in postings:
        accounts[posting.account.hour, posting.account.tenant, posting.account.kind] += posting.amounts.energy_uj or 0
    assert min(accounts.values(), default=0) >= 0
    charges = Counter[str]()
    for charge in charges_of(told):
        charges[f"of-{charge.request_id}"] += charge.usage.energy_uj or 0
    active = Counter[str]()
    for (_, tenant, kind), energy_uj in accounts.items():
        if kind == "active":
            active[tenant] += energy_uj
    assert +charges == +active


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_clock_that_stepped_back_loses_nothing(seconds: float) -> None:
    told = books()
    told.report(report(1, 10.0, piece("r", 9.0, 10.0, PREFILL)), T0 + 10)
    told.window(window(0, began_s=T0 + 9, ended_s=T0 + 10), T0 + 10)
    told.settle(T0 + 10)
    # An hour back: the gateway's and the engine's clock both.
    back = -3600.0
    told.report(report(2, back + 11, piece("r", back + 10, back + 10 + seconds, DECODE, last=True)), T0 + back + 11)
    told.window(window(1, began_s=T0 + back + 10, ended_s=T0 + back + 11), T0 + back + 11)
    told.settle(T0 + back + 11)
    found = posted(told.draw())
    assert found["of-r", "active"].energy_uj == 2_000_000


def test_an_attempt_that_failed_is_lost_whole_though_its_gateways_clock_was_set_back_before_its_end() -> None:
    told = books()
    told.report(report(1, 1.0, piece("r", 0.0, 1.0, PREFILL)), T0 + 1)
    told.report(report(2, 0.2, piece("r", 0.1, 0.2, DECODE, last=True, lost=True)), T0 + 1)
    told.window(window(0, began_s=T0 - 0.3, ended_s=T0 + 0.7), T0 + 1)
    told.report(report(3, 1.3), T0 + 1.3)
    told.settle(T0 + 1.3)
    assert told.draw().transfers == ()
    told.window(window(1, began_s=T0 + 0.7, ended_s=T0 + 1.7), T0 + 1.7)
    told.report(report(4, 1.8), T0 + 1.8)
    told.settle(T0 + 1.8)
    (transfer,) = told.draw().transfers
    assert [part.number for part in transfer.parts] == [0, 1]
    charges = charges_of(told)
    assert sum(charge.usage.energy_uj or 0 for charge in charges) == 0
    assert [charge.final for charge in charges].index(True) == len(charges) - 1

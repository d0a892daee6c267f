"""What is written is counted once, and read as it was written, whatever the database."""

from random import Random

import pytest
from economizer.ledger.store import Closing, LedgerRefused, Store, Written
from economizer.ledger.types import (
    GAPS_FROM,
    NOBODY,
    UNKNOWN,
    AccountRow,
    Batch,
    Counterfactual,
    MeterRow,
    Moved,
    RequestRow,
    Share,
    Transfer,
)
from ledger_batches import FAMILY, VARIANT, account_rows, amounts, booking, charges, posting, settled, share, stream
from msgspec.structs import replace

DAY_S = 86_400.0
ACTIVE = posting(UNKNOWN).account


def test_a_request_is_read_as_it_was_booked_with_what_was_measured_of_it(store: Store) -> None:
    whole = booking(
        key_id="0123456789ab",
        stream=True,
        error="engine went away",
        ttft_s=0.1,
        tpot_s=1 / 3,
        prompt_tokens=2**53 + 1,
        batch=3.5,
        predicted_ttft_s=0.2,
        predicted_e2e_s=0.3,
        predicted_energy_uj=4,
        predicted_cost_uusd=5,
        estimate=amounts(6, None, 7),
        full=Counterfactual(variant="bf16", amounts=amounts(8, 9), low_uj=1, high_uj=2, low_uusd=3, high_uusd=4),
        arm="routed",
        degraded="monthly",
        policy="cheap",
        terms='{"ttft_s_max": 1}',
        refusals='{"bf16": "price"}',
    )
    usage, idle = amounts(2**60 + 1, 10, None), amounts(5, None, 1)
    window = settled(postings=(posting(usage), posting(idle, "idle", NOBODY)), shares=(share("r", usage, idle),))
    store.write(Batch(id="1", settled=(window,), bookings=(replace(whole, request_id="r"),)))
    assert store.request("r") == RequestRow(
        request_id="r",
        tenant="acme",
        family=FAMILY,
        variant=VARIANT,
        booking=replace(whole, request_id="r"),
        usage=usage,
        idle=idle,
        variance_uj2=0.25,
        method="replay",
    )


def test_a_request_that_nobody_booked_is_there_with_what_was_measured_of_it(store: Store) -> None:
    window = settled(postings=(posting(amounts(9)),), shares=(share("r", amounts(9)),))
    store.write(Batch(id="1", settled=(window,)))
    row = RequestRow(
        request_id="r",
        tenant="",
        family=FAMILY,
        variant=VARIANT,
        booking=None,
        usage=amounts(9),
        variance_uj2=0.25,
        method="replay",
    )
    assert store.request("r") == row
    assert list(store.requests(1800.0, 1801.0)) == [row]
    store.write(Batch(id="2", bookings=(booking("r", ended_s=1700.5),)))
    booked = replace(row, tenant="acme", booking=booking("r", ended_s=1700.5))
    assert store.request("r") == booked
    assert list(store.requests(1700.0, 1701.0)) == [booked]
    more = settled(1, ended_s=1900.0, postings=(posting(amounts(1)),), shares=(share("r", amounts(1)),))
    store.write(Batch(id="3", settled=(more,)))
    assert store.request("r") == replace(booked, usage=amounts(10), variance_uj2=0.5)
    assert list(store.requests(1700.0, 1701.0)) == [replace(booked, usage=amounts(10), variance_uj2=0.5)]


def test_a_batch_a_window_and_a_booking_count_once(store: Store) -> None:
    usage = amounts(100, 10, 1)
    window = settled(postings=(posting(usage),), shares=(share(usage=usage),))
    batch = Batch(id="1", settled=(window,), bookings=(booking(),))
    later = booking(outcome="failed", output_tokens=99)
    row = AccountRow(account=ACTIVE, amounts=usage, requests=1, prompt_tokens=30, cached_tokens=10, output_tokens=7)
    assert store.write(batch) == Written(windows=1, bookings=1)
    assert store.write(batch) == Written(repeated=True)
    assert store.write(replace(batch, id="2", bookings=(later,))) == Written()
    assert store.write(replace(batch, id="3", settled=(window, window), bookings=(later, later))) == Written()
    assert store.accounts(0, 3600) == [row]
    found = store.request("request-1")
    assert found is not None
    assert (found.usage, found.booking) == (usage, booking())


def test_what_is_twice_in_one_batch_counts_once(store: Store) -> None:
    window = settled(postings=(posting(amounts(100)),), shares=(share(usage=amounts(100)),))
    twice = Batch(id="1", settled=(window, window), bookings=(booking(), booking(outcome="failed")))
    assert store.write(twice) == Written(windows=1, bookings=1)
    found = store.request("request-1")
    assert found is not None
    assert (found.usage, found.booking) == (amounts(100), booking())
    assert [row.amounts for row in store.accounts(0, 3600)] == [amounts(100)]


def test_a_refused_request_is_in_no_account(store: Store) -> None:
    refused = booking(variant="", engine="", outcome="refused", status=422, attempts=0)
    store.write(Batch(id="1", bookings=(refused,)))
    assert store.accounts(0, DAY_S) == []
    found = store.request("request-1")
    assert found is not None
    assert found.booking == refused


def test_what_a_failed_attempt_took_is_lost_and_not_charged(store: Store) -> None:
    usage, idle = amounts(100, 10, None), amounts(3, 4, 5)
    first = share(usage=usage, idle=idle)
    moved = moving(first)
    again = share(usage=amounts(7), attempt=1)
    store.write(Batch(id="1", settled=(settled(0, postings=(posting(usage),), shares=(first,)),)))
    store.write(
        Batch(
            id="2",
            settled=(settled(1, postings=(posting(amounts(7)),), shares=(again,)),),
            transfers=(moved,),
            bookings=(booking(attempts=2),),
        )
    )
    found = store.request("request-1")
    assert found is not None
    assert (found.usage, found.idle, found.lost) == (amounts(7, 0, None), amounts(0, 0, 0), usage)
    assert [(row.account.kind, row.amounts, row.requests) for row in store.accounts(0, 3600)] == [
        ("lost", usage, 0),
        ("active", amounts(7, 0, None), 1),
    ]


def moving(*shares: Share) -> Transfer:
    """Of an attempt that the windows 0, 1, ... of an engine charged these shares."""
    parts = tuple(
        Moved(engine="engine-1", number=number, account=ACTIVE, share=one) for number, one in enumerate(shares)
    )
    return Transfer(request_id="request-1", attempt=0, parts=parts)


def test_a_transfer_moves_only_what_windows_charged_that_its_own_bookkeeper_wrote(store: Store) -> None:
    before, again, new = (share(usage=amounts(each, each)) for each in (100, 60, 7))
    store.write(Batch(id="1", epoch="a", settled=(settled(0, postings=(posting(before.usage),), shares=(before,)),)))
    windows = (
        settled(0, postings=(posting(again.usage),), shares=(again,)),
        settled(1, postings=(posting(new.usage),), shares=(new,)),
    )
    assert store.write(Batch(id="2", epoch="b", settled=windows)) == Written(windows=1)
    store.write(Batch(id="3", epoch="b", transfers=(moving(again, new, share(usage=amounts(1, 1))),)))
    found = store.request("request-1")
    assert found is not None
    assert (found.usage, found.lost) == (amounts(100, 100), amounts(7, 7))
    assert {row.account.kind: row.amounts for row in store.accounts(0, 3600)} == {
        "active": amounts(100, 100),
        "lost": amounts(7, 7),
    }
    assert store.close_check(0, 3600).closes


def test_a_transfer_that_the_next_bookkeeper_makes_again_counts_once(store: Store) -> None:
    one = share(usage=amounts(100, 10))
    window = settled(0, postings=(posting(one.usage),), shares=(one,))
    for epoch in ("a", "b"):
        store.write(Batch(id=epoch, epoch=epoch, settled=(window,), transfers=(moving(one),)))
    found = store.request("request-1")
    assert found is not None
    assert (found.usage, found.lost) == (amounts(0, 0), amounts(100, 10))
    assert store.close_check(0, 3600).closes


def test_an_engine_is_unfinished_until_its_last_window_or_a_gap_behind_its_latest(store: Store) -> None:
    ended = settled(1, engine="ended", last=True)
    dead = (settled(3, engine="dead"), settled(GAPS_FROM + 3, engine="dead", state="gap"))
    slow = (settled(4, engine="slow"), settled(GAPS_FROM + 3, engine="slow", state="gap"))
    old = (settled(6, engine="old"), settled(GAPS_FROM + 5, engine="old", state="gap", last=True))
    lives = (settled(0, engine="lives"), settled(9, engine="lives"))
    store.write(Batch(id="1", settled=(settled(0, engine="ended"), ended, *dead, *slow, *old, *lives)))
    assert {(one.engine, one.number) for one in store.unfinished()} == {("slow", 4), ("old", 6), ("lives", 9)}


def test_unknown_and_known_are_known_and_unknown_alone_stays_unknown(store: Store) -> None:
    for number, what in enumerate((UNKNOWN, amounts(None, 2), amounts(3, None), amounts(4, 5))):
        store.write(Batch(id=str(number), settled=(settled(number, postings=(posting(what),)),)))
    assert [row.amounts for row in store.accounts(0, 3600)] == [amounts(7, 7, None)]
    assert store.close_check(0, 3600) == Closing(accounts=amounts(7, 7), meters=amounts(7, 7))
    assert store.close_check(3600, 7200) == Closing(accounts=UNKNOWN, meters=UNKNOWN)


def test_an_hour_of_an_engine_says_how_much_of_it_was_measured(store: Store) -> None:
    windows = (
        settled(0, postings=(posting(amounts(10, 1)),)),
        settled(1, postings=(posting(amounts(None, 2)),), state="gap"),
        settled(2, postings=(posting(amounts(30, None, 3)),)),
        settled(3, ended_s=3600.0, postings=(posting(amounts(5), hour=1),)),
    )
    store.write(Batch(id="1", settled=windows[:1]))
    store.write(Batch(id="2", settled=windows[1:]))
    first = MeterRow(
        hour=0,
        engine="engine-1",
        family=FAMILY,
        variant=VARIANT,
        method="replay",
        windows=3,
        seconds=6.0,
        unmeasured_s=2.0,
        gaps=1,
        total=amounts(40, 3, 3),
    )
    assert store.meters(0, 3600) == [first]
    second = replace(first, hour=1, windows=1, seconds=2.0, unmeasured_s=0.0, gaps=0, total=amounts(5))
    assert store.meters(3599.5, 3600.5) == [first, second]


def test_books_that_miss_a_joule_do_not_close(store: Store) -> None:
    window = settled(postings=(posting(amounts(10, 1, 1)),))
    store.write(Batch(id="1", settled=(replace(window, postings=(posting(amounts(9, 1, 1)),)),)))
    found = store.close_check(0, 3600)
    assert (found.accounts, found.meters, found.closes) == (amounts(9, 1, 1), amounts(10, 1, 1), False)


@pytest.mark.parametrize("seed", range(5))
def test_batches_written_often_and_in_any_order_count_once(store: Store, seed: int) -> None:
    batches = list(stream(seed, 30))
    random = Random(seed)
    # A window and a booking may come again in another batch; a transfer is known by its batch alone.
    parts = [replace(batch, id=f"again-{batch.id}", transfers=(), coefficients={}) for batch in batches]
    writes = [*batches, *random.choices(batches, k=30), *random.sample(parts, k=15)]
    random.shuffle(writes)
    for batch in writes:
        store.write(batch)
    assert store.accounts(0, DAY_S) == account_rows(batches)
    assert store.close_check(0, DAY_S).closes
    found = {row.request_id: row for row in store.requests(0, DAY_S)}
    assert {key: (row.usage, row.idle, row.lost) for key, row in found.items()} == charges(batches)
    assert all(row.booking is not None for row in found.values())


def test_pages_of_requests_are_complete_and_in_order(store: Store) -> None:
    bookings = [booking(f"{number:05}", ended_s=float(number // 700)) for number in range(2500)]
    mine = [replace(one, tenant="globex") for one in bookings[::3]]
    store.write(Batch(id="1", bookings=tuple(Random(1).sample([*mine, *bookings], k=len(mine) + len(bookings)))))
    assert [row.request_id for row in store.requests(0, 10)] == [one.request_id for one in bookings]
    assert [row.request_id for row in store.requests(1, 2)] == [one.request_id for one in bookings[700:1400]]
    assert list(store.requests(0, 10, family="steam")) == []


def test_a_tenant_gets_its_own_receipt_and_no_other(store: Store) -> None:
    store.write(Batch(id="1", bookings=(booking("a"), booking("b", tenant="globex"))))
    found = store.request("a", tenant="acme")
    assert found is not None
    assert found.booking == booking("a")
    assert store.request("b", tenant="acme") is None
    assert store.request("c", tenant="acme") is None
    assert [row.request_id for row in store.requests(0, DAY_S, tenant="globex")] == ["b"]


def test_what_a_tenant_spent_counts_from_the_hour_and_leaves_overhead_out(store: Store) -> None:
    windows = (
        settled(0, postings=(posting(amounts(1, 1)), posting(amounts(2, 2), "idle", NOBODY))),
        settled(
            1, ended_s=3700.0, postings=(posting(amounts(4, 4), hour=1), posting(amounts(8), "active", "globex", 1))
        ),
        settled(2, ended_s=7300.0, postings=(posting(amounts(16, None, 5), hour=2),)),
    )
    store.write(Batch(id="1", settled=windows))
    assert store.spent(3600.0) == {"acme": amounts(20, 4, 5), "globex": amounts(8)}
    assert store.spent(0.0, ["acme", "nobody-we-know"]) == {"acme": amounts(21, 5, 5)}
    assert store.spent(0.0, []) == {}


def test_coefficients_are_the_last_that_were_written(store: Store) -> None:
    store.write(Batch(id="1", coefficients={"a": (0.1, 1e-300), "b": ()}))
    store.write(Batch(id="2", coefficients={"a": (1 / 3,)}))
    assert store.coefficients() == {"a": (1 / 3,), "b": ()}


def test_old_windows_requests_and_batches_are_pruned_and_sums_stay(store: Store) -> None:
    old = Batch(id="1", settled=(settled(postings=(posting(amounts(10)),)),), bookings=(booking("old"),))
    new = Batch(id="2", bookings=(booking("new", ended_s=4000.0),))
    store.write(old)
    store.write(new)
    before = (store.accounts(0, DAY_S), store.meters(0, DAY_S))
    store.prune(3000.0)
    assert [row.request_id for row in store.requests(0, DAY_S)] == ["new"]
    assert (store.accounts(0, DAY_S), store.meters(0, DAY_S)) == before
    assert store.write(old) == Written(repeated=True)  # written at 5000
    store.prune(5001.0)
    assert store.write(old) == Written(windows=1, bookings=1)


def test_a_text_that_no_database_can_hold_does_not_keep_a_batch_out(store: Store) -> None:
    store.write(Batch(id="1", bookings=(booking("bad", error="a\0b\ud800c"), booking("good"))))
    found = store.request("bad")
    assert found is not None
    assert found.booking == booking("bad", error="a\N{REPLACEMENT CHARACTER}b?c")
    assert store.request("good") is not None


@pytest.mark.parametrize("count", [2**63, 2**62, -1])
def test_a_count_that_cannot_be_a_requests_is_unknown_and_keeps_no_batch_out(store: Store, count: int) -> None:
    bad = booking("bad", output_tokens=count, predicted_energy_uj=count, estimate=amounts(count, 1))
    full = Counterfactual(variant="bf16", amounts=amounts(count), high_uj=count)
    store.write(Batch(id="1", bookings=(replace(bad, full=full), booking("good"))))
    found = store.request("bad")
    assert found is not None
    assert found.booking == booking(
        "bad", output_tokens=None, estimate=amounts(None, 1), full=Counterfactual(variant="bf16", amounts=UNKNOWN)
    )
    assert sum(row.requests for row in store.accounts(0, DAY_S)) == 2


def test_a_number_that_no_database_can_hold_is_refused_and_leaves_nothing(store: Store) -> None:
    bad = Batch(id="1", settled=(settled(steps=2**63),), bookings=(booking("good"),))
    with pytest.raises(LedgerRefused, match="refuses"):
        store.write(bad)
    assert store.request("good") is None
    assert store.write(replace(bad, settled=())) == Written(bookings=1)


def test_more_old_requests_than_are_pruned_at_once_are_all_pruned(store: Store) -> None:
    store.write(Batch(id="1", bookings=tuple(booking(str(number)) for number in range(20_001))))
    store.prune(4000.0)
    assert list(store.requests(0, DAY_S)) == []

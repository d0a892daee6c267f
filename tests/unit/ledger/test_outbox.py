"""What is on its way to disk gets there in its order, and one bad part keeps nothing else from it."""

from pathlib import Path

import pytest
from economizer.ledger.books import Drawn
from economizer.ledger.outbox import Outbox
from economizer.ledger.store import Store
from economizer.ledger.types import Batch, Moved, Transfer
from ledger_batches import amounts, booking, posting, settled, share

DAY_S = 86_400.0
NOTHING = Drawn(settled=(), transfers=(), bookings=(), coefficients={}, reports={}, windows={})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"sqlite:///{tmp_path}/ledger.db")


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def outbox(spool: Path, store: Store | None = None) -> Outbox:
    made = Outbox(spool, 10**8)
    made.store = store
    return made


def put(into: Outbox, batch: Batch) -> None:
    into.add(batch, NOTHING)
    into.write()


def charged(number: int) -> Batch:
    """A window that acme's request-1 is charged 10 microjoules for."""
    postings = (posting(amounts(10)),)
    return Batch(
        id=str(number), epoch="a", settled=(settled(number, postings=postings, shares=(share(usage=amounts(10)),)),)
    )


def lost(*numbers: int) -> Transfer:
    """What it was charged in these windows is lost."""
    account, took = posting(amounts(10)).account, share(usage=amounts(10))
    return Transfer(
        request_id="request-1",
        attempt=0,
        parts=tuple(Moved(engine="engine-1", number=number, account=account, share=took) for number in numbers),
    )


def energies(store: Store) -> dict[str, int | None]:
    return {row.account.kind: row.amounts.energy_uj for row in store.accounts(0, DAY_S)}


@pytest.mark.parametrize("spooled", [False, True])
def test_of_a_batch_that_the_database_refuses_for_good_only_the_bad_part_is_put_aside(
    spool: Path, store: Store, caplog: pytest.LogCaptureFixture, spooled: bool
) -> None:
    bad = settled(1, engine="bad", steps=2**63)
    batch = Batch(
        id="x",
        epoch="a",
        settled=(bad, *charged(0).settled),
        bookings=(booking("good"),),
        transfers=(lost(0),),
        coefficients={"m@a|replay": (1.0,)},
    )
    sent = outbox(spool, None if spooled else store)
    put(sent, batch)
    sent.store = store
    put(sent, charged(2))
    assert energies(store) == {"active": 10, "lost": 10}
    assert store.request("good") is not None
    assert store.coefficients() == {"m@a|replay": (1.0,)}
    assert not sent.spooled
    (aside,) = spool.iterdir()
    assert str(aside) in caplog.text
    assert "['bad'] is put aside" in caplog.text
    aside.rename(spool / "000000000001-0.batch")
    asked: list[Batch] = []
    outbox_of_aside = outbox(spool, store)
    store.write = asked.append  # type: ignore[method-assign,assignment]
    outbox_of_aside.replay()
    assert asked == [Batch(id="x-0", epoch="a", settled=(bad,))]


def test_a_part_that_is_refused_without_a_spool_is_logged_whole_and_holds_nothing_up(
    spool: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    spool.write_text("not a folder")
    sent = outbox(spool, store)
    put(sent, Batch(id="x", settled=(settled(1, engine="bad", steps=2**63),), bookings=(booking("good"),)))
    assert store.request("good") is not None
    assert "steps=9223372036854775808" in caplog.text


def test_what_is_new_waits_for_what_is_in_a_spool_that_cannot_be_used_for_a_while(spool: Path, store: Store) -> None:
    sent = outbox(spool)
    put(sent, charged(0))
    sent.store = store
    away = spool.rename(spool.with_name("away"))
    spool.write_text("not a folder")
    put(sent, Batch(id="later", epoch="a", transfers=(lost(0),)))
    assert energies(store) == {}
    assert sent.spooled
    assert sent.waiting() != []
    spool.unlink()
    away.rename(spool)
    sent.write()
    assert energies(store) == {"active": 0, "lost": 10}
    assert not sent.spooled
    assert sent.waiting() == []


def test_a_folder_that_never_could_be_used_holds_nothing_as_far_as_is_known(spool: Path, store: Store) -> None:
    spool.write_text("not a folder")
    sent = outbox(spool, store)
    put(sent, charged(0))
    assert energies(store) == {"active": 10}
    assert not sent.spooled


def test_who_is_forgotten_is_not_acknowledged_for_ever(spool: Path, store: Store) -> None:
    sent = outbox(spool, store)
    told = Drawn(
        settled=(), transfers=(), bookings=(), coefficients={}, reports={"g": 1, "old": 2}, windows={"e": 3, "gone": 4}
    )
    sent.add(Batch(id="x"), told)
    sent.write()
    sent.forget({"g"}, {"e"})
    assert (sent.reports, sent.windows) == ({"g": 1}, {"e": 3})

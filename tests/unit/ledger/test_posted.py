from economizer.ledger.posted import Posted
from economizer.ledger.types import Amounts
from ledger_batches import amounts, posting
from msgspec.structs import replace


def test_what_was_posted_is_taken_once_and_summed_over_hours() -> None:
    posted = Posted()
    posted.add([posting(amounts(3, 4), hour=1), posting(amounts(5, None), hour=2), posting(amounts(7), "idle", "")])
    assert posted.take() == (posting(amounts(8, 4), hour=2), posting(amounts(7), "idle", ""))
    assert posted.take() == ()


def test_what_is_taken_back_waits_until_as_much_is_posted_again() -> None:
    posted = Posted()
    posted.add([posting(amounts(5, 5))])
    posted.take()
    posted.add([posting(amounts(-4, 2)), posting(amounts(4), "lost", "")])
    assert posted.take() == (posting(amounts(None, 2)), posting(amounts(4), "lost", ""))
    posted.add([posting(amounts(3))])
    assert posted.take() == ()
    posted.add([posting(amounts(3))])
    assert posted.take() == (posting(amounts(2)),)


def test_what_nobody_asks_for_takes_no_more_room() -> None:
    posted = Posted()
    for hour in range(1000):
        posted.add([posting(amounts(1, 1, 1), hour=hour)])
    (one,) = posted.take()
    assert one == replace(posting(Amounts(energy_uj=1000, cost_uusd=1000, carbon_ug=1000)), account=one.account)

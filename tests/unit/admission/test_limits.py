"""Rate limits and budgets, asked by several gateways at made-up moments."""

import pickle
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count

import pytest
from economizer.admission.buckets import Rate
from economizer.admission.limits import Ask, Limits, Refused, SoftEnd, Use, Verdict
from economizer.admission.tenants import Budget, Tenant
from economizer.errors import Overloaded, QuotaSpent
from hypothesis import given
from hypothesis import strategies as st

NOW_S = datetime.fromisoformat("2026-02-28T12:00:00Z").timestamp()
MIDNIGHT_S = datetime.fromisoformat("2026-03-01T00:00:00Z").timestamp()
CENT = 10_000
_IDS = count()


def ask(settings: Tenant, tokens: int = 1, predicted: Use | None = None, **changed: str) -> Ask:
    made = Ask(
        request_id=f"r{next(_IDS)}",
        gateway="g1",
        tenant="acme",
        settings=settings,
        tokens=tokens,
        predicted=Use() if predicted is None else predicted,
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def usd(cents: int) -> Use:
    return Use(uusd=cents * CENT)


def refusal(verdict: Verdict) -> Refused:
    assert verdict.refused is not None
    return verdict.refused


def test_a_tenant_without_limits_is_always_let_in() -> None:
    assert Limits().admit(ask(Tenant(), tokens=10**9, predicted=usd(10**9)), NOW_S) == Verdict()


def test_a_verdict_says_how_the_rates_stand() -> None:
    limits, settings = Limits(), Tenant(requests_per_minute=60, tokens_per_minute=6000)
    assert limits.admit(ask(settings, tokens=1500), NOW_S) == Verdict(
        requests=Rate(limit=60, remaining=59, reset_s=1.0), tokens=Rate(limit=6000, remaining=4500, reset_s=15.0)
    )
    assert limits.admit(ask(settings, tokens=1000), NOW_S + 5) == Verdict(
        requests=Rate(limit=60, remaining=59, reset_s=1.0), tokens=Rate(limit=6000, remaining=4000, reset_s=20.0)
    )


def test_a_burst_is_over_after_a_minute_s_worth_and_the_refusal_says_when_to_come_back() -> None:
    limits, settings = Limits(), Tenant(requests_per_minute=2)
    assert limits.admit(ask(settings, gateway="g1"), NOW_S).admitted
    assert limits.admit(ask(settings, gateway="g2"), NOW_S).admitted
    refused = limits.admit(ask(settings, gateway="g3"), NOW_S)
    message = "The limit of 2 requests per minute is reached. Try again in 31 s."
    assert refused == Verdict(
        refused=Refused(code="rate_limit_exceeded", message=message, retry_after_s=30.001),
        requests=Rate(limit=2, remaining=0, reset_s=60.0),
    )
    assert not limits.admit(ask(settings), NOW_S + 29.9).admitted
    assert limits.admit(ask(settings), NOW_S + 30.001).admitted


def test_the_rate_that_takes_longer_says_when_to_come_back() -> None:
    limits, settings = Limits(), Tenant(requests_per_minute=1, tokens_per_minute=600)
    limits.admit(ask(settings, tokens=100), NOW_S)
    refused = refusal(limits.admit(ask(settings, tokens=600), NOW_S))
    assert "The limit of 1 requests per minute and 600 tokens per minute is reached" in refused.message
    assert refused.retry_after_s == pytest.approx(60, abs=0.01)


def test_a_request_that_no_minute_allows_is_refused_for_good() -> None:
    assert refusal(Limits().admit(ask(Tenant(tokens_per_minute=100), tokens=101), NOW_S)) == Refused(
        code="rate_limit_exceeded",
        message="This request may need 101 tokens, prompt and answer, which is more than the 100 that may be used in "
        "a minute: it would never be let in. Ask for fewer.",
        retry_after_s=None,
    )


def test_tenants_do_not_use_each_other_s_limits() -> None:
    limits, settings = Limits(), Tenant(requests_per_minute=1, budgets=(Budget(per="day", usd=1.0),))
    assert limits.admit(ask(settings, predicted=usd(100), tenant="acme"), NOW_S).admitted
    assert limits.admit(ask(settings, predicted=usd(100), tenant="beta"), NOW_S).admitted


@pytest.mark.parametrize(
    ("really", "remaining"),
    [(None, 400), (600, 400), (100, 900), (0, 1000), (1000, 0), (5000, 0)],
)
def test_the_tokens_that_were_really_needed_correct_the_estimate(really: int | None, remaining: int) -> None:
    limits, settings = Limits(), Tenant(tokens_per_minute=1000)
    first = ask(settings, tokens=600)
    limits.admit(first, NOW_S)
    limits.finished(first.request_id, really, NOW_S)
    assert limits.admit(ask(settings, tokens=0), NOW_S).tokens == Rate(
        limit=1000, remaining=remaining, reset_s=(600 if really is None else really) * 0.06
    )


def test_what_was_needed_beyond_the_estimate_is_waited_for() -> None:
    limits, settings = Limits(), Tenant(tokens_per_minute=1000)
    first = ask(settings, tokens=500)
    limits.admit(first, NOW_S)
    limits.finished(first.request_id, 3000, NOW_S)
    assert refusal(limits.admit(ask(settings, tokens=500), NOW_S)).retry_after_s == pytest.approx(150, abs=0.01)
    assert limits.admit(ask(settings, tokens=500), NOW_S + 151).admitted


def test_a_limit_that_is_changed_holds_from_the_next_request_on() -> None:
    limits = Limits()
    limits.admit(ask(Tenant(requests_per_minute=100)), NOW_S)
    assert limits.admit(ask(Tenant(requests_per_minute=2)), NOW_S).requests == Rate(limit=2, remaining=1, reset_s=30.0)
    assert limits.admit(ask(Tenant()), NOW_S) == Verdict()


def test_a_hard_budget_refuses_what_it_does_not_hold_and_says_which_and_until_when() -> None:
    limits, settings = Limits(), Tenant(budgets=(Budget(per="month", usd=100.0),))
    limits.spent("acme", usd(80_12), NOW_S)
    assert limits.admit(ask(settings, predicted=usd(19_00)), NOW_S).admitted
    refused = refusal(limits.admit(ask(settings, predicted=usd(89)), NOW_S))
    assert refused == Refused(
        code="insufficient_quota",
        message="The budget of 100 usd per month does not allow this request: 99.12 is used or reserved, and it is "
        "predicted to take 0.89. The budget begins anew at 2026-03-01T00:00:00Z.",
        retry_after_s=43_200.0,
    )
    assert limits.admit(ask(settings, predicted=usd(88)), NOW_S).admitted


def test_what_a_budget_alone_would_not_hold_need_not_come_back() -> None:
    settings = Tenant(budgets=(Budget(per="day", grams_co2=0.5),))
    refused = refusal(Limits().admit(ask(settings, predicted=Use(ug=500_001)), NOW_S))
    assert (refused.code, refused.retry_after_s) == ("insufficient_quota", None)
    assert "0 is used or reserved, and it is predicted to take 0.500001" in refused.message


def test_a_request_of_unknown_use_reserves_nothing_and_is_refused_once_the_budget_is_spent() -> None:
    limits, settings = Limits(), Tenant(budgets=(Budget(per="day", joules=50.0),))
    limits.spent("acme", Use(uj=49_999_999), NOW_S)
    assert limits.admit(ask(settings), NOW_S).admitted
    assert limits.admit(ask(settings), NOW_S).admitted
    limits.spent("acme", Use(uj=1), NOW_S)
    assert "50 is used or reserved. The budget" in refusal(limits.admit(ask(settings), NOW_S)).message


def test_what_is_taken_back_may_be_spent_again() -> None:
    limits, settings = Limits(), Tenant(budgets=(Budget(per="day", usd=1.0),))
    limits.spent("acme", usd(100), NOW_S)
    assert not limits.admit(ask(settings), NOW_S).admitted
    limits.spent("acme", usd(-1), NOW_S)
    assert limits.admit(ask(settings, predicted=usd(1)), NOW_S).admitted


def test_every_budget_of_a_tenant_counts() -> None:
    settings = Tenant(
        budgets=(Budget(per="day", usd=1.0), Budget(per="month", usd=5.0), Budget(per="day", joules=10.0))
    )

    def codes(spent_before_cents: int, predicted: Use) -> str | None:
        limits = Limits()
        limits.spent("acme", usd(spent_before_cents), NOW_S - 86_400)
        verdict = limits.admit(ask(settings, predicted=predicted), NOW_S)
        return None if verdict.refused is None else verdict.refused.message.split(" does")[0]

    assert codes(0, Use(uusd=100 * CENT, uj=10_000_000)) is None
    assert codes(0, Use(uusd=101 * CENT)) == "The budget of 1 usd per day"
    assert codes(401, Use(uusd=100 * CENT)) == "The budget of 5 usd per month"
    assert codes(0, Use(uj=10_000_001)) == "The budget of 10 joules per day"


def test_a_spent_quota_is_told_before_a_rate_that_is_reached() -> None:
    limits, settings = Limits(), Tenant(requests_per_minute=1, budgets=(Budget(per="day", usd=1.0),))
    limits.admit(ask(settings, predicted=usd(100)), NOW_S)
    assert refusal(limits.admit(ask(settings, predicted=usd(1)), NOW_S)).code == "insufficient_quota"


def test_past_its_soft_end_a_budget_asks_for_cheaper_terms() -> None:
    limits, settings = Limits(), Tenant(budgets=(Budget(per="month", usd=100.0, soft=0.8),))
    limits.spent("acme", usd(79_99), NOW_S)
    assert limits.admit(ask(settings), NOW_S).soft is None
    limits.spent("acme", usd(13), NOW_S)
    assert limits.admit(ask(settings), NOW_S).soft == SoftEnd(unit="usd", words="usd per month: 80.12 of 100")


def test_what_is_reserved_counts_towards_the_soft_end_and_what_the_request_itself_may_take_does_not() -> None:
    limits, settings = Limits(), Tenant(budgets=(Budget(per="month", usd=100.0, soft=0.5),))
    first, second = ask(settings, predicted=usd(50_00)), ask(settings, predicted=usd(1))
    assert limits.admit(first, NOW_S).soft is None
    assert limits.admit(second, NOW_S).soft == SoftEnd(unit="usd", words="usd per month: 50 of 100")
    limits.spent("acme", usd(50_00), NOW_S)  # what the first really took is booked before its reservation ends
    limits.finished(first.request_id, 1, NOW_S)
    assert limits.admit(ask(settings), NOW_S).soft is not None


def test_a_budget_that_is_not_hard_never_refuses() -> None:
    limits, settings = Limits(), Tenant(budgets=(Budget(per="day", joules=100.0, hard=False),))
    limits.spent("acme", Use(uj=99_999_999), NOW_S)
    assert limits.admit(ask(settings), NOW_S) == Verdict()
    limits.spent("acme", Use(uj=20_000_001), NOW_S)
    found = limits.admit(ask(settings, predicted=Use(uj=10**12)), NOW_S)
    assert found == Verdict(soft=SoftEnd(unit="joules", words="joules per day: 120 of 100"))


def test_of_several_soft_ends_the_one_that_is_used_up_furthest_is_named() -> None:
    budgets = (
        Budget(per="day", usd=100.0, soft=0.1),
        Budget(per="day", joules=10.0, soft=0.1),
        Budget(per="day", grams_co2=10.0, soft=0.9),
    )
    limits = Limits()
    limits.spent("acme", Use(uusd=20_000_000, uj=3_000_000, ug=8_000_000), NOW_S)
    found = limits.admit(ask(Tenant(budgets=budgets)), NOW_S).soft
    assert found == SoftEnd(unit="joules", words="joules per day: 3 of 10")


def test_limits_that_begin_with_the_books_sums_forget_what_they_had_counted() -> None:
    limits, day, month = Limits(), Budget(per="day", usd=1000.0), Budget(per="month", usd=1000.0)
    limits.spent("acme", usd(100), NOW_S)
    limits.spent("globex", usd(100), NOW_S)
    limits.begin_with({"day": {"acme": usd(7)}, "month": {"acme": usd(30)}}, NOW_S)
    limits.spent("acme", usd(1), NOW_S)
    assert [limits.used_micro("acme", budget, NOW_S) for budget in (day, month)] == [8 * CENT, 31 * CENT]
    assert [limits.used_micro("globex", budget, NOW_S) for budget in (day, month)] == [0, 0]


def test_a_new_day_and_a_new_month_begin_with_nothing_spent() -> None:
    limits, settings = Limits(), Tenant(budgets=(Budget(per="day", usd=1.0), Budget(per="month", usd=1.0)))
    limits.spent("acme", usd(100), NOW_S)
    assert not limits.admit(ask(settings), MIDNIGHT_S - 0.001).admitted
    assert limits.admit(ask(settings, predicted=usd(100)), MIDNIGHT_S).admitted


def test_what_settles_late_is_counted_where_it_was_used() -> None:
    limits, day = Limits(), Budget(per="day", usd=1.0)
    limits.spent("acme", usd(40), MIDNIGHT_S + 10)
    limits.spent("acme", usd(50), MIDNIGHT_S - 1)
    assert limits.used_micro("acme", day, MIDNIGHT_S + 10) == 40 * CENT
    assert limits.used_micro("acme", day, MIDNIGHT_S - 1) == 50 * CENT


def test_what_runs_over_midnight_stays_reserved() -> None:
    limits, day = Limits(), Budget(per="day", usd=1.0)
    first = ask(Tenant(budgets=(day,)), predicted=usd(70))
    limits.admit(first, MIDNIGHT_S - 1)
    assert limits.used_micro("acme", day, MIDNIGHT_S + 1) == 70 * CENT
    limits.finished(first.request_id, 1, MIDNIGHT_S + 2)
    assert limits.used_micro("acme", day, MIDNIGHT_S + 2) == 0


def test_the_books_of_a_month_are_loaded_hour_by_hour_in_any_order() -> None:
    limits, began_s = Limits(), datetime.fromisoformat("2026-02-01T00:00:00Z").timestamp()
    for hour in [*range(0, 660, 2), *range(659, 0, -2)]:
        limits.spent("acme", usd(1), began_s + hour * 3600)
    assert limits.used_micro("acme", Budget(per="month", usd=1.0), NOW_S) == 660 * CENT
    assert limits.used_micro("acme", Budget(per="day", usd=1.0), NOW_S) == 12 * CENT


def test_a_request_that_is_asked_for_twice_is_admitted_once() -> None:
    limits, budget = Limits(), Budget(per="day", usd=1.0)
    settings = Tenant(requests_per_minute=10, tokens_per_minute=100, budgets=(budget,))
    first = ask(settings, tokens=30, predicted=usd(60))
    verdict = limits.admit(first, NOW_S)
    assert limits.admit(first, NOW_S + 1) == verdict
    assert limits.used_micro("acme", budget, NOW_S) == 60 * CENT
    assert limits.admit(ask(settings, tokens=0), NOW_S).tokens == Rate(limit=100, remaining=70, reset_s=18.0)


def test_a_request_that_finishes_twice_or_was_never_asked_for_gives_nothing_back() -> None:
    limits, settings = Limits(), Tenant(tokens_per_minute=100, budgets=(Budget(per="day", usd=1.0),))
    first, second = ask(settings, tokens=40, predicted=usd(50)), ask(settings, tokens=40, predicted=usd(50))
    limits.admit(first, NOW_S)
    limits.admit(second, NOW_S)
    for request_id in (first.request_id, first.request_id, "nobody's"):
        limits.finished(request_id, 10, NOW_S)
    assert limits.used_micro("acme", settings.budgets[0], NOW_S) == 50 * CENT
    assert limits.admit(ask(settings, tokens=0), NOW_S).tokens == Rate(limit=100, remaining=50, reset_s=30.0)


def test_what_a_dead_gateway_s_requests_had_reserved_is_released() -> None:
    limits, budget = Limits(), Budget(per="day", usd=1.0)
    for gateway, cents in (("g1", 10), ("g1", 20), ("g2", 40)):
        limits.admit(ask(Tenant(budgets=(budget,)), predicted=usd(cents), gateway=gateway), NOW_S)
    limits.gone("g1")
    assert limits.used_micro("acme", budget, NOW_S) == 40 * CENT


def test_a_request_of_whose_end_nobody_tells_is_forgotten_after_an_hour() -> None:
    limits, budget = Limits(), Budget(per="month", usd=1.0)
    lost = ask(Tenant(budgets=(budget,)), predicted=usd(70))
    limits.admit(lost, NOW_S)
    limits.admit(ask(Tenant(), tenant="other"), NOW_S + 3600)
    assert limits.used_micro("acme", budget, NOW_S + 3600) == 70 * CENT
    limits.admit(ask(Tenant(), tenant="other"), NOW_S + 3660)
    assert limits.used_micro("acme", budget, NOW_S + 3660) == 0
    limits.finished(lost.request_id, 1, NOW_S + 3670)
    assert limits.used_micro("acme", budget, NOW_S + 3670) == 0


def test_a_clock_that_steps_back_an_hour_neither_refills_nor_locks_out() -> None:
    limits, settings = Limits(), Tenant(requests_per_minute=60)
    for _ in range(60):
        assert limits.admit(ask(settings), NOW_S).admitted
    assert not limits.admit(ask(settings), NOW_S - 3600).admitted
    assert limits.admit(ask(settings), NOW_S - 3598.9).admitted
    assert not limits.admit(ask(settings), NOW_S - 3598.9).admitted


def test_a_clock_that_steps_back_over_midnight_finds_the_day_as_it_was() -> None:
    limits, day = Limits(), Budget(per="day", usd=1.0)
    limits.spent("acme", usd(90), MIDNIGHT_S - 1)
    limits.spent("acme", usd(20), MIDNIGHT_S + 1)
    assert [limits.used_micro("acme", day, MIDNIGHT_S + s) for s in (1, -1, 1)] == [20 * CENT, 90 * CENT, 20 * CENT]


def test_a_clock_that_was_years_ahead_for_a_while_leaves_today_s_books_alone() -> None:
    limits, day = Limits(), Budget(per="day", usd=1.0)
    limits.spent("acme", usd(90), NOW_S)
    limits.spent("acme", usd(20), NOW_S + 1e9)
    assert limits.used_micro("acme", day, NOW_S) == 90 * CENT


def test_idle_tenants_take_no_memory() -> None:
    limits, settings = Limits(), Tenant(requests_per_minute=60, tokens_per_minute=100)
    for number in range(1000):
        one = ask(settings, tokens=100, predicted=usd(5), tenant=f"t{number}")
        limits.admit(one, NOW_S)
        limits.finished(one.request_id, None, NOW_S)
    full = len(pickle.dumps(limits))
    limits.admit(ask(settings, tenant="last"), NOW_S + 61)
    assert len(pickle.dumps(limits)) < full / 50


def test_a_tenant_who_still_owes_tokens_is_not_forgotten() -> None:
    limits, settings = Limits(), Tenant(tokens_per_minute=100)
    first = ask(settings, tokens=1)
    limits.admit(first, NOW_S)
    limits.finished(first.request_id, 1000, NOW_S)
    limits.admit(ask(settings, tenant="other"), NOW_S + 120)
    assert not limits.admit(ask(settings), NOW_S + 120).admitted


@pytest.mark.parametrize(("code", "error"), [("rate_limit_exceeded", Overloaded), ("insufficient_quota", QuotaSpent)])
def test_a_refusal_becomes_the_error_of_its_code(code: str, error: type[Overloaded]) -> None:
    found = Refused(code=code, message="why", retry_after_s=2.0).error()  # type: ignore[arg-type]
    assert type(found) is error
    assert (found.code, found.message, found.retry_after_s) == (code, "why", 2.0)


def test_what_a_request_cannot_need_is_not_asked_for() -> None:
    with pytest.raises(ValueError, match=r"^tokens is -1"):
        ask(Tenant(), tokens=-1)
    with pytest.raises(ValueError, match=r"^predicted is "):
        ask(Tenant(), predicted=usd(-1))


# Laws.


@dataclass(frozen=True)
class Step:
    """What happens next: some time passes, the clock is set back by some, and a request comes to a gateway."""

    passes_s: float
    back_s: float
    gateway: str
    tokens: int
    cents: int
    finishes: bool
    share: float  # of what was predicted, the request really uses this much


steps = st.lists(
    st.builds(
        Step,
        passes_s=st.floats(0, 90),
        back_s=st.just(0.0) | st.floats(0, 200_000),
        gateway=st.sampled_from(["g1", "g2", "g3"]),
        tokens=st.integers(0, 120),
        cents=st.integers(0, 40),
        finishes=st.booleans(),
        share=st.floats(0, 1),
    ),
    max_size=60,
)


@given(steps=steps, requests=st.integers(1, 10), tokens=st.integers(1, 200))
def test_no_span_of_time_admits_more_than_a_burst_and_what_refilled_in_it(
    steps: list[Step], requests: int, tokens: int
) -> None:
    limits, settings = Limits(), Tenant(requests_per_minute=requests, tokens_per_minute=tokens)
    really_s, clock_s = 0.0, NOW_S
    admitted: list[tuple[float, int]] = []
    for step in steps:
        really_s += step.passes_s
        clock_s += step.passes_s - step.back_s
        if limits.admit(ask(settings, tokens=step.tokens, gateway=step.gateway), clock_s).admitted:
            admitted.append((really_s, step.tokens))
    for first, (began_s, _) in enumerate(admitted):
        sum_tokens = 0
        for number, (ended_s, used) in enumerate(admitted[first:], 1):
            sum_tokens += used
            minutes = 1 + (ended_s - began_s) / 60
            assert number <= requests * minutes + 1e-6
            assert sum_tokens <= tokens * minutes + 1e-3


@given(steps=steps, day_cents=st.integers(1, 100), month_cents=st.integers(1, 300))
def test_hard_budgets_are_kept_where_requests_use_no_more_than_was_predicted(
    steps: list[Step], day_cents: int, month_cents: int
) -> None:
    budgets = (Budget(per="day", usd=day_cents / 100), Budget(per="month", usd=month_cents / 100))
    limits, now_s = Limits(), MIDNIGHT_S - 600
    running: list[tuple[Ask, Step]] = []
    for step in steps:
        now_s += step.passes_s / 2  # all steps take less than the hour after which a request is forgotten
        one = ask(Tenant(budgets=budgets), predicted=usd(step.cents), gateway=step.gateway)
        before = [limits.used_micro("acme", budget, now_s) for budget in budgets]
        if limits.admit(one, now_s).admitted:
            running.append((one, step))
            for budget, used in zip(budgets, before, strict=True):
                now_used = limits.used_micro("acme", budget, now_s)
                assert now_used == used + step.cents * CENT <= budget.amount_micro
        while running and step.finishes:
            done, its = running.pop(0)
            limits.spent("acme", Use(uusd=int(its.cents * CENT * its.share)), now_s)
            limits.finished(done.request_id, 1, now_s)
    for done, _ in running:
        limits.finished(done.request_id, None, now_s)
    assert all(limits.used_micro("acme", budget, now_s) <= budget.amount_micro for budget in budgets)


@given(steps=steps)
def test_a_refused_request_changes_nothing_and_its_wait_is_long_enough(steps: list[Step]) -> None:
    budget = Budget(per="day", usd=1.0, soft=0.5)
    limits, settings = Limits(), Tenant(requests_per_minute=5, tokens_per_minute=100, budgets=(budget,))
    now_s = NOW_S
    for step in steps:
        now_s += step.passes_s
        before = deepcopy(limits)
        one = ask(settings, tokens=step.tokens, predicted=usd(step.cents), gateway=step.gateway)
        refused = limits.admit(one, now_s).refused
        if refused is None:
            continue
        probe = ask(settings, tokens=1)
        assert deepcopy(limits).admit(probe, now_s) == before.admit(probe, now_s)
        if refused.code == "rate_limit_exceeded" and refused.retry_after_s is not None:
            assert deepcopy(limits).admit(one, now_s + refused.retry_after_s).admitted

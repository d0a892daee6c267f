import pytest
from economizer.errors import InvalidRequest
from economizer.ledger.when import length_s, span

NOW_S = 1_764_001_805.5  # 2025-11-24 16:30:05.5 UTC
HOUR_S = 3600
MIDNIGHT_S = 1_763_942_400
END_S = 1_764_003_600  # of this hour


@pytest.mark.parametrize(
    ("since", "until", "began_s", "ended_s"),
    [
        ("today", None, MIDNIGHT_S, END_S),
        ("yesterday", "today", MIDNIGHT_S - 24 * HOUR_S, MIDNIGHT_S),
        ("this-month", None, MIDNIGHT_S - 23 * 24 * HOUR_S, END_S),
        ("last-month", "this-month", MIDNIGHT_S - 54 * 24 * HOUR_S, MIDNIGHT_S - 23 * 24 * HOUR_S),
        ("24h", None, END_S - 25 * HOUR_S, END_S),
        ("7d", "1d", END_S - 169 * HOUR_S, END_S - 24 * HOUR_S),
        ("15m", None, END_S - HOUR_S, END_S),
        ("2025-11-24", "2025-11-25", MIDNIGHT_S, MIDNIGHT_S + 24 * HOUR_S),
        ("2025-11-24T10:59", "2025-11-24T11:01", MIDNIGHT_S + 10 * HOUR_S, MIDNIGHT_S + 12 * HOUR_S),
        ("2025-11-24T10:00+02:00", "2025-11-24T09:00Z", MIDNIGHT_S + 8 * HOUR_S, MIDNIGHT_S + 9 * HOUR_S),
    ],
)
def test_since_goes_down_and_until_up_to_a_whole_hour(
    since: str, until: str | None, began_s: int, ended_s: int
) -> None:
    assert span(since, until, NOW_S) == (began_s, ended_s)


@pytest.mark.parametrize("text", ["", "tomorrow", "24", "1w", "-1h", "2025-13-01", "24h ", "٣h"])
def test_other_words_are_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        span(text, None, NOW_S)
    assert refused.value.param == "since"
    assert refused.value.message.startswith(f"since is {text!r}: must be an ISO date or time")


@pytest.mark.parametrize(
    ("since", "until", "message"),
    [
        ("today", "yesterday", "until is 'yesterday': must be after since ('today')"),
        ("2099-01-01", None, "until is 'now': must be after since ('2099-01-01')"),
        ("2025-11-24", "2025-11-24", "until is '2025-11-24': must be after since ('2025-11-24')"),
        ("999999999d", None, "since is '999999999d': must not be before 1970"),
        ("0001-01-01", None, "since is '0001-01-01': must not be before 1970"),
    ],
)
def test_times_that_hold_nothing_are_refused(since: str, until: str | None, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        span(since, until, NOW_S)
    assert refused.value.message == message


def test_lengths_of_time() -> None:
    assert [length_s("grace", text) for text in ("0m", "90m", "1h", "90d")] == [0, 5400, 3600, 7_776_000]
    with pytest.raises(InvalidRequest, match=r"^grace is 'soon': must be a length of time such as 15m, 24h or 7d$"):
        length_s("grace", "soon")

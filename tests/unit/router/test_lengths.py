import pytest
from economizer.router.lengths import OutputLengths
from hypothesis import given
from hypothesis import strategies as st


def after(*tokens: int, caller: str = "ann", family: str = "m") -> OutputLengths:
    lengths = OutputLengths()
    for count in tokens:
        lengths.observe(caller, family, count)
    return lengths


def test_before_any_answer_a_usual_length_is_expected() -> None:
    assert OutputLengths().predict("ann", "m", None) == 128.0


def test_a_caller_is_expected_to_go_on_as_before() -> None:
    assert after(40, 60).predict("ann", "m", None) == pytest.approx(50.0)


def test_a_new_caller_is_expected_to_do_as_the_family_does() -> None:
    lengths = after(10, 10, 10)
    assert lengths.predict("bob", "m", None) == 10.0
    assert lengths.predict("ann", "other", None) == 128.0


def test_a_callers_own_lengths_count_in_full_after_five_answers() -> None:
    lengths = after(*[100] * 95)
    for _ in range(4):
        lengths.observe("bob", "m", 10)
    whole = lengths.predict("eve", "m", None)
    assert lengths.predict("bob", "m", None) == pytest.approx(whole + 0.8 * (10 - whole))
    lengths.observe("bob", "m", 10)
    assert lengths.predict("bob", "m", None) == pytest.approx(10.0)


def test_a_change_of_habit_is_learnt() -> None:
    assert after(*[100] * 50, *[10] * 50).predict("ann", "m", None) == pytest.approx(10.0, abs=1.0)


def test_the_callers_cap_bounds_the_expectation_and_is_never_taken_for_it() -> None:
    assert after(50).predict("ann", "m", 20) == 20.0
    assert after(50).predict("ann", "m", 4096) == 50.0
    assert after(50).predict("ann", "m", 0) == 0.0


def test_the_caller_seen_longest_ago_is_forgotten_first() -> None:
    lengths = OutputLengths()
    for caller in ["ann", *(f"c{number}" for number in range(9_999))]:
        for _ in range(5):
            lengths.observe(caller, "m", 7 if caller == "ann" else 100)
    lengths.observe("bob", "m", 100)  # the 10,001st
    assert lengths.predict("ann", "m", None) == pytest.approx(100.0)
    assert lengths.predict("c9998", "m", None) == pytest.approx(100.0)


def test_a_caller_who_comes_again_is_not_forgotten() -> None:
    lengths = after(*[7] * 5)
    for number in range(9_999):
        lengths.observe(f"c{number}", "m", 100)
    lengths.observe("ann", "m", 7)
    lengths.observe("bob", "m", 100)  # the 10,001st
    assert lengths.predict("ann", "m", None) == pytest.approx(7.0)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=40))
def test_an_expectation_is_within_what_was_seen(tokens: list[int]) -> None:
    assert min(tokens) - 1e-6 <= after(*tokens).predict("ann", "m", None) <= max(tokens) + 1e-6

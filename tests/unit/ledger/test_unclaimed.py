from collections.abc import Iterable

import pytest
from economizer.energy.types import NO_WORK, Measurement, Window, Work
from economizer.ledger.unclaimed import Unclaimed
from hypothesis import given
from hypothesis import strategies as st


def window(prefill: int | None, decode: int | None) -> Window:
    """A second in which the engine's counters grew so much."""
    return Window(
        engine="e",
        number=0,
        variant="m@a",
        began_s=0.0,
        ended_s=1.0,
        measurement=Measurement(seconds=1.0, energy_uj=0, method="replay"),
        prefill_tokens=prefill,
        decode_tokens=decode,
    )


def decoded(tokens: float) -> Work:
    """Tokens of which each attends to 50."""
    return Work(decode_tokens=tokens, decode_context=50 * tokens)


def found(seconds: Iterable[tuple[int | None, float]], unclaimed: Unclaimed | None = None) -> list[float]:
    """The decoded tokens that are nobody's in each second, of those counted and told."""
    balance = unclaimed or Unclaimed()
    return [balance.of(window(0, counted), decoded(told)).decode_tokens for counted, told in seconds]


TOKENS = st.integers(0, 100_000)
SECONDS = st.lists(st.tuples(st.none() | TOKENS, st.floats(0, 1e5)), max_size=40)


@given(SECONDS)
def test_what_is_nobodys_is_never_negative_and_less_than_the_engine_counted(
    seconds: list[tuple[int | None, float]],
) -> None:
    for tokens, (counted, _) in zip(found(seconds), seconds, strict=True):
        assert 0 <= tokens <= 0.9 * (counted or 0) + 1e-6


@given(st.lists(st.tuples(TOKENS, st.booleans()), max_size=40))
def test_counters_that_show_a_seconds_tokens_in_that_second_or_in_the_next_claim_nothing(
    seconds: list[tuple[int, bool]],
) -> None:
    counted, behind = list[tuple[int, float]](), 0
    for told, late in seconds:
        counted.append((behind if late else behind + told, told))
        behind = told if late else 0
    assert max(found(counted), default=0) <= 1e-6


@given(st.lists(st.tuples(TOKENS, st.integers(0, 64)), max_size=40))
def test_gateways_that_tell_a_few_tokens_late_leave_nothing_unclaimed(seconds: list[tuple[int, int]]) -> None:
    counted, late = list[tuple[int, float]](), 0
    for tokens, held in seconds:
        held = min(held, late + tokens)
        counted.append((tokens, late + tokens - held))
        late = held
    assert max(found(counted), default=0) <= 1e-6


@given(st.lists(TOKENS, max_size=40))
def test_a_gateway_that_counts_a_tenth_too_few_leaves_nothing_unclaimed(seconds: list[int]) -> None:
    assert max(found((counted, 0.9 * counted) for counted in seconds), default=0) <= 1e-6


@given(st.lists(st.tuples(TOKENS, st.booleans()), max_size=40))
def test_an_engine_that_did_not_answer_counts_it_all_in_its_next_answer(seconds: list[tuple[int, bool]]) -> None:
    counted, behind = list[tuple[int | None, float]](), 0
    for told, answers in seconds:
        behind += told
        counted.append((behind if answers else None, told))
        behind = 0 if answers else behind
    assert max(found(counted), default=0) <= 1e-6


@given(st.lists(st.tuples(TOKENS, TOKENS), max_size=20))
def test_without_counters_nothing_is_unclaimed(told: list[tuple[int, int]]) -> None:
    unclaimed = Unclaimed()
    for prefill, decode in told:
        work = Work(prefill_tokens=prefill, prefill_context=prefill, decode_tokens=decode, decode_context=decode)
        assert unclaimed.of(window(None, None), work) == NO_WORK


def test_embeddings_decode_nothing_and_only_what_is_beyond_them_is_unclaimed() -> None:
    unclaimed = Unclaimed()
    told = Work(prefill_tokens=500, prefill_context=50_000)
    for _ in range(20):
        assert unclaimed.of(window(500, 0), told) == NO_WORK
    assert unclaimed.of(window(5_500, 0), told).decode_tokens == 0
    assert unclaimed.of(window(5_500, 0), told).prefill_tokens > 4_000


@pytest.mark.parametrize("killed", [1.0, 0.5])
def test_the_work_of_a_gateway_that_was_killed_is_found_within_three_seconds(killed: float) -> None:
    unclaimed = Unclaimed()
    assert found([(1_000, 1_000.0)] * 60, unclaimed) == [0.0] * 60
    after = found([(1_000, 1_000 * (1 - killed))] * 10, unclaimed)
    assert after[2] > 1_000 * (killed - 0.25)
    assert after[3:] == pytest.approx([1_000 * (killed - 0.1)] * 7, abs=10)


def test_an_engine_that_only_others_call_works_for_nobody_from_the_first_second() -> None:
    assert found([(1_000, 0.0)] * 2) == pytest.approx([836.0, 893.6])


def test_what_was_told_too_much_hides_others_work_for_a_few_seconds_only() -> None:
    unclaimed = Unclaimed()
    found([(0, 5_000.0)], unclaimed)
    hidden = found([(1_000, 0.0)] * 10, unclaimed)
    assert hidden[0] == 0
    assert hidden[-1] == pytest.approx(894, abs=1)


def test_an_unclaimed_token_attends_to_as_many_as_those_that_were_told_of_lately() -> None:
    unclaimed = Unclaimed()
    assert unclaimed.of(window(0, 1_000), NO_WORK).decode_context == 836 * 200  # nobody has told of any yet
    for _ in range(100):
        unclaimed.of(window(0, 10), Work(decode_tokens=10, decode_context=9_000))
    for _ in range(10_000):
        unclaimed.of(window(0, 0), NO_WORK)
    work = unclaimed.of(window(3_000, 3_000), NO_WORK)
    assert work.decode_context == pytest.approx(900 * work.decode_tokens)
    assert work.prefill_context == pytest.approx(200 * work.prefill_tokens)
    for _ in range(40):
        unclaimed.of(window(0, 10), Work(decode_tokens=10, decode_context=1_000))
    later = unclaimed.of(window(0, 50_000), NO_WORK)
    assert later.decode_context / later.decode_tokens == pytest.approx(100, rel=0.2)

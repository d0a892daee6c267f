from economizer.energy.types import Work
from economizer.gateway.relay import StreamMeter, Usage
from economizer.gateway.work import AttemptWork
from economizer.ledger.types import Slice

EPOCH_S = 1000.0


def attempt(
    *,
    output_tokens_max: int | None = None,
    ttft_s: float | None = 1.0,
    streamed: bool = False,
    cached_tokens: float = 0.0,
) -> AttemptWork:
    """Sent at 10 s with a prompt of 100 tokens; a first token is expected after 1 s, another each 0.1 s."""
    return AttemptWork(
        request_id="r",
        attempt=0,
        tenant="t",
        family="m",
        variant="a",
        engine="e",
        sent_s=10.0,
        prompt_tokens=100.0,
        cached_tokens=cached_tokens,
        output_tokens_max=output_tokens_max,
        streamed=streamed,
        ttft_s=ttft_s,
        tpot_s=0.1,
    )


def seen(events: int) -> StreamMeter:
    meter = StreamMeter(None)
    meter.feed(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n' * events)
    return meter


def works(slices: list[Slice]) -> list[tuple[float, float, float, float, bool]]:
    """(began, ended, prefill tokens, decode tokens, last) of each slice, on the gateway's clock."""
    return [
        (one.began_s - EPOCH_S, one.ended_s - EPOCH_S, one.work.prefill_tokens, one.work.decode_tokens, one.last)
        for one in slices
    ]


def rounded(slices: list[Slice]) -> list[tuple[float, float, float, float, bool]]:
    return [(*(round(value, 6) for value in one[:4]), one[4]) for one in works(slices)]


def whole(slices: list[Slice]) -> Work:
    return sum((one.work for one in slices), Work())


def test_a_prompt_is_prefilled_evenly_until_its_first_token_is_expected() -> None:
    one = attempt()
    assert rounded(one.tell(10.25, EPOCH_S)) == [(10.0, 10.25, 25.0, 0.0, False)]
    assert rounded(one.tell(10.5, EPOCH_S)) == [(10.25, 10.5, 25.0, 0.0, False)]


def test_a_stream_that_waits_for_its_first_token_has_decoded_nothing_and_never_prefilled_all() -> None:
    one = attempt(streamed=True)
    assert rounded(one.tell(10.5, EPOCH_S)) == [(10.0, 10.5, 40.0, 0.0, False)]
    assert rounded(one.tell(11.0, EPOCH_S)) == [(10.5, 11.0, 40.0, 0.0, False)]
    assert rounded(one.tell(12.0, EPOCH_S)) == [(11.0, 12.0, 10.0, 0.0, False)]
    assert 0 < whole(one.tell(13.0, EPOCH_S)).prefill_tokens < 10


def test_a_stream_counts_its_tokens_from_its_first_one_on() -> None:
    one = attempt(streamed=True)
    one.tell(10.5, EPOCH_S)
    one.first_s, one.stream = 10.75, seen(6)
    assert rounded(one.tell(11.0, EPOCH_S)) == [(10.5, 10.75, 60.0, 0.0, False), (10.75, 11.0, 0.0, 6.0, False)]


def test_an_answer_that_comes_whole_goes_by_its_prediction_until_its_end_puts_it_right() -> None:
    one = attempt()
    assert rounded(one.tell(12.0, EPOCH_S)) == [(10.0, 11.0, 100.0, 0.0, False), (11.0, 12.0, 0.0, 10.0, False)]
    one.end(12.5, Usage(prompt_tokens=120, output_tokens=40, cached_tokens=10))
    (*_, last) = told = one.tell(13.0, EPOCH_S)
    assert last.last
    assert last.ended_s == EPOCH_S + 12.5
    assert round(whole(told).prefill_tokens, 6) == 10.0
    assert round(whole(told).decode_tokens, 6) == 30.0


def test_contexts_are_the_sums_of_what_each_token_attends_to() -> None:
    one = attempt()
    one.end(10.5, Usage(prompt_tokens=100, output_tokens=10, cached_tokens=20))
    found = whole(one.tell(10.5, EPOCH_S))
    assert found == Work(prefill_tokens=80.0, prefill_context=4800.0, decode_tokens=10.0, decode_context=1050.0)


def test_cached_tokens_that_are_expected_are_in_every_context_from_the_start() -> None:
    one = attempt(cached_tokens=20.0)
    (half,) = one.tell(10.5, EPOCH_S)
    assert half.work == Work(prefill_tokens=40.0, prefill_context=40.0 * 60)
    one.end(11.0, Usage(prompt_tokens=100, output_tokens=10, cached_tokens=20))
    rest = whole(one.tell(11.0, EPOCH_S))
    assert rest == Work(prefill_tokens=40.0, prefill_context=40.0 * 60, decode_tokens=10.0, decode_context=1050.0)


def test_cached_tokens_that_nobody_counted_stay_as_they_were_expected() -> None:
    one = attempt(streamed=True, cached_tokens=20.0)
    one.first_s, one.stream = 10.5, seen(4)
    one.end(10.75, Usage(prompt_tokens=100, output_tokens=3, counted=True))
    assert whole(one.tell(11.0, EPOCH_S)).prefill_tokens == 80.0


def test_no_more_is_expected_than_the_caller_allows() -> None:
    one = attempt(output_tokens_max=3)
    assert round(whole(one.tell(20.0, EPOCH_S)).decode_tokens, 6) == 3.0


def test_a_cancelled_stream_keeps_what_it_was_told_of() -> None:
    one = attempt(streamed=True)
    one.first_s, one.stream = 10.5, seen(4)
    one.end(10.75, Usage(prompt_tokens=100, output_tokens=3, counted=True))
    found = one.tell(11.0, EPOCH_S)
    assert found[-1].last
    assert not found[-1].lost
    assert whole(found).decode_tokens == 3.0


def test_an_attempt_that_is_cut_before_its_first_byte_has_done_as_much_of_its_prompt_as_was_expected_by_then() -> None:
    for streamed, prefilled in ((False, 50.0), (True, 40.0)):
        one = attempt(streamed=streamed)
        one.tell(10.25, EPOCH_S)
        one.end(10.5, None)
        (last,) = one.tell(11.0, EPOCH_S)
        assert (last.last, round(last.work.prefill_tokens, 6)) == (True, prefilled / 2)


def test_a_failed_attempt_is_lost_at_its_end_alone() -> None:
    one = attempt()
    assert [part.lost for part in one.tell(10.5, EPOCH_S)] == [False]
    one.end(11.0, None, lost=True)
    found = one.tell(11.0, EPOCH_S)
    assert [(part.last, part.lost) for part in found] == [(True, True)]


def test_what_the_engine_refused_made_it_do_nothing_more() -> None:
    one = attempt()
    one.end(10.0, None, worked=False)
    (last,) = one.tell(10.25, EPOCH_S)
    assert last.last
    assert last.work.none


def test_only_the_first_end_counts() -> None:
    one = attempt()
    one.end(10.5, Usage(prompt_tokens=100, output_tokens=1))
    one.end(99.0, None, lost=True)
    (*_, last) = one.tell(99.0, EPOCH_S)
    assert (last.ended_s, last.lost) == (EPOCH_S + 10.5, False)


def test_without_a_prediction_something_is_told_all_the_same() -> None:
    assert not whole(attempt(ttft_s=None).tell(11.0, EPOCH_S)).none


def test_what_is_over_before_it_is_told_of_is_told_in_one_slice_where_it_was_brief() -> None:
    brief, longer = attempt(ttft_s=0.02), attempt(ttft_s=0.02)
    brief.end(10.0625, Usage(prompt_tokens=100, output_tokens=7))
    longer.end(10.125, Usage(prompt_tokens=100, output_tokens=7))
    assert rounded(brief.tell(11.0, EPOCH_S)) == [(10.0, 10.0625, 100.0, 7.0, True)]
    assert rounded(longer.tell(11.0, EPOCH_S)) == [(10.0, 10.02, 100.0, 0.0, False), (10.02, 10.125, 0.0, 7.0, True)]
    assert whole(brief.tell(12.0, EPOCH_S)).none

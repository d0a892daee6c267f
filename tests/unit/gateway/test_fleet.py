from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from economizer.gateway.fleet import Fleet, ReplicaReport, Timing, VariantRecord
from economizer.gateway.relay import Usage
from economizer.router.types import ReplicaState, VariantState
from economizer.variants.catalog import Catalog
from economizer.variants.types import Family
from examples import SPEED, chat, variant
from hypothesis import given
from hypothesis import strategies as st

SECONDS = count()


def report(replica_id: str = "r1", *, state: str = "ready", running: int = 0, waiting: int = 0) -> ReplicaReport:
    return ReplicaReport(
        id=replica_id, state=state, url="http://127.0.0.1:1", secret="s", running=running, waiting=waiting
    )


def record(*reports: ReplicaReport, now_s: float = 100.0) -> VariantRecord:
    made = VariantRecord(variant(concurrency_max=4), queue_max=8)
    made.refresh(reports, now_s)
    return made


def load(of: VariantRecord, replica_id: str = "r1") -> tuple[int, int]:
    """Running and waiting requests of a replica."""
    found = of.replica(replica_id)
    assert found is not None
    return found.running, found.waiting


@pytest.mark.parametrize(
    ("stats", "read", "ready"),
    [
        ({}, ReplicaReport(id="r1", state="starting"), False),
        ({"state": "ready"}, ReplicaReport(id="r1", state="ready"), False),  # where, it does not say
        (
            {"state": "ready", "endpoint": "http://h:1", "secret": "s", "running": 2, "waiting": None, "kv_used": 0.5},
            ReplicaReport(id="r1", state="ready", url="http://h:1", secret="s", running=2, kv_used=0.5),
            True,
        ),
        (
            {"state": "draining", "endpoint": "http://h:1"},
            ReplicaReport(id="r1", state="draining", url="http://h:1"),
            False,
        ),
    ],
)
def test_a_replicas_report_is_read(stats: dict[str, Any], read: ReplicaReport, ready: bool) -> None:
    assert ReplicaReport.read("r1", stats) == read
    assert read.ready == ready


def test_a_snapshot_is_the_variant_with_its_replicas_in_the_order_of_their_names() -> None:
    of = record(report("r2", running=5), report("r1", state="starting"))
    assert of.snapshot() == VariantState(
        variant=of.variant,
        replicas=(
            ReplicaState(id="r1", ready=False),
            ReplicaState(id="r2", running=4, waiting=1),  # four fit into its batch
        ),
        latency=of.latency,
        queue_max=8,
    )
    assert of.snapshot() is of.snapshot()


def test_a_burst_is_counted_before_the_next_report() -> None:
    of = record(report())
    requests = [of.dispatch("r1", chat(prompt_tokens=100), 100.1) for _ in range(6)]
    assert load(of) == (4, 2)
    assert of.snapshot().replicas[0].queued_tokens == 600
    requests[0].prefilled(100.2)
    assert of.snapshot().replicas[0].queued_tokens == 500
    for request in requests:
        request.ended(100.3, failed=False)
    assert load(of) == (0, 0)
    assert of.snapshot().replicas[0].queued_tokens == 0


def test_own_requests_are_not_counted_again_in_the_engines_report() -> None:
    of = record(report())
    own = [of.dispatch("r1", chat(), 100.1) for _ in range(3)]
    of.refresh([report(running=4, waiting=1)], 101.0)  # three are ours, two another gateway's
    assert load(of) == (4, 1)
    for request in own:
        request.ended(101.1, failed=False)
    assert load(of) == (2, 0)  # the report still counts our three


def test_requests_of_others_are_counted_in_full_once_ours_are_out_of_the_reports() -> None:
    of = record(report())
    of.dispatch("r1", chat(), 100.1).ended(100.2, failed=False)
    for now_s in (102.5, 105.0, 107.5):
        of.refresh([report(running=2)], now_s)
    assert load(of) == (2, 0)


def test_a_replica_that_broke_a_connection_is_left_out_for_a_moment() -> None:
    of = record(report())
    of.dispatch("r1", chat(), 100.0).ended(101.0, failed=True)
    assert not of.any_ready
    of.refresh([report()], 103.9)
    assert not of.any_ready
    of.refresh([report()], 104.0)
    assert of.any_ready


def test_a_request_that_ends_well_leaves_its_replica_trusted() -> None:
    of = record(report())
    of.dispatch("r1", chat(), 100.0).ended(101.0, failed=False)
    assert of.any_ready


def test_a_replica_that_is_gone_is_forgotten_with_what_it_held() -> None:
    of = record(report("r1"), report("r2"))
    of.dispatch("r1", chat(session="ann", prefix_hashes=(1,)), 100.0).ended(100.1, failed=False)
    assert of.affinity.session("ann") == "r1"
    of.refresh([report("r2")], 101.0)
    assert (of.replica("r1"), of.report("r1"), of.affinity.session("ann")) == (None, None, None)
    assert [one.id for one in of.reports()] == ["r2"]
    assert [one.id for one in of.snapshot().replicas] == ["r2"]


def test_a_request_may_outlive_the_report_of_its_replica() -> None:
    of = record(report("r1"))
    request = of.dispatch("r1", chat(prompt_tokens=100), 100.0)
    of.refresh([], 101.0)
    request.ended(102.0, failed=True)
    assert of.snapshot().replicas == ()
    of.refresh([], 103.0)
    of.refresh([report("r1")], 104.0)  # the same name again starts from nothing: nobody suspects it
    assert of.any_ready
    assert load(of) == (0, 0)


def test_replicas_are_ranked_among_those_that_serve_offers() -> None:
    of = record(report("r1", running=4), report("r2"), report("r3"), report("r4", state="starting"))
    assert of.rank(["r1", "r2", "r4", "unheard-of"], chat()) == ["r2", "r1"]


def test_the_engine_knows_a_model_by_the_variants_id_or_the_adapters_name() -> None:
    assert record().name_at_engine(chat()) == "m@full"
    assert record().name_at_engine(chat(lora="french")) == "french"


def test_requests_that_wait_for_a_first_replica_are_demand() -> None:
    of = record()
    with of.waiting(), of.waiting():
        assert of.demand(100.0) == 2
    assert of.demand(100.0) == 0


def test_requests_that_wait_while_a_replica_is_ready_are_no_demand() -> None:
    of = record(report())
    with of.waiting():
        assert of.demand(100.0) == 0


def test_a_wait_that_is_broken_off_is_demand_no_longer() -> None:
    of = record()
    with pytest.raises(KeyError), of.waiting():
        raise KeyError
    assert of.demand(100.0) == 0


def test_a_wish_for_a_sleeping_variant_is_demand_for_half_a_minute_or_until_it_is_awake() -> None:
    of = record()
    of.want(100.0)
    assert (of.demand(100.0), of.demand(129.9), of.demand(130.0)) == (1, 1, 0)
    of.refresh([report()], 110.0)
    assert of.demand(110.0) == 0


def timing(first_byte_s: float, tpot_s: float | None = None, *, streamed: bool = True) -> Timing:
    return Timing(ended_s=float(next(SECONDS)), first_byte_s=first_byte_s, tpot_s=tpot_s, streamed=streamed)


def medians(of: VariantRecord, prompt_tokens: int = 128) -> tuple[float, float]:
    found = of.latency.predict(prompt_tokens=prompt_tokens, cached_share=0.0, replica=ReplicaState(id="r1"))
    assert found is not None
    return found.ttft_s.p50, found.tpot_s.p50


def test_what_a_stream_took_is_learnt() -> None:
    of = record(report())
    for _ in range(60):
        of.learn(Usage(prompt_tokens=128, output_tokens=9), ReplicaState(id="r1"), timing(0.25, 0.05))
    assert medians(of) == pytest.approx((0.25, 0.05), rel=0.05)


def test_a_whole_answers_time_is_split_as_the_card_would() -> None:
    of = record(report())  # by the card 1/8 s to the first token, 8/64 s for the others; here all takes twice as long
    for _ in range(60):
        of.learn(Usage(prompt_tokens=128, output_tokens=9), ReplicaState(id="r1"), timing(0.5, streamed=False))
    assert medians(of) == pytest.approx((0.25, 2 / 64), rel=0.05)


def test_the_time_per_token_of_a_very_short_answer_is_not_learnt() -> None:
    of = record(report())
    of.learn(Usage(prompt_tokens=128, output_tokens=3), ReplicaState(id="r1"), timing(0.125, 99.0))
    assert of.latency.error().tpot is None
    assert of.latency.error().ttft is not None


def test_the_share_of_cached_prompt_tokens_is_learnt_where_engines_tell() -> None:
    of = record(report())
    for _ in range(200):
        of.learn(Usage(prompt_tokens=100, output_tokens=9, cached_tokens=50), ReplicaState(id="r1"), timing(0.1))
    assert of.cached_share == pytest.approx(0.5, abs=0.01)
    before = of.cached_share
    of.learn(Usage(prompt_tokens=100, output_tokens=9), ReplicaState(id="r1"), timing(0.1))
    of.learn(Usage(prompt_tokens=0, output_tokens=9), ReplicaState(id="r1"), timing(0.1))
    assert of.cached_share == before


def test_a_variant_without_a_card_does_not_guess_how_a_whole_answers_time_was_split() -> None:
    of = VariantRecord(variant(speed=None), queue_max=8)
    for _ in range(10):
        of.learn(Usage(prompt_tokens=128, output_tokens=9), ReplicaState(id="r1"), timing(0.5, streamed=False))
    assert of.latency.error().ttft is None


def fleet() -> Fleet:
    def family(name: str) -> Family:
        variants = tuple(variant(one, family=name, speed=SPEED) for one in ("full", "int8"))
        return Family(name=name, full="full", variants=variants)

    return Fleet(Catalog(families=(family("a"), family("b"))), queue_max=8)


def test_a_familys_snapshot_is_that_of_its_variants() -> None:
    of = fleet()
    of.refresh("a@int8", [report("r1")], 100.0)
    assert [(one.variant.id, [replica.id for replica in one.replicas]) for one in of.snapshot("a")] == [
        ("a@full", []),
        ("a@int8", ["r1"]),
    ]
    assert [one.variant.id for one in of.records()] == ["a@full", "a@int8", "b@full", "b@int8"]
    assert of.record("a", "int8").any_ready


def test_a_prompts_tokens_are_guessed_from_its_characters_and_never_surely_so_many() -> None:
    of = fleet()
    assert (of.prompt_tokens("a", 0), of.prompt_tokens("a", 400), of.prompt_tokens_least(400)) == (1, 101, 50)


def test_how_many_characters_a_token_has_is_learnt_by_family() -> None:
    of = fleet()
    for _ in range(200):
        of.learn("a", "ann", 200, Usage(prompt_tokens=100, output_tokens=5))
    assert of.prompt_tokens("a", 400) == pytest.approx(200, abs=2)
    assert of.prompt_tokens("b", 400) == 101


def test_a_prompt_of_no_usual_text_teaches_little() -> None:
    of = fleet()
    for _ in range(500):
        of.learn("a", "ann", 1, Usage(prompt_tokens=1000, output_tokens=5))  # an image
        of.learn("b", "ann", 10_000, Usage(prompt_tokens=1, output_tokens=5))
    assert of.prompt_tokens("a", 400) == pytest.approx(801, abs=1)
    assert of.prompt_tokens("b", 400) == pytest.approx(26, abs=1)


def test_nothing_is_learnt_of_a_prompt_from_usage_that_was_counted_here() -> None:
    of = fleet()
    for _ in range(50):
        of.learn("a", "ann", 200, Usage(prompt_tokens=100, output_tokens=5, counted=True))
    assert of.prompt_tokens("a", 400) == 101
    assert of.output_tokens("ann", "a", None) == 5.0  # but the answer's length is


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), max_size=20), st.integers(0, 10**6))
def test_a_guess_is_never_less_than_one_token_nor_less_than_what_is_sure(
    seen: list[tuple[int, int]], chars: int
) -> None:
    of = fleet()
    for length, tokens in seen:
        of.learn("a", "ann", length, Usage(prompt_tokens=tokens, output_tokens=1))
    assert of.prompt_tokens("a", chars) >= 1
    assert of.prompt_tokens_least(chars) <= chars


steps = st.lists(
    st.tuples(st.sampled_from(["dispatch", "end", "fail", "refresh"]), st.integers(0, 3), st.integers(0, 6)),
    max_size=30,
)


@given(steps)
def test_what_is_in_flight_here_is_always_counted_and_never_below_zero(steps: list[tuple[str, int, int]]) -> None:
    of = record(report())
    now_s, open_requests = 100.0, []
    for step, which, reported in steps:
        now_s += 0.7
        if step == "dispatch":
            open_requests.append(of.dispatch("r1", chat(prompt_tokens=10), now_s))
        elif step == "refresh":
            of.refresh([report(running=reported)], now_s)
        elif open_requests:
            open_requests.pop(which % len(open_requests)).ended(now_s, failed=step == "fail")
        found = of.replica("r1")
        assert found is not None
        assert found.load >= len(open_requests)
        assert found.queued_tokens == 10 * len(open_requests)
        assert 0 <= found.running <= 4
        assert found.waiting == 0 or found.running == 4


def test_another_price_keeps_what_was_learnt_and_another_speed_card_does_not() -> None:
    of = record(report("r1"))
    learnt = of.latency
    of.believe(variant(concurrency_max=4, usd_per_hour=9.0))
    assert of.latency is learnt
    assert of.snapshot().variant == variant(concurrency_max=4, usd_per_hour=9.0)
    of.believe(variant(concurrency_max=4, speed=replace(SPEED, prefill_tokens_per_s=1.0)))
    assert of.latency is not learnt


def test_of_many_answers_at_once_one_teaches() -> None:
    of = record(report("r1"))
    for _ in range(3):
        answer = replace(timing(0.25, 0.05), ended_s=7.0)
        of.learn(Usage(prompt_tokens=128, output_tokens=9), ReplicaState(id="r1"), answer)
    twin = record(report("r1"))
    twin.learn(Usage(prompt_tokens=128, output_tokens=9), ReplicaState(id="r1"), timing(0.25, 0.05))
    assert of.latency.error() == twin.latency.error()

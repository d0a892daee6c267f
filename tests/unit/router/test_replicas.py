import pytest
from economizer.router.latency import LatencyModel
from economizer.router.replicas import AffinityIndex, prefix_hashes, rank_replicas
from economizer.router.types import ReplicaState
from examples import SPEED, Unknown, chat
from hypothesis import given
from hypothesis import strategies as st

MODEL = LatencyModel(SPEED, 4)


def test_a_prompt_shorter_than_a_block_has_no_prefix() -> None:
    assert prefix_hashes("a" * 255) == ()


def test_only_whole_blocks_are_hashed_and_at_most_64() -> None:
    assert len(prefix_hashes("a" * 256)) == 1
    assert len(prefix_hashes("a" * 511)) == 1
    assert len(prefix_hashes("a" * 512)) == 2
    assert len(prefix_hashes("a" * 256 * 100)) == 64


@given(st.text(max_size=600), st.text(max_size=300), st.text(max_size=300))
def test_prompts_share_the_hashes_of_their_common_blocks(common: str, one: str, other: str) -> None:
    shared = len(common) // 256
    assert prefix_hashes(common + one)[:shared] == prefix_hashes(common + other)[:shared]


def test_a_difference_in_an_early_block_changes_every_later_hash() -> None:
    one, other = prefix_hashes("a" * 1024), prefix_hashes("b" + "a" * 1023)
    assert len(one) == len(other) == 4
    assert set(one) & set(other) == set()


def test_text_with_half_a_surrogate_pair_is_hashed_too() -> None:
    assert len(prefix_hashes("\ud800" * 256)) == 1


def test_the_tokens_that_a_replica_has_cached_are_its_share_of_the_blocks() -> None:
    index = AffinityIndex()
    index.note("r1", (1, 2), None)
    assert index.cached_tokens(chat(prompt_tokens=400, prefix_hashes=(1, 2, 3, 4))) == {"r1": 200.0}
    assert index.cached_tokens(chat(prompt_tokens=400, prefix_hashes=(9, 2))) == {}
    assert index.cached_tokens(chat(prompt_tokens=400)) == {}


def test_a_replica_that_is_gone_is_forgotten_with_its_cache_and_its_sessions() -> None:
    index = AffinityIndex()
    index.note("r1", (1,), "ann")
    index.note("r2", (2,), "bob")
    index.forget("r1")
    assert index.cached_tokens(chat(prefix_hashes=(1,))) == {}
    assert (index.session("ann"), index.session("bob"), index.session(None)) == (None, "r2", None)


def test_the_oldest_prefixes_and_sessions_are_forgotten_first() -> None:
    index = AffinityIndex()
    for number in range(16_385):
        index.note("r1", (number,), f"s{number}")
    assert (index.session("s0"), index.session("s1")) == (None, "r1")
    assert index.cached_tokens(chat(prefix_hashes=(0,))) == {}
    assert index.cached_tokens(chat(prefix_hashes=(1,))) == {"r1": 128.0}


def test_replicas_that_are_not_ready_are_not_ranked() -> None:
    states = [ReplicaState(id="r1", ready=False), ReplicaState(id="r2"), ReplicaState(id="r3", ready=False)]
    assert rank_replicas(states, AffinityIndex(), chat(), MODEL) == ["r2"]
    assert rank_replicas(states[:1], AffinityIndex(), chat(), MODEL) == []


def test_the_replica_with_the_shortest_wait_for_a_first_token_is_best() -> None:
    states = [
        ReplicaState(id="r1", queued_tokens=3000),
        ReplicaState(id="r2", queued_tokens=1000),
        ReplicaState(id="r3", queued_tokens=2000),
    ]
    assert rank_replicas(states, AffinityIndex(), chat(), MODEL) == ["r2", "r3", "r1"]


def test_a_replica_that_has_the_prefix_is_best_until_its_queue_outweighs_it() -> None:
    index = AffinityIndex()
    index.note("r2", (1, 2), None)
    profile = chat(prompt_tokens=1000, prefix_hashes=(1, 2))
    states = [ReplicaState(id="r1"), ReplicaState(id="r2", queued_tokens=500)]
    assert rank_replicas(states, index, profile, MODEL) == ["r2", "r1"]
    states = [ReplicaState(id="r1"), ReplicaState(id="r2", queued_tokens=1500)]
    assert rank_replicas(states, index, profile, MODEL) == ["r1", "r2"]


@pytest.mark.parametrize(
    ("home_load", "other_load", "first"),
    [(0, 0, "r2"), (1, 0, "r2"), (2, 0, "r1"), (7, 4, "r2"), (8, 4, "r1")],
)
def test_a_session_stays_with_its_replica_until_that_is_much_fuller_than_the_emptiest(
    home_load: int, other_load: int, first: str
) -> None:
    index = AffinityIndex()
    index.note("r2", (), "ann")
    states = [ReplicaState(id="r1", running=other_load), ReplicaState(id="r2", running=home_load)]
    assert rank_replicas(states, index, chat(session="ann"), Unknown())[0] == first


def test_where_no_wait_is_known_the_least_loaded_is_best_and_ties_go_by_name() -> None:
    states = [ReplicaState(id="r3"), ReplicaState(id="r1", waiting=1), ReplicaState(id="r2")]
    assert rank_replicas(states, AffinityIndex(), chat(), Unknown()) == ["r2", "r3", "r1"]


replica_states = st.lists(
    st.builds(
        ReplicaState,
        id=st.sampled_from(["r1", "r2", "r3", "r4", "r5"]),
        ready=st.booleans(),
        running=st.integers(0, 4),
        waiting=st.integers(0, 4),
        queued_tokens=st.integers(0, 5000),
    ),
    max_size=5,
    unique_by=lambda replica: replica.id,
)


@given(replica_states, st.sampled_from([MODEL, Unknown()]))
def test_a_ranking_does_not_depend_on_the_order_of_the_replicas(
    states: list[ReplicaState], latency: LatencyModel | Unknown
) -> None:
    index = AffinityIndex()
    index.note("r3", (1,), "ann")
    profile = chat(session="ann", prefix_hashes=(1, 2))
    ranked = rank_replicas(states, index, profile, latency)
    assert rank_replicas(list(reversed(states)), index, profile, latency) == ranked
    assert sorted(ranked) == sorted(replica.id for replica in states if replica.ready)

"""What is decided with all examples in sight, and that only ids and the seed decide it."""

from collections import Counter
from statistics import median
from typing import Any

import pytest
from economizer_training.data.chance import draw
from economizer_training.data.choosing import Choice, Facts, choose
from economizer_training.data.config import Preparation
from economizer_training.data.outliers import bounds
from economizer_training.data.sampling import copies, held_out, repeats
from economizer_training.settings import parse_settings
from hypothesis import given
from hypothesis import strategies as st


def preparation(seed: int = 0, **changes: Any) -> Preparation:
    content: dict[str, Any] = {
        "tokenizer": "x",
        "seed": seed,
        "sources": [{"name": "web", "files": "x"}],
        "deduplication": {"near": None},
        **changes,
    }
    return parse_settings(content, Preparation, "here")


def facts(number: int, *, slice_: str = "web", key: str = "", characters: int = 100, nll: float | None = None) -> Facts:
    told = f"web:00000:{number:09d}"
    key = key or told
    return Facts(id=told, slice=slice_, characters=characters, size_bytes=characters, key=key.encode(), nll=nll)


def taken(choice: Choice, split: str) -> Counter[str]:
    return Counter(id_ for id_, places in choice.places.items() for place in places if place.split == split)


def test_of_texts_with_the_same_words_the_first_id_stays() -> None:
    found = [facts(2, key="a"), facts(0, key="b"), facts(1, key="a"), facts(3, key="a")]
    choice = choose(found, preparation())
    assert [each.id[-1] for each in choice.dropped["exact duplicates"]] == ["2", "3"]
    assert sorted(id_[-1] for id_ in choice.places) == ["0", "1"]


def test_the_order_in_which_examples_arrive_decides_nothing() -> None:
    found = [facts(number, key=str(number % 40), characters=10 + number) for number in range(50)]
    settings = preparation(packing={"shards": 3, "held_out": 0.1}, sampling={"alpha": 0.5})
    assert choose(found, settings) == choose(found[::-1], settings)


def test_every_copy_has_one_place_and_shards_are_even() -> None:
    found = [facts(number) for number in range(50)]
    choice = choose(found, preparation(packing={"shards": 4, "held_out": 0.1}))
    places = [place for places in choice.places.values() for place in places]
    assert choice.shards == {"train": 4, "heldout": 1}
    assert len({(place.split, place.shard, place.rank) for place in places}) == 50
    sizes = Counter(place.shard for place in places if place.split == "train")
    assert sorted(sizes.values()) == [11, 11, 11, 12]


def test_fewer_examples_than_shards_make_fewer_shards() -> None:
    assert choose([facts(0)], preparation()).shards == {"train": 1, "heldout": 0}
    assert choose([], preparation()).shards == {"train": 0, "heldout": 0}


def test_another_seed_is_another_order_and_the_same_examples() -> None:
    found = [facts(number) for number in range(30)]
    settings = {"packing": {"held_out": 0.0, "shards": 1}}
    one, other = choose(found, preparation(1, **settings)), choose(found, preparation(2, **settings))
    assert one.places != other.places
    assert one.places.keys() == other.places.keys()


def test_what_is_held_out_is_never_learnt_from_and_never_repeated() -> None:
    found = [facts(n, slice_="common") for n in range(90)] + [facts(n, slice_="rare") for n in range(90, 100)]
    choice = choose(found, preparation(sampling={"alpha": 0}, packing={"held_out": 0.2}))
    learnt, scored = taken(choice, "train"), taken(choice, "heldout")
    assert not learnt.keys() & scored.keys()
    assert set(scored.values()) == {1}
    assert len(scored) == 20


def test_a_rare_slice_is_repeated_and_a_common_one_is_not() -> None:
    found = [facts(n, slice_="common") for n in range(64)] + [facts(n, slice_="rare") for n in range(64, 68)]
    settings = preparation(sampling={"alpha": 0.5, "repeats_max": 10}, packing={"held_out": 0.0})
    counts = taken(choose(found, settings), "train")
    assert {counts[each.id] for each in found[:64]} == {1}
    assert {counts[each.id] for each in found[64:]} == {4}


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 10_000), min_size=1), st.floats(0, 1), st.floats(1, 9))
def test_repeats_raise_shares_towards_the_power_and_never_drop(
    counts: dict[str, int], alpha: float, most: float
) -> None:
    found = repeats(counts, alpha=alpha, repeats_max=most)
    assert found.keys() == counts.keys()
    assert all(1 <= rate <= max(most, 1) for rate in found.values())
    assert found[max(counts, key=lambda name: counts[name])] == 1


def test_repeats_are_by_the_power_of_the_counts() -> None:
    assert repeats({"a": 100, "b": 25}, alpha=0.5, repeats_max=9) == {"a": 1, "b": 2}
    assert repeats({"a": 100, "b": 25}, alpha=0.0, repeats_max=9) == {"a": 1, "b": 4}
    assert repeats({"a": 100, "b": 25}, alpha=0.0, repeats_max=3) == {"a": 1, "b": 3}
    assert repeats({"a": 100, "b": 25}, alpha=1.0, repeats_max=9) == {"a": 1, "b": 1}
    assert repeats({}, alpha=0.5, repeats_max=9) == {}


def test_copies_average_their_rate() -> None:
    counts = Counter(copies(f"id{number}", 2.25, seed=0) for number in range(2000))
    assert set(counts) == {2, 3}
    assert counts[3] / 2000 == pytest.approx(0.25, abs=0.03)


def test_every_slice_of_two_or_more_has_something_held_out() -> None:
    ids = {"large": [f"l{n}" for n in range(100)], "pair": ["p0", "p1"], "single": ["s0"]}
    chosen = held_out(ids, 0.02, seed=1)
    assert len([id_ for id_ in chosen if id_.startswith("l")]) == 2
    assert len([id_ for id_ in chosen if id_.startswith("p")]) == 1
    assert "s0" not in chosen
    assert held_out(ids, 0, seed=1) == set()


def test_an_outlier_is_far_from_the_median_of_its_own_slice() -> None:
    usual = [100 + n for n in range(40)]
    found = [facts(n, characters=length) for n, length in enumerate([*usual, 5, 100_000])]
    long = [facts(n, slice_="books", characters=100_000 + n) for n in range(100, 140)]
    dropped = choose([*found, *long], preparation()).dropped["length outliers"]
    assert [e.characters for e in dropped] == [5, 100_000]


def test_what_the_teacher_finds_far_less_or_far_more_likely_than_its_kind_is_dropped_where_that_is_asked() -> None:
    nll = [3 + n / 100 for n in range(40)]
    found = [facts(n, nll=value) for n, value in enumerate([*nll, 0.1, 9.0])]
    poems = [facts(n, slice_="poems", nll=9 + n / 100) for n in range(100, 140)]
    unscored = facts(200)
    chosen = choose([*found, *poems, unscored], preparation(cleaning={"perplexity_outliers": 3.5}))
    assert [e.nll for e in chosen.dropped["perplexity outliers"]] == [0.1, 9.0]
    assert unscored.id in chosen.places
    assert choose([*found, *poems], preparation()).dropped["perplexity outliers"] == []


def test_what_another_stage_drops_has_no_say_in_which_likelihoods_are_outliers() -> None:
    copies = [facts(n, key="same", nll=1.0) for n in range(100, 200)]
    usual = [facts(n, nll=3 + n / 100) for n in range(40)]
    chosen = choose([*copies, *usual], preparation(cleaning={"perplexity_outliers": 3.5}))
    assert len(chosen.dropped["exact duplicates"]) == 99
    assert [e.nll for e in chosen.dropped["perplexity outliers"]] == [1.0]


def test_few_values_or_equal_ones_have_no_outliers() -> None:
    assert bounds([1] * 10 + [9999], 3.5) == (-float("inf"), float("inf"))
    assert bounds([7] * 90 + [9999] * 10, 3.5) == (-float("inf"), float("inf"))


@given(st.lists(st.floats(-1e6, 1e6), min_size=20), st.floats(0.1, 9))
def test_the_median_is_never_an_outlier(values: list[float], z_max: float) -> None:
    low, high = bounds(values, z_max)
    assert low <= median(values) <= high


@given(st.integers(), st.text())
def test_chance_is_a_share_and_the_same_every_time(seed: int, what: str) -> None:
    assert 0 <= draw(seed, what) < 1
    assert draw(seed, what) == draw(seed, what)


def test_chance_does_not_change_from_release_to_release() -> None:
    # printf '7\0order\0a' | b2sum -l 64 is 0x0693ea005e4f52cd, whose first 53 bits are a share of 2^53
    assert draw(7, "order", "a") == 0.025694489564839218

"""Examples into rows: nothing is lost, nothing is mixed, and little is padding."""

from itertools import pairwise

import numpy as np
import pytest
from economizer_training.data.chat import Tokens
from economizer_training.data.packing import best_fit, pack
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

PAD = 99
lengths = st.lists(st.integers(1, 40), max_size=30)


def examples(sizes: list[int]) -> list[Tokens]:
    """Examples of those sizes in which no token comes twice and the even ones count."""
    ends = np.cumsum([0, *sizes])
    ids = [np.arange(start, end, dtype=np.int32) + 1000 for start, end in pairwise(ends)]
    return [Tokens(each, each % 2 == 0) for each in ids]


def segments(ids: NDArray[np.int32], marks: NDArray[np.int16]) -> list[list[int]]:
    return [row[mark == n].tolist() for row, mark in zip(ids, marks, strict=True) for n in range(1, mark.max() + 1)]


def test_short_examples_share_a_row_and_long_ones_are_cut_into_whole_rows() -> None:
    ids, marks, _ = pack(examples([3, 10, 1]), length=4, pad=PAD, seed=0)
    assert sorted(segments(ids, marks)) == [
        [1000, 1001, 1002],
        [1003, 1004, 1005, 1006],
        [1007, 1008, 1009, 1010],
        [1011, 1012],
        [1013],
    ]
    assert sorted(mark.tolist() for mark in marks) == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 2]]


@given(lengths, st.integers(4, 16), st.integers(0, 3))
def test_every_token_is_in_one_segment_in_its_order_and_the_rest_is_padding(
    sizes: list[int], length: int, seed: int
) -> None:
    ids, marks, counted = pack(examples(sizes), length=length, pad=PAD, seed=seed)
    assert sorted(token for found in segments(ids, marks) for token in found) == list(range(1000, 1000 + sum(sizes)))
    assert all(found == list(range(found[0], found[0] + len(found))) for found in segments(ids, marks))
    assert (ids[marks == 0] == PAD).all()
    assert (counted == ((marks > 0) & (ids % 2 == 0))).all()
    for mark in marks:
        steps = np.diff(mark[mark > 0])
        assert set(steps.tolist()) <= {0, 1}
        assert (mark[np.argmin(mark) :] == 0).all() or mark.min() > 0


@given(lengths)
def test_no_two_rows_would_fit_into_one(sizes: list[int]) -> None:
    _, marks, _ = pack(examples(sizes), length=16, pad=PAD, seed=0)
    used = sorted(int((mark > 0).sum()) for mark in marks)
    assert len(used) < 2 or used[0] + used[1] > 16


def test_the_seed_decides_the_order_of_rows() -> None:
    made = examples([16] * 20)
    one, same, other = (pack(made, length=16, pad=PAD, seed=seed)[0].tolist() for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert sorted(one) == sorted(other)


def test_nothing_makes_no_rows() -> None:
    ids, marks, counted = pack([], length=8, pad=PAD, seed=0)
    assert ids.shape == marks.shape == counted.shape == (0, 8)


@pytest.mark.parametrize(
    ("sizes", "bins"),
    [
        ([5, 3, 2], [[0, 1, 2]]),
        ([6, 5, 4, 5], [[0, 2], [1, 3]]),
        ([10, 10], [[0], [1]]),
        ([7, 6, 3, 4], [[0, 2], [1, 3]]),  # 3 goes where it leaves nothing over
    ],
)
def test_an_item_goes_where_the_least_room_is_left_over(sizes: list[int], bins: list[list[int]]) -> None:
    assert best_fit(sizes, 10) == bins

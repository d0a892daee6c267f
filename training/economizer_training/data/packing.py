"""Examples of any length into rows of one length, with as few cut and as little padding as can be. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from economizer_training.data.chat import Tokens


class Rows(NamedTuple):
    """Packed rows, [rows, length] each: the tokens, their examples counted from 1 with 0 for padding, which count."""

    input_ids: NDArray[np.int32]
    segment_ids: NDArray[np.int16]
    counted: NDArray[np.bool_]


def pack(examples: Sequence[Tokens], *, length: int, pad: int, seed: int) -> Rows:
    """Rows with all examples, in an order that the seed decides.

    An example that is longer than a row is cut into whole rows and a rest. What is left is placed by best fit, longest
    first, so that none is cut to fill a gap (Ding et al., arXiv:2404.10830). Padding does not count.
    """
    pieces = [
        Tokens(example.ids[start : start + length], example.counted[start : start + length])
        for example in examples
        for start in range(0, len(example.ids), length)
    ]
    bins = best_fit([len(piece.ids) for piece in pieces], length)
    shape = len(bins), length
    rows = Rows(np.full(shape, pad, np.int32), np.zeros(shape, np.int16), np.zeros(shape, np.bool_))
    for row, chosen in enumerate(np.random.default_rng(seed).permutation(len(bins))):
        at = 0
        for segment, index in enumerate(bins[chosen], start=1):
            here = slice(at, at + len(pieces[index].ids))
            rows.input_ids[row, here], rows.counted[row, here] = pieces[index]
            rows.segment_ids[row, here] = segment
            at = here.stop
    return rows


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which items share a bin: each, longest first, goes where the least room is left over; in a bin in given order.

    All lengths are between 1 and ``capacity``. Bins by room are found by the bits of one integer, so that an item costs
    a few operations on capacity/64 words.
    """
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = defaultdict(list)
    rooms = 0  # bit r: some bin has room for r
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fitting = rooms >> lengths[index]
        if fitting:
            room = lengths[index] + (fitting & -fitting).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(index)
        left = room - lengths[index]
        by_room[left].append(chosen)
        rooms |= 1 << left
    return [sorted(found) for found in bins]

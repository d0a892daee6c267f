"""Examples of any length into rows of one length, with as few cut and as little padding as can be. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pack(
    examples: Sequence[NDArray[np.int32]], *, length: int, pad: int, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
    """(input_ids, segment_ids), each [rows, length], with all examples, in an order that the seed decides.

    An example that is longer than a row is cut into whole rows and a rest. What is left is placed by best fit, longest
    first, so that none is cut to fill a gap (Ding et al., arXiv:2404.10830). Segments count from 1 in each row, 0 is
    padding.
    """
    pieces = [example[start : start + length] for example in examples for start in range(0, len(example), length)]
    bins = best_fit([len(piece) for piece in pieces], length)
    input_ids = np.full((len(bins), length), pad, np.int32)
    segment_ids = np.zeros((len(bins), length), np.int16)
    for row, chosen in enumerate(np.random.default_rng(seed).permutation(len(bins))):
        at = 0
        for segment, index in enumerate(bins[chosen], start=1):
            here = slice(at, at + len(pieces[index]))
            input_ids[row, here] = pieces[index]
            segment_ids[row, here] = segment
            at = here.stop
    return input_ids, segment_ids


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

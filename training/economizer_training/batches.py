"""Packed rows as the tensors that a causal model and its loss take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from economizer_training.shards import Shards, Split

Tensor = Any

PADDING = -1  # in place of a row's number: a row that counts nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Rows on a device: [rows, length] each, but ``mask``, [rows, 1, length, length], true where attention may look.

    ``counts`` is true where a position is scored (`scored` below). ``rows`` are the numbers that the rows have in the
    split ``source``.
    """

    source: Split
    rows: tuple[int, ...]
    input_ids: Tensor
    position_ids: Tensor
    mask: Tensor
    counts: Tensor

    @property
    def targets(self) -> Tensor:
        """The next token of each position; at a row's end its first one, which does not count."""
        return self.input_ids.roll(-1, dims=1)

    def part(self, rows: slice) -> Batch:
        """Some of the rows."""
        return Batch(
            source=self.source,
            rows=self.rows[rows],
            input_ids=self.input_ids[rows],
            position_ids=self.position_ids[rows],
            mask=self.mask[rows],
            counts=self.counts[rows],
        )

    def split(self, rows: int) -> Iterator[Batch]:
        """Batches of ``rows`` rows each."""
        for start in range(0, len(self.input_ids), rows):
            yield self.part(slice(start, start + rows))


def read_batch(shards: Shards, split: Split, rows: Sequence[int], device: torch.device) -> Batch:
    """The rows' tensors; a row of ``PADDING`` has the first row's tokens and counts nothing."""
    there = [max(row, 0) for row in rows]
    ids, segments = shards.read(split, there)
    counts = scored(shards, split, there)
    counts[[at for at, row in enumerate(rows) if row == PADDING]] = False
    return batch_of(split, rows, ids, segments, counts, device)


def batch_of(
    split: Split,
    rows: Sequence[int],
    ids: NDArray[np.int32],
    segments: NDArray[np.int16],
    counts: NDArray[np.bool_],
    device: torch.device,
) -> Batch:
    """The tensors of rows, [rows, length] each, of which the positions where ``counts`` is true are scored."""
    return Batch(
        source=split,
        rows=tuple(rows),
        input_ids=torch.from_numpy(ids).long().to(device),
        position_ids=torch.from_numpy(positions(segments)).to(device),
        mask=torch.from_numpy(visible(segments)).to(device),
        counts=torch.from_numpy(counts).to(device),
    )


def scored(shards: Shards, split: Split, rows: Sequence[int]) -> NDArray[np.bool_]:
    """Where a position is scored, [rows, length]: where its next token is of the same document, and one to learn."""
    counts = counted(shards.read(split, rows)[1])
    counts[:, :-1] &= shards.counted(split, rows)[:, 1:]
    return counts


def counted(segments: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Where a position's next token is of the same document, [rows, length]."""
    counts = np.zeros(segments.shape, dtype=np.bool_)
    counts[:, :-1] = (segments[:, :-1] == segments[:, 1:]) & (segments[:, :-1] > 0)
    return counts


def positions(segments: NDArray[np.int16]) -> NDArray[np.int64]:
    """Each token's place in its document, [rows, length]."""
    places = np.broadcast_to(np.arange(segments.shape[1], dtype=np.int64), segments.shape)
    begins = np.zeros(segments.shape, dtype=np.int64)
    begins[:, 1:] = np.where(segments[:, 1:] != segments[:, :-1], places[:, 1:], 0)
    return places - np.maximum.accumulate(begins, axis=1)


def visible(segments: NDArray[np.int16]) -> NDArray[np.bool_]:
    """[rows, 1, length, length]: a position sees itself and what is before it in its document."""
    same = segments[:, :, None] == segments[:, None, :]
    seen: NDArray[np.bool_] = (same & np.tri(segments.shape[1], dtype=np.bool_))[:, None]
    return seen

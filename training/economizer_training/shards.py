"""Packed token shards: what ``prepare`` writes and ``distill`` reads. No torch here.

A folder of them holds::

    shards.json              the index (`Index`), written last: a folder without it is unfinished
    train-00000.parquet ...  rows to learn from, in the order in which they are learnt: whoever writes them shuffles
    heldout-00000.parquet    rows to score on, from other documents
    calibration.ngrams       optional: hashes of the training text's n-grams (economizer_compression.overlap), by which
                             an evaluation leaves out what was learnt

A row is ``length`` tokens in two columns of fixed-size lists: ``input_ids`` (int32) and ``segment_ids`` (int16). Tokens
of one document share a segment; segments of a row count from 1 and never decrease, but for 0 at its end, which is
padding. Attention does not cross segments and positions begin at 0 in each, so both follow from ``segment_ids``. Where
the index says ``counted: assistant``, a third column ``counted`` (bool) is true for tokens that a model is to learn.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from economizer.variants.types import require
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from economizer_training.errors import TrainingError

INDEX = "shards.json"
FORMAT = 1
Split = Literal["train", "heldout"]

_FORBID = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file: its SHA-256, its rows, and how many of their tokens are not padding."""

    __pydantic_config__ = _FORBID

    file: str
    sha256: str
    rows: int
    tokens: int

    def __post_init__(self) -> None:
        require(len(self.sha256) == 64, "sha256", self.sha256, "must be 64 hexadecimal digits")
        require(self.rows >= 1, "rows", self.rows, "must be 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """``shards.json``. ``vocabulary_sha256`` is that of the tokenizer (`vocabulary_sha256` below).

    ``counted`` is which tokens of chats a model is to learn; where it is not all, rows have a column that says so.
    """

    __pydantic_config__ = _FORBID

    format: int = FORMAT
    length: int
    vocabulary_sha256: str
    counted: Literal["all", "assistant"] = "all"
    splits: Mapping[Split, tuple[Shard, ...]]

    def __post_init__(self) -> None:
        require(self.format == FORMAT, "format", self.format, f"must be {FORMAT}, the only one known here")
        require(self.length >= 2, "length", self.length, "must be 2 or more")
        require(bool(self.splits.get("train")), "splits", list(self.splits), "must have rows to train on")


def vocabulary_sha256(vocabulary: Mapping[str, int]) -> str:
    """The digest of a tokenizer's ``get_vocab()``: two with the same digest give the same tokens the same ids."""
    return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()


def write_shard(
    path: Path,
    input_ids: NDArray[np.int32],
    segment_ids: NDArray[np.int16],
    counted: NDArray[np.bool_] | None = None,
) -> Shard:
    """Writes [rows, length] tokens with their segments to one compressed file; raises ValueError for other shapes.

    ``counted`` is true for tokens to learn; it is written where it is given.
    """
    given: dict[str, NDArray[Any]] = {
        "input_ids": input_ids.astype(np.int32),
        "segment_ids": segment_ids.astype(np.int16),
    }
    if counted is not None:
        given["counted"] = counted.astype(np.bool_)
    rule = f"must have the shape of input_ids, which is {input_ids.shape} and must be [rows, length]"
    for name, values in given.items():
        require(values.ndim == 2 and values.shape == input_ids.shape, name, values.shape, rule)
    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), input_ids.shape[1])
        for name, values in given.items()
    }
    pq.write_table(pa.table(columns), path, compression="zstd")
    return Shard(
        file=path.name,
        sha256=file_sha256(path),
        rows=len(input_ids),
        tokens=int(np.count_nonzero(segment_ids)),
    )


def write_index(folder: Path, index: Index) -> None:
    """Puts the index in place in one step; the shards must be there."""
    partial = folder / f"{INDEX}.partial"
    partial.write_text(json.dumps(asdict(index), indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / INDEX)


class Shards:
    """A folder of packed rows, read a file at a time: rows near each other are cheap, scattered ones are not."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder = folder
        self.index = index
        self._ends = {split: list(accumulate(shard.rows for shard in files)) for split, files in index.splits.items()}
        self._columns = ["input_ids", "segment_ids", *(["counted"] if index.counted != "all" else [])]
        self._open: dict[Split, tuple[int, dict[str, NDArray[Any]]]] = {}

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Reads the index; raises TrainingError for a folder that is none, or is unfinished."""
        path = folder / INDEX
        try:
            index = TypeAdapter(Index).validate_json(path.read_bytes())
        except FileNotFoundError:
            raise TrainingError(f"{folder} has no {INDEX}: make it with `economizer-train prepare`") from None
        except ValidationError as error:
            told = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors()[:3])
            raise TrainingError(f"{path} is no index that this release reads: {told}") from None
        return cls(folder, index)

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return self.index.length

    @property
    def sha256(self) -> str:
        """One digest for all the rows and their order."""
        told = json.dumps(
            {split: [shard.sha256 for shard in files] for split, files in self.index.splits.items()}, sort_keys=True
        )
        return hashlib.sha256(told.encode()).hexdigest()

    def rows(self, split: Split) -> int:
        """How many rows a split has."""
        return self._ends[split][-1] if self._ends.get(split) else 0

    def files(self, split: Split) -> Iterator[tuple[Shard, range]]:
        """Each file of a split with the numbers of its rows."""
        for shard, end in zip(self.index.splits.get(split, ()), self._ends.get(split, ()), strict=True):
            yield shard, range(end - shard.rows, end)

    def verify(self) -> None:
        """Reads every byte once; raises TrainingError for a shard that is missing or was changed."""
        for shard in (shard for files in self.index.splits.values() for shard in files):
            path = self.folder / shard.file
            if not path.is_file():
                raise TrainingError(f"{path} is missing: prepare the data anew")
            if file_sha256(path) != shard.sha256:
                raise TrainingError(f"{path} has other content than {INDEX} says: prepare the data anew")

    def place(self, split: Split, row: int) -> str:
        """Where a row lies, for messages: ``train-00000.parquet row 12``."""
        number, within = self._located(split, row)
        return f"{self.index.splits[split][number].file} row {within}"

    def read(self, split: Split, rows: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
        """(input_ids, segment_ids) of the rows, each [len(rows), length]; raises TrainingError for a broken file."""
        return self._read(split, rows, "input_ids", np.int32), self._read(split, rows, "segment_ids", np.int16)

    def counted(self, split: Split, rows: Sequence[int]) -> NDArray[np.bool_]:
        """Which tokens of the rows are to be learnt, [len(rows), length]: all, unless the index says otherwise."""
        if "counted" in self._columns:
            return self._read(split, rows, "counted", np.bool_)
        return np.ones((len(rows), self.length), dtype=np.bool_)

    def _read(self, split: Split, rows: Sequence[int], column: str, kind: type[Any]) -> NDArray[Any]:
        found = np.empty((len(rows), self.length), dtype=kind)
        for at, row in enumerate(rows):
            number, within = self._located(split, row)
            found[at] = self._file(split, number)[column][within]
        return found

    def _located(self, split: Split, row: int) -> tuple[int, int]:
        """(the file's number, the row's place in it)."""
        ends = self._ends[split]
        number = bisect_right(ends, row)
        return number, row - (ends[number - 1] if number else 0)

    def _file(self, split: Split, number: int) -> dict[str, NDArray[Any]]:
        held = self._open.get(split)
        if held is None or held[0] != number:
            shard = self.index.splits[split][number]
            try:
                table = pq.read_table(self.folder / shard.file, columns=self._columns)
                found = {name: self._column(table, name) for name in self._columns}
            except (OSError, ValueError, KeyError, pa.ArrowException) as error:
                first = [*str(error).splitlines(), ""][0]
                raise TrainingError(f"{self.folder / shard.file} cannot be read as packed rows: {first}") from None
            if (rows := len(found["input_ids"])) != shard.rows:
                raise TrainingError(f"{self.folder / shard.file} has {rows} rows where {INDEX} says {shard.rows}")
            held = self._open[split] = (number, found)
        return held[1]

    def _column(self, table: Any, name: str) -> Any:
        column = table.column(name).combine_chunks()
        return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.length)


def file_sha256(path: Path) -> str:
    """A file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

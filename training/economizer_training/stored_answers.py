"""A teacher's answers, kept beside the text that they are of. No torch here.

Beside the prepared text, in ``<data>.answers``, a folder for each teacher, text and form::

    answers.json             the index (`Index`), written last: a folder without it is unfinished
    train-00000.parquet ...  the answers to the text's file of that name, row by row

A row has the answers of its scored positions, one after the other, in columns of lists: ``ids`` (uint16 where the
vocabulary allows it, else uint32), ``count`` to a position, and for the kind ``top`` their ``log_p`` (float16), most
probable first. ``draws`` are ids drawn with replacement, each worth 1 / count, in ascending order.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
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
from economizer_training.shards import Split, file_sha256

INDEX = "answers.json"
FORMAT = 1

_ENERGY = b"energy_j"  # in a file's metadata
_FORBID = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked of whom: the digests of the teacher's folder and of the text, and how much of each answer is kept.

    ``model`` is the name by which another process serves the teacher; one that is asked in this process has a
    ``precision``. ``vocabulary`` is how many logits it has.
    """

    __pydantic_config__ = _FORBID

    teacher: str
    text: str
    kind: Literal["draws", "top"]
    count: int
    vocabulary: int
    model: str | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        require(self.count >= 1, "count", self.count, "must be 1 or more")
        rule = f"must be less than the {self.vocabulary} tokens that there are"
        require(self.kind == "draws" or self.count < self.vocabulary, "count", self.count, rule)

    @property
    def key(self) -> str:
        """The name of the folder with the answers."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def id_type(self) -> type[np.uint16 | np.uint32]:
        """What a token's id is stored as."""
        return np.uint16 if self.vocabulary <= 2**16 else np.uint32


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerFile:
    """The answers to one file of the text, and the joules that they took, None where these are not known."""

    __pydantic_config__ = _FORBID

    file: str
    sha256: str
    rows: int
    energy_j: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """``answers.json``."""

    __pydantic_config__ = _FORBID

    format: int = FORMAT
    question: Question
    splits: Mapping[Split, tuple[AnswerFile, ...]]

    def __post_init__(self) -> None:
        require(self.format == FORMAT, "format", self.format, f"must be {FORMAT}, the only one known here")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """To positions: ``ids`` [positions, count], and their log-probabilities where the kind has them."""

    ids: NDArray[Any]
    log_p: NDArray[Any] | None = None


def write_answers(path: Path, question: Question, answers: Sequence[Answer], energy_j: float | None = None) -> None:
    """One file with an answer for each row, put in place in one step."""
    ends = np.cumsum([0, *(answer.ids.size for answer in answers)], dtype=np.int64)
    columns = {"ids": np.concatenate([answer.ids.reshape(-1) for answer in answers]).astype(question.id_type)}
    if question.kind == "top":
        log_p = [answer.log_p.reshape(-1) for answer in answers if answer.log_p is not None]
        columns["log_p"] = np.concatenate(log_p).astype(np.float16)
    table = pa.table({name: pa.LargeListArray.from_arrays(ends, pa.array(column)) for name, column in columns.items()})
    table = table.replace_schema_metadata({_ENERGY: json.dumps(energy_j)})
    partial = path.with_name(f"{path.name}.partial")
    pq.write_table(table, partial, compression="zstd")
    partial.replace(path)


def kept(path: Path, rows: int) -> AnswerFile | None:
    """What an earlier run wrote there; None where it is not whole, or not there."""
    try:
        found = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return None
    if found.num_rows != rows:
        return None
    energy_j = json.loads(found.metadata[_ENERGY])
    return AnswerFile(file=path.name, sha256=file_sha256(path), rows=rows, energy_j=energy_j)


def write_index(folder: Path, index: Index) -> None:
    """Puts the index in place in one step; the files must be there."""
    partial = folder / f"{INDEX}.partial"
    partial.write_text(json.dumps(asdict(index), indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / INDEX)


class StoredAnswers:
    """A folder of answers, read a file at a time."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder = folder
        self.index = index
        self._ends = {split: list(accumulate(each.rows for each in files)) for split, files in index.splits.items()}
        self._open: dict[Split, tuple[int, dict[str, Any]]] = {}

    @classmethod
    def open(cls, folder: Path) -> StoredAnswers:
        """Reads the index; raises TrainingError for a folder that is none, or is unfinished."""
        path = folder / INDEX
        try:
            return cls(folder, TypeAdapter(Index).validate_json(path.read_bytes()))
        except FileNotFoundError:
            raise TrainingError(f"{folder} has no {INDEX}: make it with `economizer-train answers`") from None
        except ValidationError as error:
            told = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors()[:3])
            raise TrainingError(f"{path} is no index that this release reads: {told}") from None

    @property
    def energy_j(self) -> float | None:
        """The joules that the answers took; None where those of any are not known."""
        each = [file.energy_j for files in self.index.splits.values() for file in files]
        told = [joules for joules in each if joules is not None]
        return sum(told) if len(told) == len(each) else None

    def verify(self) -> None:
        """Reads every byte once; raises TrainingError for a file that is missing or was changed."""
        for each in (each for files in self.index.splits.values() for each in files):
            path = self.folder / each.file
            if not path.is_file() or file_sha256(path) != each.sha256:
                told = f"{path} is missing or has other content than {INDEX} says"
                raise TrainingError(f"{told}: remove {self.folder} to have it made anew")

    def read(self, split: Split, rows: Sequence[int], counts: NDArray[np.bool_]) -> Answer:
        """The answers of rows, [rows, length, count]: where ``counts``, [rows, length], is true, and zeros elsewhere.

        A row that counts nothing is not read. Raises TrainingError for answers to other text.
        """
        question = self.index.question
        ids = np.zeros((*counts.shape, question.count), np.int64)
        log_p = np.zeros(ids.shape, np.float32) if question.kind == "top" else None
        for at, row in enumerate(rows):
            if not counts[at].any():
                continue
            ids[at][counts[at]] = self._row(split, row, "ids", int(counts[at].sum()))
            if log_p is not None:
                log_p[at][counts[at]] = self._row(split, row, "log_p", int(counts[at].sum()))
        return Answer(ids=ids, log_p=log_p)

    def _row(self, split: Split, row: int, column: str, positions: int) -> NDArray[Any]:
        ends = self._ends[split]
        number = bisect_right(ends, row)
        within = row - (ends[number - 1] if number else 0)
        lists = self._file(split, number)[column]
        begin, end = (lists.offsets[within + at].as_py() for at in (0, 1))
        found: NDArray[Any] = lists.values[begin:end].to_numpy(zero_copy_only=False)
        if len(found) != positions * self.index.question.count:
            path = self.folder / self.index.splits[split][number].file
            raise TrainingError(f"{path} row {within} has answers to other text: remove {self.folder}")
        return found.reshape(positions, -1)

    def _file(self, split: Split, number: int) -> dict[str, Any]:
        held = self._open.get(split)
        if held is None or held[0] != number:
            path = self.folder / self.index.splits[split][number].file
            try:
                table = pq.read_table(path)
                found = {name: table.column(name).combine_chunks() for name in table.column_names}
            except (OSError, ValueError, pa.ArrowException) as error:
                first = [*str(error).splitlines(), ""][0]
                raise TrainingError(f"{path} cannot be read as a teacher's answers: {first}") from None
            held = self._open[split] = (number, found)
        return held[1]

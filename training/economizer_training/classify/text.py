"""Labelled text: two CSV files with the columns ``text`` and ``category``, and what is done to it. No torch here."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from economizer_compression.family import located

from economizer_training.data.cleaning import clean
from economizer_training.data.config import Deduplication
from economizer_training.data.near import near_duplicates, signature, text_key
from economizer_training.errors import TrainingError

COLUMNS = ("text", "category")


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Texts and the class of each."""

    texts: tuple[str, ...]
    classes: tuple[str, ...]

    def part(self, rows: Sequence[int]) -> Labelled:
        """Some of them."""
        return Labelled(texts=tuple(self.texts[row] for row in rows), classes=tuple(self.classes[row] for row in rows))


def placed(name: str, data: Path | None, key: str) -> Path:
    """Where a file of the settings lies; raises TrainingError where it does not."""
    path = Path(name)
    if name.startswith("./"):
        path = located(name)
    elif not path.is_absolute():
        if data is None:
            raise TrainingError(f"{key}: {name}: name the folder that it is in with --data DIR or ECONOMIZER_DATA")
        path = data / name
    if not path.is_file():
        raise TrainingError(f"{key}: there is no file {path}: give a CSV file with the columns {','.join(COLUMNS)}")
    return path


def read_pair(train: Path, test: Path) -> tuple[Labelled, Labelled]:
    """What is learnt from and what is tested on; raises TrainingError where no classifier comes of it."""
    found, asked = read(train), read(test)
    classes = set(found.classes)
    if len(classes) == 1:
        raise TrainingError(f"{train} has one class, {found.classes[0]!r}: a classifier needs two or more")
    if unknown := sorted(set(asked.classes) - classes):
        told = ", ".join(map(repr, unknown[:3]))
        raise TrainingError(f"{test} has {len(unknown)} classes that {train} lacks: {told}: none of them can be learnt")
    return found, asked


def read(path: Path) -> Labelled:
    """The rows of a CSV file; raises TrainingError naming the file and the line."""
    texts, classes = [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                told = ",".join(rows.fieldnames or ()) or "nothing"
                raise TrainingError(f"{path} has no column {missing[0]}: its first line is {told[:80]}")
            for row in rows:
                empty = [name for name in COLUMNS if not (row[name] or "").strip()]
                if empty:
                    raise TrainingError(f"{path} line {rows.line_num}: {empty[0]} is empty")
                texts.append(row["text"])
                classes.append(row["category"].strip())
    except (UnicodeDecodeError, csv.Error) as error:
        raise TrainingError(f"{path} is not a CSV file in UTF-8: {error}") from None
    if not texts:
        raise TrainingError(f"{path} has no rows after its first line")
    return Labelled(texts=tuple(texts), classes=tuple(classes))


def cleaned(found: Labelled) -> Labelled:
    """The same texts without broken Unicode, unseen characters and white space that says nothing."""
    return Labelled(texts=tuple(clean(text) for text in found.texts), classes=found.classes)


def distinct(found: Labelled, rule: Deduplication) -> Labelled:
    """Without what is the same as, or nearly, an earlier text of its class: in another class it marks the border."""
    left = list(range(len(found.texts)))
    if rule.exact:
        first: dict[tuple[str, bytes], int] = {}
        left = [row for row in left if first.setdefault((found.classes[row], text_key(found.texts[row])), row) == row]
    if rule.near is not None:
        like: set[int] = set()
        for name in Counter(found.classes):
            rows = [row for row in left if found.classes[row] == name]
            sketches = [signature(found.texts[row], words=rule.words, permutations=rule.permutations) for row in rows]
            like.update(rows[at] for at in near_duplicates(sketches, rule.near))
        left = [row for row in left if row not in like]
    return found.part(left)

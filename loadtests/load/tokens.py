"""How many tokens a text has: by the model's own tokenizer, or by a rule that comes near it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

_PIECE = re.compile(r"(?P<word>[A-Za-z]+)|\d|[^\W\d_]|(?P<signs>[^\w\s]+)|_+|\n+ *|[ \t]{2,}")
_WHOLE_LETTERS, _WHOLE_SIGNS = 7, 2  # what is longer is mostly more than one token


class Counter(Protocol):
    """Counts tokens. ``how`` says by what; the true number is at most ``1 + margin`` times what it counts."""

    how: str
    margin: float

    def count(self, text: str) -> int:
        """The tokens of a text."""
        ...

    def cut(self, text: str, tokens: int) -> str:
        """As much of a text's beginning as has at most so many tokens."""
        ...


class Rule:
    """English words, digits, other letters, runs of signs and wide spaces each count; what is long counts for more.

    Measured against SmolLM2's tokenizer, on 1,600 pieces of 2,000 characters of Python's reference, C4, Wikipedia and
    four sets of questions: nine in ten have between 9 % fewer and 9 % more tokens than this counts, one in a hundred
    has over 16 % more.
    """

    how = "a rule of words, digits and signs (nine in ten texts within 9 % of SmolLM2's tokenizer)"
    margin = 0.2

    def count(self, text: str) -> int:
        return round(sum(weight for _, weight in self._pieces(text)))

    def cut(self, text: str, tokens: int) -> str:
        counted, end = 0.0, 0
        for place, weight in self._pieces(text):
            counted += weight
            if counted > tokens:
                return text[:end]
            end = place
        return text

    def _pieces(self, text: str) -> Iterator[tuple[int, float]]:
        """Where each piece ends, and for how many tokens it counts."""
        for found in _PIECE.finditer(text):
            length, weight = len(found[0]), 1.0
            if found.lastgroup == "word" and length > _WHOLE_LETTERS:
                weight += (length - 4) / 7
            elif found.lastgroup == "signs" and length > _WHOLE_SIGNS:
                weight += (length - _WHOLE_SIGNS) / 4
            yield found.end(), weight


class Tokenizer:
    """A ``tokenizer.json`` of Hugging Face's form, read by the package ``tokenizers``. ``file`` is its path."""

    margin = 0.0

    def __init__(self, file: Path) -> None:
        try:
            tokenizers = importlib.import_module("tokenizers")  # no dependency of the project's
        except ImportError:
            raise ValueError(
                f"--tokenizer {file}: the package tokenizers is not in this environment: install it, or leave the "
                "option out to count by a rule"
            ) from None
        self.how = f"the tokenizer {file}"
        self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(file))

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def cut(self, text: str, tokens: int) -> str:
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1] if tokens > 0 else 0]


def counter(tokenizer: Path | None) -> Counter:
    """By a tokenizer's file, or its folder; by a rule without one. Raises ValueError where it cannot be read."""
    if tokenizer is None:
        return Rule()
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if not file.is_file():
        raise ValueError(f"--tokenizer {tokenizer}: must be a tokenizer.json, or a folder with one")
    return Tokenizer(file)

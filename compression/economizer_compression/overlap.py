"""Does text that a variant learnt from come back in what it is scored on? N-grams of words, as hashes. Pure.

A shared n-gram of 13 words counts as overlap, as in the contamination study of GPT-3 (Brown et al., arXiv:2005.14165,
appendix C). Hashes are kept, not text: calibration text may be private.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from economizer_compression.errors import CompressionError

NGRAM = 13
FILE_NAME = "calibration.ngrams"

_WORD = re.compile(r"\w+")

Hashes = NDArray[np.uint64]


def ngrams(texts: Iterable[str], n: int = NGRAM) -> Hashes:
    """The sorted 64-bit hashes of all n-grams of words in the texts, lower-cased and without punctuation."""
    hashes: set[int] = set()
    for text in texts:
        words = [word.lower() for word in _WORD.findall(text)]
        for start in range(len(words) - n + 1):
            told = " ".join(words[start : start + n]).encode()
            hashes.add(int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little"))
    return np.array(sorted(hashes), dtype=np.uint64)


def overlapping(items: Sequence[str], seen: Hashes, n: int = NGRAM) -> list[bool]:
    """For each item whether it shares an n-gram with what was seen."""
    return [bool(np.isin(ngrams([item], n), seen, assume_unique=True).any()) for item in items]


def save(hashes: Hashes, path: Path) -> None:
    """Writes the hashes as raw little-endian integers."""
    path.write_bytes(hashes.astype("<u8").tobytes())


def load(path: Path) -> Hashes:
    """Reads what `save` wrote; raises CompressionError for anything else."""
    raw = path.read_bytes()
    if len(raw) % 8:
        raise CompressionError(f"{path} is damaged: its {len(raw)} bytes are no whole number of hashes")
    return np.frombuffer(raw, dtype="<u8").astype(np.uint64)

"""Texts that are nearly the same, by `datasketch`'s MinHash and its locality-sensitive index."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasketch import MinHash

_WORD = re.compile(r"\w+")

Signature = NDArray[np.uint32]


def text_key(text: str) -> bytes:
    """The same 16 bytes for texts of the same words, whatever their case, punctuation and spacing."""
    return hashlib.blake2b("\0".join(_WORD.findall(text.lower())).encode(), digest_size=16).digest()


def signature(text: str, *, words: int, permutations: int) -> Signature:
    """The MinHash signature of a text's runs of ``words`` words; a shorter text is one run."""
    found = _WORD.findall(text.lower())
    runs = {" ".join(found[start : start + words]) for start in range(max(len(found) - words + 1, 1))}
    sketch = _empty(permutations).copy()
    sketch.update_batch([run.encode() for run in runs])
    return np.asarray(sketch.hashvalues, dtype=np.uint32)


def near_duplicates(signatures: Sequence[Signature], similarity_min: float) -> dict[int, int]:
    """For each text that is like an earlier one that is kept, that one's index.

    Signatures are compared where the index finds them to be candidates, so that nothing is dropped for one band alone,
    and with texts that are kept, so that nothing is dropped for being like something that is like something.
    """
    from datasketch import LeanMinHash, MinHashLSH

    if not signatures:
        return {}
    permutations = len(signatures[0])
    # Candidates that are none cost a comparison, pairs that are missed cost the point of it all.
    index = MinHashLSH(threshold=similarity_min, num_perm=permutations, weights=(0.2, 0.8))
    like: dict[int, int] = {}
    for number, found in enumerate(signatures):
        sketch = LeanMinHash(seed=_empty(permutations).seed, hashvalues=found, scheme=_empty(permutations).scheme)
        same = [other for other in index.query(sketch) if np.mean(signatures[other] == found) >= similarity_min]
        if same:
            like[number] = min(same)
        else:
            index.insert(number, sketch, check_duplication=False)
    return like


@cache
def _empty(permutations: int) -> MinHash:
    from datasketch import MinHash

    return MinHash(num_perm=permutations)

"""Text that a variant learnt from is found again in what it is scored on, by words in a row."""

from pathlib import Path

import numpy as np
import pytest
from economizer_compression.errors import CompressionError
from economizer_compression.overlap import FILE_NAME, load, ngrams, overlapping, save
from hypothesis import given
from hypothesis import strategies as st

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
words = st.lists(st.sampled_from(["a", "b", "c"]), max_size=30).map(" ".join)


def test_hashes_are_the_same_in_every_process_and_release() -> None:
    # printf 'one two three' | b2sum -l 64, its bytes read as a little-endian integer
    assert ngrams(["One two, three"], n=3).tolist() == [3979988357744751972]


def test_a_text_of_n_words_has_one_ngram_and_a_shorter_one_none() -> None:
    assert len(ngrams([WORDS])) == 2
    assert len(ngrams([WORDS.rpartition(" ")[0]])) == 1
    assert len(ngrams(["too short"])) == 0


def test_case_and_punctuation_do_not_hide_an_overlap() -> None:
    seen = ngrams(["He said: “" + WORDS.upper().replace(" ", ", ") + "!”"])
    assert overlapping([WORDS, "other " * 13, ""], seen) == [True, False, False]


def test_twelve_words_in_a_row_are_no_overlap() -> None:
    twelve = " ".join(WORDS.split()[:12])
    assert overlapping([f"{twelve} and so on", f"{twelve} thirteen"], ngrams([WORDS])) == [False, True]


def test_words_of_two_texts_make_no_ngram_together() -> None:
    first, second = WORDS.split()[:7], WORDS.split()[7:]
    assert overlapping([WORDS], ngrams([" ".join(first), " ".join(second)])) == [False]


@given(st.lists(words, max_size=5), st.integers(1, 6))
def test_the_hashes_are_sorted_and_of_a_set(texts: list[str], n: int) -> None:
    hashes = ngrams(texts, n)
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == sorted(set(hashes.tolist()))
    assert hashes.tolist() == ngrams(reversed(texts), n).tolist()


@given(st.lists(words, max_size=5), words, st.integers(1, 6))
def test_an_item_that_was_seen_overlaps_if_it_is_long_enough(texts: list[str], item: str, n: int) -> None:
    assert overlapping([item], ngrams([*texts, item], n), n) == [len(item.split()) >= n]


def test_hashes_come_back_from_a_file_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    save(ngrams([WORDS]), path)
    assert path.stat().st_size == 16
    assert load(path).tolist() == ngrams([WORDS]).tolist()
    path.write_bytes(b"12345")
    with pytest.raises(CompressionError, match="is damaged: its 5 bytes are no whole number of hashes"):
        load(path)

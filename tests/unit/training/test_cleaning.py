"""White space and unseen characters go; what they separate and what is meant stays."""

import unicodedata

import pytest
from economizer_training.data.cleaning import clean
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("one \t two\xa0three  \n", "one two three"),
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ("one\n \n\n\n\ntwo", "one\n\ntwo"),
        ("if x:\n    return  1", "if x:\n    return 1"),
        ("zero\u200bwidth \ufeffmark so\u00adft", "zerowidth mark soft"),
        ("nul\x00 bell\x07 esc\x1b[0m", "nul bell esc[0m"),
        ("cafe\u0301", "caf\u00e9"),
        ("family \U0001f469\u200d\U0001f467", "family \U0001f469\u200d\U0001f467"),
        (" \n\t ", ""),
    ],
)
def test_what_says_nothing_is_gone_and_the_rest_stays(text: str, cleaned: str) -> None:
    assert clean(text, fix_unicode=False) == cleaned


@given(st.text(max_size=200))
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean(text, fix_unicode=False)
    assert clean(once, fix_unicode=False) == once


@given(st.text(max_size=200))
def test_clean_text_is_normal_and_can_be_encoded(text: str) -> None:
    cleaned = clean(text, fix_unicode=False)
    cleaned.encode()
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in cleaned if c not in "\n\t")

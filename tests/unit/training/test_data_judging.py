"""One example through its stages: where it is dropped, by which rule, and what is known of its size."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from economizer_compression.overlap import ngrams
from economizer_training.data.config import Preparation
from economizer_training.data.examples import Example
from economizer_training.data.judging import Judged, contaminated, judge
from economizer_training.settings import parse_settings

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
NOTHING = np.empty(0, np.uint64)


def preparation(**cleaning: Any) -> Preparation:
    content: dict[str, Any] = {"tokenizer": "x", "sources": [{"name": "web", "files": "x"}]}
    content["cleaning"] = {"fix_unicode": False, **cleaning}
    return parse_settings(content, Preparation, "here")


def document(text: str) -> Example:
    return Example(id="web:0:0", source="web", slice="web", kind="text", parts=(("text", text),))


def judged(example: Example, *, seen: Any = NOTHING, prose: bool = False, **cleaning: Any) -> Judged:
    return judge(example, preparation(**cleaning), seen, {"web"} if prose else set())


def test_what_passes_has_its_bytes_after_every_stage() -> None:
    found = judged(document("write  to a@example.com  "), mask=["email"])
    assert found.example.text == "write to <EMAIL>"
    assert found.sizes == (25, 22, 22, 16, 16)
    assert (found.stage, found.rule, found.masked) == ("", "", Counter(email=1))


@pytest.mark.parametrize(
    ("text", "cleaning", "stage", "rule", "stages"),
    [
        (" \n ", {}, "clean", "empty", 1),
        ("short", {"characters_min": 6}, "filter", "characters_min", 2),
        ("too long", {"characters_max": 6}, "filter", "characters_max", 2),
        ("few words", {"prose": True}, "filter", "words_min", 2),
        (f"So: {WORDS}", {"seen": ngrams([WORDS])}, "decontaminate", "evaluation", 4),
    ],
)
def test_what_is_dropped_says_where_and_why(
    text: str, cleaning: dict[str, Any], stage: str, rule: str, stages: int
) -> None:
    found = judged(document(text), **cleaning)
    assert (found.stage, found.rule, len(found.sizes)) == (stage, rule, stages)


def test_the_rules_for_prose_spare_chats() -> None:
    chat = Example(id="i", source="web", slice="web", kind="chat", parts=(("user", "Hi"), ("assistant", "Hello")))
    assert judged(chat, prose=True).rule == ""
    assert judged(document("Hi"), prose=True).rule == "words_min"


def test_a_run_of_words_is_found_whatever_the_case_and_punctuation() -> None:
    seen = ngrams([WORDS, "zero " * 13])
    assert contaminated(f"He said: {WORDS.upper().replace(' ', ', ')}!", seen, 13)
    assert not contaminated("other " * 20, seen, 13)
    assert not contaminated(WORDS, NOTHING, 13)
    assert not contaminated("", seen, 13)


def test_the_largest_hash_of_all_is_looked_up_within_bounds() -> None:
    assert not contaminated("other " * 20, np.array([0], np.uint64), 13)

"""The rules for prose: each measures what it says, and its bound is where the table has it."""

from pathlib import Path

import pytest
from economizer_training.data.rules import RULES, Page, broken
from hypothesis import given
from hypothesis import strategies as st

SENTENCE = "The heat of the boiler had to go somewhere, and that is the reason to have an economizer with it. "
PROSE = """\
An economizer is the part of a boiler that wins back heat from the smoke. Edward Green patented his in 1845.
Rows of vertical tubes stood in the flue, and the water of the boiler ran through them first.

Soot was the trouble: it settled on iron quickly. Scrapers, moved by a chain, kept all surfaces clean while fires burnt.
Mills that had one saved a fifth of their coal. Nobody built large plants without it after 1870!
"""


def measured(name: str, text: str) -> float:
    rule = next(rule for rule in RULES if rule.name == name)
    return rule.measure(Page.of(text))


def test_a_page_of_prose_breaks_no_rule() -> None:
    assert broken(PROSE) is None


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("words_min", "two words", 2),
        ("words_max", "two  words\n\nand three", 4),
        ("word_length_min", "ab abcd", 3),
        ("word_length_max", "", 0),
        ("hashes_max", "# one two #", 0.5),
        ("ellipses_max", "so... it… goes", 2 / 3),
        ("bullet_lines_max", "- one\n\n  * two\nthree\n• four", 0.75),
        ("ellipsis_lines_max", "one...\ntwo…\nthree.\nfour", 0.5),
        ("alphabetic_words_min", "a1 22 -- b", 0.5),
        ("stop_words_min", "The cat, 'that' sat WITH the dog", 3),
        ("sentences_min", 'One. "Two!" 3.5 is three?\nFour', 3),
        ("lorem_ipsum_max", "Lorem ipsum dolor. lorem ipsum", 2),
        ("curly_brackets_max", "f() { g(); }", 1),
        ("punctuated_lines_min", "One.\nTwo\nThree!\nfour", 0.5),
        ("short_lines_max", f"short\n{'long ' * 20}", 0.5),
        ("repeated_lines_max", "a\nb\na\na", 0.5),
        ("repeated_line_characters_max", "aaaa\nbb\naaaa", 0.4),
        ("repeated_paragraphs_max", "a\nb\n\nc\n\na\nb", 1 / 3),
        ("repeated_paragraph_characters_max", "aaa\n\nb\n\naaa", 3 / 7),
        ("top_2gram_max", "a b c a b", 4 / 5),
        ("top_2gram_max", "a b c d e", 0),
        ("top_3gram_max", "x y z x y z q", 6 / 7),
        ("repeated_5grams_max", "a b c d e f a b c d e", 10 / 11),
        ("repeated_5grams_max", "a a a a a a a", 1),
        ("repeated_10grams_max", "a b c d e f a b c d e", 0),
    ],
)
def test_a_rule_measures_what_it_says(name: str, text: str, value: float) -> None:
    assert measured(name, text) == pytest.approx(value)


def test_the_first_rule_that_is_broken_is_named() -> None:
    assert broken("too short") == "words_min"
    assert broken(SENTENCE * 8) == "top_3gram_max"
    assert broken(PROSE + " {") == "curly_brackets_max"


def test_a_threshold_is_moved_or_switched_off_by_name() -> None:
    assert broken(PROSE + " {", thresholds={"curly_brackets_max": 1}) is None
    assert broken(PROSE + " {", thresholds={"curly_brackets_max": False}) is None
    assert broken(PROSE, thresholds={"words_min": 10_000}) == "words_min"


def test_zero_is_a_threshold_and_not_the_absence_of_one() -> None:
    assert broken(PROSE + " {", thresholds={"curly_brackets_max": 0}) == "curly_brackets_max"


def test_a_rule_of_one_language_does_not_hold_for_another() -> None:
    without = (
        PROSE.replace(" the ", " ze ").replace(" of ", " von ").replace(" that ", " zat ").replace(" and ", " und ")
    )
    assert broken(without, language="en") == "stop_words_min"
    assert broken(without, language=None) == "stop_words_min"
    assert broken(without, language="de") is None


def test_every_rule_names_where_it_is_from_and_no_two_have_one_name() -> None:
    assert all("arXiv:" in rule.source for rule in RULES)
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_the_guide_names_every_rule() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    assert [rule.name for rule in RULES if f"`{rule.name}`" not in guide] == []


@given(st.text(alphabet="ab .#\n…-{", max_size=200))
def test_shares_are_between_0_and_1_and_nothing_divides_by_0(text: str) -> None:
    page = Page.of(text)
    for rule in RULES:
        value = rule.measure(page)
        assert value >= 0
        if rule.name.startswith(("repeated", "top", "bullet", "short", "punctuated", "alphabetic")):
            assert value <= 1

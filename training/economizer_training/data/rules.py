"""The rules for prose: what web text is too poor to learn from. Pure.

Each rule is a small function of a page and a bound; the table ``RULES`` lists all, with where the bound is from.
Words are what stands between white space, so that they mean little in scripts that write none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

GOPHER = "Gopher (Rae et al., arXiv:2112.11446, appendix A.1.1)"
C4 = "C4 (Raffel et al., arXiv:1910.10683, section 2.2)"
FINEWEB = "FineWeb (Penedo et al., arXiv:2406.17557, section 3.6)"

_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_ENDS_OF_LINES = tuple(".?!…\"'\N{RIGHT DOUBLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}")
_BULLETS = ("•", "-", "*", "●", "▪", "‣")
_SHORT_LINE_CHARACTERS = 30
_SENTENCE_END = re.compile(r"[.?!…][^\w\s]*(?=\s|$)")
_PARAGRAPHS = re.compile(r"\n\s*\n")
_PUNCTUATION = re.compile(r"^[\W_]+|[\W_]+$")


@dataclass(frozen=True, slots=True)
class Page:
    """A document, cut once for all rules: words, lines that are not empty, paragraphs."""

    text: str
    words: tuple[str, ...]
    lines: tuple[str, ...]
    paragraphs: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Page:
        lines = tuple(line.strip() for line in text.split("\n") if line.strip())
        paragraphs = tuple(part.strip() for part in _PARAGRAPHS.split(text) if part.strip())
        return cls(text=text, words=tuple(text.split()), lines=lines, paragraphs=paragraphs)


Measure = Callable[[Page], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A page is dropped where the measure is under (``at_least``) or over (``at_most``) the threshold.

    ``language`` is the only one in which it means something; None is all.
    """

    name: str
    measure: Measure
    bound: Literal["at_least", "at_most"]
    threshold: float
    source: str
    language: str | None = None

    def broken_by(self, page: Page, threshold: float) -> bool:
        found = self.measure(page)
        return found < threshold if self.bound == "at_least" else found > threshold


def broken(
    text: str, *, language: str | None = None, thresholds: Mapping[str, float | Literal[False]] | None = None
) -> str | None:
    """The name of the first rule that a text breaks, None where it keeps all.

    ``thresholds`` has other thresholds than the table's, by rule, and false for rules that do not hold. ``language`` is
    the text's, None is not known: then rules of one language hold, too.
    """
    chosen = thresholds or {}
    page = Page.of(text)
    for rule in RULES:
        threshold = chosen.get(rule.name, rule.threshold)
        meant = rule.language in (None, language) or language is None
        # `is False`: a threshold of 0 is one.
        if threshold is not False and meant and rule.broken_by(page, threshold):
            return rule.name
    return None


def words(page: Page) -> float:
    return len(page.words)


def word_length(page: Page) -> float:
    """The mean number of characters a word."""
    return _share(sum(map(len, page.words)), len(page.words))


def hashes(page: Page) -> float:
    """Hash signs a word."""
    return _share(page.text.count("#"), len(page.words))


def ellipses(page: Page) -> float:
    """Ellipses a word."""
    return _share(page.text.count("...") + page.text.count("…"), len(page.words))


def bullet_lines(page: Page) -> float:
    """The share of lines that begin with a bullet."""
    return _share(sum(line.startswith(_BULLETS) for line in page.lines), len(page.lines))


def ellipsis_lines(page: Page) -> float:
    """The share of lines that end with an ellipsis."""
    return _share(sum(line.endswith(("...", "…")) for line in page.lines), len(page.lines))


def alphabetic_words(page: Page) -> float:
    """The share of words with a letter in them."""
    return _share(sum(any(map(str.isalpha, word)) for word in page.words), len(page.words))


def stop_words(page: Page) -> float:
    """How many of eight frequent English words there are."""
    return len(_STOP_WORDS.intersection(_PUNCTUATION.sub("", word).lower() for word in page.words))


def sentences(page: Page) -> float:
    return len(_SENTENCE_END.findall(page.text))


def lorem_ipsum(page: Page) -> float:
    """How often the printers' filler text begins."""
    return page.text.lower().count("lorem ipsum")


def curly_brackets(page: Page) -> float:
    return page.text.count("{")


def punctuated_lines(page: Page) -> float:
    """The share of lines that end as sentences do."""
    return _share(sum(line.endswith(_ENDS_OF_LINES) for line in page.lines), len(page.lines))


def short_lines(page: Page) -> float:
    """The share of lines of up to 30 characters."""
    return _share(sum(len(line) <= _SHORT_LINE_CHARACTERS for line in page.lines), len(page.lines))


def repeated(parts: Callable[[Page], Sequence[str]], page: Page) -> float:
    """The share of a page's lines or paragraphs that were on it before."""
    found = parts(page)
    return _share(len(found) - len(set(found)), len(found))


def repeated_characters(parts: Callable[[Page], Sequence[str]], page: Page) -> float:
    """The share of a page's characters that is in lines or paragraphs that were on it before."""
    found = parts(page)
    return _share(sum(map(len, found)) - sum(map(len, set(found))), sum(map(len, found)))


def top_ngram(n: int, page: Page) -> float:
    """The share of the words' characters in the most frequent n-gram, 0 where none comes twice."""
    counts = Counter(_ngrams(page.words, n))
    repeats = [(count, sum(map(len, gram))) for gram, count in counts.items() if count > 1]
    if not repeats:
        return 0.0
    count, characters = max(repeats)
    return _share(count * characters, sum(map(len, page.words)))


def repeated_ngrams(n: int, page: Page) -> float:
    """The share of the words' characters in n-grams that come more than once, each character counted once."""
    grams = _ngrams(page.words, n)
    counts = Counter(grams)
    inside = bytearray(len(page.words))
    for start, gram in enumerate(grams):
        if counts[gram] > 1:
            inside[start : start + n] = b"\1" * n
    within = sum(len(word) for word, flag in zip(page.words, inside, strict=True) if flag)
    return _share(within, sum(map(len, page.words)))


def _ngrams(found: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(found[start:] for start in range(n)), strict=False))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _lines(page: Page) -> Sequence[str]:
    return page.lines


def _paragraphs(page: Page) -> Sequence[str]:
    return page.paragraphs


def _at_least(name: str, measure: Measure, threshold: float, source: str, language: str | None = None) -> Rule:
    return Rule(name=name, measure=measure, bound="at_least", threshold=threshold, source=source, language=language)


def _at_most(name: str, measure: Measure, threshold: float, source: str) -> Rule:
    return Rule(name=name, measure=measure, bound="at_most", threshold=threshold, source=source)


# Cheap ones first: a page is measured until it breaks one.
RULES: tuple[Rule, ...] = (
    _at_least("words_min", words, 50, GOPHER),
    _at_most("words_max", words, 100_000, GOPHER),
    _at_least("word_length_min", word_length, 3, GOPHER),
    _at_most("word_length_max", word_length, 10, GOPHER),
    _at_most("hashes_max", hashes, 0.1, GOPHER),
    _at_most("ellipses_max", ellipses, 0.1, GOPHER),
    _at_most("bullet_lines_max", bullet_lines, 0.9, GOPHER),
    _at_most("ellipsis_lines_max", ellipsis_lines, 0.3, GOPHER),
    _at_least("alphabetic_words_min", alphabetic_words, 0.8, GOPHER),
    _at_least("stop_words_min", stop_words, 2, GOPHER, "en"),
    _at_least("sentences_min", sentences, 5, C4),
    _at_most("lorem_ipsum_max", lorem_ipsum, 0, C4),
    _at_most("curly_brackets_max", curly_brackets, 0, C4),
    _at_least("punctuated_lines_min", punctuated_lines, 0.12, FINEWEB),
    _at_most("short_lines_max", short_lines, 0.67, FINEWEB),
    _at_most("repeated_lines_max", partial(repeated, _lines), 0.3, GOPHER),
    _at_most("repeated_line_characters_max", partial(repeated_characters, _lines), 0.2, GOPHER),
    _at_most("repeated_paragraphs_max", partial(repeated, _paragraphs), 0.3, GOPHER),
    _at_most("repeated_paragraph_characters_max", partial(repeated_characters, _paragraphs), 0.2, GOPHER),
    _at_most("top_2gram_max", partial(top_ngram, 2), 0.20, GOPHER),
    _at_most("top_3gram_max", partial(top_ngram, 3), 0.18, GOPHER),
    _at_most("top_4gram_max", partial(top_ngram, 4), 0.16, GOPHER),
    _at_most("repeated_5grams_max", partial(repeated_ngrams, 5), 0.15, GOPHER),
    _at_most("repeated_6grams_max", partial(repeated_ngrams, 6), 0.14, GOPHER),
    _at_most("repeated_7grams_max", partial(repeated_ngrams, 7), 0.13, GOPHER),
    _at_most("repeated_8grams_max", partial(repeated_ngrams, 8), 0.12, GOPHER),
    _at_most("repeated_9grams_max", partial(repeated_ngrams, 9), 0.11, GOPHER),
    _at_most("repeated_10grams_max", partial(repeated_ngrams, 10), 0.10, GOPHER),
)

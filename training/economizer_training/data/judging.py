"""What one example goes through by itself: cleaned, filtered, masked, and held against what a model is scored on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from economizer_compression.overlap import Hashes, ngrams

from economizer_training.data.cleaning import clean
from economizer_training.data.config import Cleaning, Preparation
from economizer_training.data.examples import Example
from economizer_training.data.language import language_of
from economizer_training.data.private import mask
from economizer_training.data.rules import broken

# The stages of this module in their order, as the card names them.
STAGES = ("clean", "filter", "mask", "decontaminate")


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """An example after its stages, or what is known of one that was dropped: ``stage`` and ``rule`` say where and why.

    ``sizes`` are its bytes as read and after each stage that it left, ``masked`` how often each kind of private thing
    was found in it.
    """

    example: Example
    sizes: tuple[int, ...]
    stage: str = ""
    rule: str = ""
    masked: Counter[str] = field(default_factory=Counter)


def judge(example: Example, preparation: Preparation, seen: Hashes, prose: Collection[str]) -> Judged:
    """The example after the stages that look at one example alone.

    ``seen`` are the n-grams of the evaluation texts, ``prose`` the sources that the rules for prose hold for.
    """
    cleaning = preparation.cleaning
    sizes = [example.size_bytes]
    example = example.mapped(lambda text: clean(text, fix_unicode=cleaning.fix_unicode))
    if not example.text.strip():
        return Judged(example=example, sizes=tuple(sizes), stage="clean", rule="empty")
    sizes.append(example.size_bytes)
    rule = _filtered(example, cleaning, prose=example.source in prose)
    if rule is not None:
        return Judged(example=example, sizes=tuple(sizes), stage="filter", rule=rule)
    sizes.append(example.size_bytes)
    found: Counter[str] = Counter()

    def masked(text: str) -> str:
        without, counts = mask(text, cleaning.mask)
        found.update(counts)
        return without

    example = example.mapped(masked)
    sizes.append(example.size_bytes)
    if contaminated(example.text, seen, preparation.decontamination.words):
        return Judged(example=example, sizes=tuple(sizes), stage="decontaminate", rule="evaluation", masked=found)
    return Judged(example=example, sizes=(*sizes, sizes[-1]), masked=found)


def _filtered(example: Example, cleaning: Cleaning, *, prose: bool) -> str | None:
    """The name of the filter that drops the example."""
    text = example.text
    if len(text) < cleaning.characters_min:
        return "characters_min"
    if len(text) > cleaning.characters_max:
        return "characters_max"
    told = language_of(text) if cleaning.languages else None
    if told is not None:
        language, probability = told
        if language not in cleaning.languages:
            return "language"
        if probability < cleaning.language_probability_min:
            return "language_probability_min"
    if prose and example.kind == "text":
        return broken(text, language=told[0] if told else None, thresholds=cleaning.rules)
    return None


def contaminated(text: str, seen: Hashes, words: int) -> bool:
    """Whether the text shares so many words in a row with what was ``seen``, whose hashes are sorted."""
    if not len(seen):
        return False
    found = ngrams([text], words)
    at = np.minimum(np.searchsorted(seen, found), len(seen) - 1)
    return bool((seen[at] == found).any())

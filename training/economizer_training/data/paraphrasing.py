"""What of a text is put otherwise, and which paraphrases are none. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from economizer_training.data.examples import Message
from economizer_training.data.near import text_key

KEPT = "kept"
_LONGER = 2  # times its source: more was added than said otherwise
_BREAKS = re.compile(r"\n\s*\n")


def beginning(text: str, tokens_max: int, count: Callable[[str], int]) -> str:
    """The whole paragraphs of a text's beginning that are ``tokens_max`` tokens at most, empty if the first is more."""
    ends = [*(found.start() for found in _BREAKS.finditer(text)), len(text)]
    fitting = ""
    for end in ends:
        if count(text[:end]) > tokens_max:
            break
        fitting = text[:end]
    return fitting


def last_asked(messages: Sequence[Message]) -> int | None:
    """Which message is the user's last turn; None where there is none."""
    return max((at for at, message in enumerate(messages) if message["role"] == "user"), default=None)


def verdict(source: str, made: str, *, finished: bool) -> str:
    """``KEPT``, or why a text is no paraphrase of its source."""
    if not made.strip():
        return "empty"
    if not finished:
        return "unfinished"
    if text_key(made) == text_key(source):
        return "the same words"
    if len(made) > _LONGER * len(source):
        return "much longer"
    return KEPT

"""White space and broken Unicode. Pure but for `ftfy`, which is loaded when it is asked for."""

from __future__ import annotations

import re
import unicodedata

_BLANKS = re.compile(r"(?<=\S)[^\S\n]+(?=\S)")  # within a line: what a line begins with may be meant
_TRAILING = re.compile(r"[^\S\n]+(?=\n|$)")
_EMPTY_LINES = re.compile(r"\n{3,}")
_UNSEEN = re.compile("[\u200b\u200e\u200f\u2060\ufeff\u00ad]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_LINE_ENDS = re.compile("\r\n?|[\u2028\u2029\x85\x0b\x0c]")


def clean(text: str, *, fix_unicode: bool = True) -> str:
    """The text in NFC, without controls, unseen characters, and white space that says nothing.

    ``fix_unicode`` first repairs text that was decoded wrongly, HTML's entities and the like by `ftfy`.
    """
    text = _repaired(text) if fix_unicode else unicodedata.normalize("NFC", text)
    text = _UNSEEN.sub("", _LINE_ENDS.sub("\n", text))
    text = _TRAILING.sub("", _BLANKS.sub(" ", _CONTROLS.sub("", text)))
    return _EMPTY_LINES.sub("\n\n", text).strip()


def _repaired(text: str) -> str:
    from ftfy import TextFixerConfig, fix_text

    # Typographic quotes and ligatures are the author's; a wrong decoding is not.
    return str(fix_text(text, TextFixerConfig(uncurl_quotes=False, fix_latin_ligatures=False)))

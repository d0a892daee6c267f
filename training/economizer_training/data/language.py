"""Which language a text is in, by `py3langid`, which brings its model along."""

from __future__ import annotations

from functools import cache
from typing import Any

_CHARACTERS_MIN = 40  # of less, any guess is one
_CHARACTERS_MAX = 4000  # more makes it slower, not surer


def language_of(text: str) -> tuple[str, float] | None:
    """The most probable language (ISO 639-1) of a text and its probability; None where the text is too short to say."""
    if len(text) < _CHARACTERS_MIN:
        return None
    language, probability = _identifier().classify(text[:_CHARACTERS_MAX])
    return str(language), float(probability)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

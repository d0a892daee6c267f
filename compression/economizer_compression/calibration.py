"""Calibration text as token ids: documents and the model's own answers, mixed, cut to samples of one length."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from economizer.variants.manifest import CalibrationSet

from economizer_compression.answers import answer
from economizer_compression.errors import CompressionError
from economizer_compression.overlap import Hashes, ngrams
from economizer_compression.suite import Source, Suite, TextSource
from economizer_compression.texts import chats, documents


@dataclass(frozen=True, kw_only=True)
class CalibrationTexts:
    """Samples of token ids, all of one length; what the manifest says of them; the hashes of their n-grams."""

    token_ids: list[list[int]]
    record: CalibrationSet
    ngrams: Hashes


def calibration_samples(
    suite: Suite,
    tokenizer: Any,
    model: Callable[[], Any],
    *,
    data: Path | None,
    samples: int,
    tokens: int,
    seed: int,
    cache: Path,
    model_sha256: str,
) -> CalibrationTexts:
    """``samples`` samples of ``tokens`` tokens, taken evenly from the suite's sources in an order drawn with ``seed``.

    ``model`` returns the loaded model and is called when its own answers are not in ``cache`` yet. Raises
    CompressionError where the sources together hold too little text.
    """
    if not suite.calibration:
        raise CompressionError(f"suite {suite.name}: calibration: []: must name a source for this recipe")
    streams = [
        list(_samples(_texts(source, tokenizer, model, data, cache, model_sha256), tokens, seed))
        for source in suite.calibration
    ]
    available = sum(map(len, streams))
    if available < samples:
        raise CompressionError(
            f"suite {suite.name}: its calibration text gives {available} samples of {tokens} tokens and {samples} are "
            f"wanted: add text, or lower calibration.samples in the recipe"
        )
    taken = _evenly(streams, samples)
    decoded = tokenizer.batch_decode(taken, skip_special_tokens=True)
    digest = hashlib.sha256(np.array(taken, dtype="<i4").tobytes()).hexdigest()
    sources = ", ".join(map(_told, suite.calibration))
    record = CalibrationSet(
        source=f"{suite.name}: {sources}", samples=samples, tokens=samples * tokens, seed=seed, sha256=digest
    )
    return CalibrationTexts(token_ids=taken, record=record, ngrams=ngrams(decoded))


def _told(source: Source) -> str:
    return source.text if isinstance(source, TextSource) else f"own answers to {source.answers}"


def _texts(
    source: Source, tokenizer: Any, model: Callable[[], Any], data: Path | None, cache: Path, key: str
) -> Iterator[list[int]]:
    """Each document, or chat with its answer, as token ids."""
    if isinstance(source, TextSource):
        end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        for text in documents(source.text, data, part="calibration", field=source.field):
            yield [*tokenizer(text).input_ids, *end]
        return
    asked = chats(source.answers, data, part="calibration", field=source.field)
    for made in answer(model, tokenizer, asked, tokens=source.answer_tokens, cache=cache, key=key):
        yield [*made.prompt_ids, *made.answer_ids]


def _samples(texts: Iterator[list[int]], tokens: int, seed: int) -> Iterator[list[int]]:
    """The texts in a drawn order, one after another, cut every ``tokens`` tokens; the rest is left."""
    drawn = list(texts)
    random.Random(seed).shuffle(drawn)
    stream = [token for text in drawn for token in text]
    for start in range(0, len(stream) - tokens + 1, tokens):
        yield stream[start : start + tokens]


def _evenly(streams: list[list[list[int]]], samples: int) -> list[list[int]]:
    """In turns from each stream, and on from the others where one has no more."""
    taken: list[list[int]] = []
    for index in range(max(map(len, streams))):
        taken += [stream[index] for stream in streams if index < len(stream)]
    return taken[:samples]

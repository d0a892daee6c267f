"""Suites: YAML files that say what text calibrates a recipe and what a variant is scored on. No torch here.

::

    name: public
    calibration:
      - {text: c4_demo_300.jsonl, field: text}
      - {answers: builtin:prompts, answer_tokens: 192}
    evaluation:
      - {slice: encyclopedia, text: wikitext2_valid.txt, tokens: 8192, window: 512}
      - {slice: chat, answers: mt_bench_questions.jsonl, field: turns, items: 40, answer_tokens: 96}
      - {slice: knowledge, choices: {dataset_path: json, ...an lm-eval task...}, items: 200}

``text`` is read as it stands, ``answers`` are chat prompts that the full model answers, ``choices`` is a task of
multiple choice for lm-eval: its settings, a YAML file with them, or the name of one that lm-eval knows. Relative paths,
those in a task's ``dataset_kwargs.data_files`` too, lie in the folder given with ``--data``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from economizer.variants.types import require
from pydantic import TypeAdapter, ValidationError

from economizer_compression.errors import CompressionError

SHIPPED = Path(__file__).resolve().parents[1] / "suites"

_FORBID = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSource:
    """Calibration text: ``builtin:documents`` or a file (txt, jsonl, json, csv), with the field that holds the text."""

    __pydantic_config__ = _FORBID

    text: str
    field: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerSource:
    """Calibration chats: prompts, answered by the model itself with up to ``answer_tokens`` tokens each."""

    __pydantic_config__ = _FORBID

    answers: str
    field: str | None = None
    answer_tokens: int = 192


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSlice:
    """Documents scored token by token, in windows of ``window`` tokens that are the intervals' clusters."""

    __pydantic_config__ = _FORBID

    slice: str
    text: str
    field: str | None = None
    tokens: int = 8192
    window: int = 512

    def __post_init__(self) -> None:
        require(self.window >= 2, "window", self.window, "must be 2 or more")
        require(self.tokens >= self.window, "tokens", self.tokens, "must be at least window")


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerSlice:
    """Chat prompts with the full model's own answers, whose tokens are scored; each chat is a cluster."""

    __pydantic_config__ = _FORBID

    slice: str
    answers: str
    field: str | None = None
    items: int = 40
    answer_tokens: int = 96

    def __post_init__(self) -> None:
        require(self.items >= 1, "items", self.items, "must be 1 or more")
        require(self.answer_tokens >= 1, "answer_tokens", self.answer_tokens, "must be 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceSlice:
    """A multiple-choice task of lm-eval, ``items`` of it evenly over its data; each item is a cluster."""

    __pydantic_config__ = _FORBID

    slice: str
    choices: str | Mapping[str, Any]
    items: int = 200

    def __post_init__(self) -> None:
        require(self.items >= 1, "items", self.items, "must be 1 or more")


Slice = TextSlice | AnswerSlice | ChoiceSlice
Source = TextSource | AnswerSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """What calibrates and what is scored; the two share no text, which the overlap check holds."""

    name: str
    calibration: tuple[Source, ...]
    evaluation: tuple[Slice, ...]
    sha256: str

    def __post_init__(self) -> None:
        names = [each.slice for each in self.evaluation]
        require(bool(names), "evaluation", names, "must name at least one slice")
        require(len(set(names)) == len(names), "evaluation", names, "must have slices of different names")


def load_suite(name: str) -> Suite:
    """A suite by its file's path or, for those that come with the package, by its name; raises CompressionError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else SHIPPED / f"{name}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise CompressionError(f"there is no suite {name}: give a YAML file or one of {shipped}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CompressionError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return parse_suite(content, str(path))


def parse_suite(content: Any, source: str) -> Suite:
    """The suite in already-read YAML; raises CompressionError with every mistake's key, value and rule."""
    if not isinstance(content, dict):
        raise CompressionError(f"{source}: {content!r}: must be a mapping of name, calibration, evaluation")
    mistakes: list[str] = []
    known = {"name", "calibration", "evaluation"}
    mistakes += [
        f"{key}: is not a known key here; there are {', '.join(sorted(known))}" for key in content.keys() - known
    ]
    calibration = _entries(content, "calibration", {"text": TextSource, "answers": AnswerSource}, mistakes)
    kinds = {"text": TextSlice, "answers": AnswerSlice, "choices": ChoiceSlice}
    evaluation = _entries(content, "evaluation", kinds, mistakes)
    if mistakes:
        raise CompressionError(f"{source}: {'; '.join(mistakes)}")
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    try:
        return Suite(
            name=str(content.get("name", Path(source).stem)),
            calibration=calibration,
            evaluation=evaluation,
            sha256=digest,
        )
    except ValueError as error:
        raise CompressionError(f"{source}: {error}") from None


def _entries(content: Mapping[str, Any], key: str, kinds: Mapping[str, type], mistakes: list[str]) -> tuple[Any, ...]:
    entries = content.get(key)
    if not isinstance(entries, list):
        mistakes.append(f"{key}: {entries!r}: must be a list")
        return ()
    return tuple(_parsed(entries, key, kinds, mistakes))


def _parsed(entries: list[Any], key: str, kinds: Mapping[str, type], mistakes: list[str]) -> Iterator[Any]:
    for index, entry in enumerate(entries):
        kind = [name for name in kinds if isinstance(entry, dict) and name in entry]
        if len(kind) != 1:
            mistakes.append(f"{key}[{index}]: {entry!r}: must have one of the keys {', '.join(kinds)}")
            continue
        try:
            yield TypeAdapter(kinds[kind[0]]).validate_python(entry)
        except ValidationError as error:
            for found in error.errors():
                path = ".".join(str(part) for part in (f"{key}[{index}]", *found["loc"]))
                unknown = found["type"] in ("unexpected_keyword_argument", "extra_forbidden")
                rule = "is not a known key here" if unknown else found["msg"].removeprefix("Value error, ")
                mistakes.append(f"{path}: {found['input']!r}: {rule}")

"""What ``economizer-train prepare`` is told, as a YAML file. No torch and no Ray here.

::

    tokenizer: ./.economizer/models/smollm2-135m-instruct
    sources:
      - {name: manual, files: "builtin:documents"}
      - {name: web, files: c4/*.jsonl.gz, text: content}
      - {name: chats, files: s3://bucket/chats.parquet, messages: messages}
      - name: sums
        files: gsm8k_train.jsonl
        templates:
          - {user: "{question}", assistant: "{answer}"}
          - {user: "Solve this step by step.\\n{question}", assistant: "{answer}"}
    cleaning: {languages: [en], mask: [email, phone, ip, card]}
    decontamination: {against: [mmlu_test.jsonl]}
    packing: {tokens: 512, shards: 4}

Relative files lie in the folder given with ``--data``, those with ``./`` in the checkout; others are absolute or fsspec
URLs. Every key and what it does is told in docs/training.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Annotated, Any, Literal

from economizer.energy.choose import MeterSettings
from economizer.variants.types import require
from pydantic import BeforeValidator

from economizer_training.data.private import KINDS, Kind
from economizer_training.data.rules import RULES

_FORBID = {"extra": "forbid"}

_NEITHER_BYTE_BY_BYTE = ("utf-16", "utf-32", "utf16", "utf32", "utf_16", "utf_32")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Files = Annotated[tuple[str, ...], BeforeValidator(_listed)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """A chat made of a row's fields, which stand in braces; a dot leads into an inner field or a list's item.

    Without ``assistant`` the teacher answers.
    """

    __pydantic_config__ = _FORBID

    user: str
    assistant: str | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.fields), "templates", self.user, "must name at least one field, as in {question}")

    @property
    def fields(self) -> frozenset[str]:
        """The fields that the template names."""
        texts = [text for text in (self.system, self.user, self.assistant) if text is not None]
        return frozenset(name for text in texts for _, name, _, _ in Formatter().parse(text) if name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Files of one kind. A row is a document (``text``), a chat (``messages``) or fields for ``templates``.

    ``text`` and ``messages`` name the row's field; ``split`` says what a row of a text file is. ``slice`` names the
    field by which rare kinds of row are found, the default is one slice for the source. ``rules`` false spares the
    source the rules for prose.
    """

    __pydantic_config__ = _FORBID

    name: str
    files: Files
    format: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    encoding: str = "utf-8"
    split: Literal["file", "line", "paragraph"] = "file"
    text: str = "text"
    messages: str | None = None
    templates: tuple[Template, ...] = ()
    slice: str | None = None
    rules: bool = True

    def __post_init__(self) -> None:
        plain = bool(self.name) and not any(c in "/:" or c.isspace() for c in self.name)
        require(plain, "name", self.name, "must have no / : or space")
        require(bool(self.files), "files", self.files, "must name at least one file")
        require(not (self.messages and self.templates), "messages", self.messages, "must not stand beside templates")
        fitting = not self.encoding.lower().startswith(_NEITHER_BYTE_BY_BYTE)
        require(fitting, "encoding", self.encoding, "must be one in which lines end with the byte 0x0a")

    @property
    def kind(self) -> Literal["text", "chat", "fields"]:
        """What a row of it is."""
        return "chat" if self.messages else "fields" if self.templates else "text"

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that make a row of templates, in a fixed order."""
        return tuple(sorted(frozenset().union(*(template.fields for template in self.templates))))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cleaning:
    """How text is repaired and what is too poor to learn from.

    ``fix_unicode`` repairs mojibake and the like. ``languages`` are those that stay (ISO 639-1), none is all.
    ``characters_min`` and ``characters_max`` hold for every example. ``rules`` maps a rule of the table to another
    threshold, or to false. ``mask`` names what is private. ``length_outliers`` is the robust z-score of an example's
    length from which it is an outlier in its slice; None keeps all.
    """

    __pydantic_config__ = _FORBID

    fix_unicode: bool = True
    languages: tuple[str, ...] = ()
    language_probability_min: float = 0.5
    characters_min: int = 1
    characters_max: int = 1_000_000
    rules: Mapping[str, float | Literal[False]] = field(default_factory=dict)
    mask: tuple[Kind, ...] = ()
    length_outliers: float | None = 3.5
    perplexity_outliers: float | None = None

    def __post_init__(self) -> None:
        known = {rule.name for rule in RULES}
        unknown = sorted(self.rules.keys() - known)
        require(not unknown, "rules", unknown, f"must be of {', '.join(sorted(known))}")
        require(
            1 <= self.characters_min <= self.characters_max,
            "characters_min",
            self.characters_min,
            f"must be between 1 and characters_max ({self.characters_max})",
        )
        share = self.language_probability_min
        require(0 <= share <= 1, "language_probability_min", share, "must be between 0 and 1")
        for name in ("length_outliers", "perplexity_outliers"):
            z = getattr(self, name)
            require(z is None or z > 0, name, z, "must be above 0")
        require(len(set(self.mask)) == len(self.mask), "mask", self.mask, f"must name each of {KINDS} at most once")


@dataclass(frozen=True, kw_only=True, slots=True)
class Deduplication:
    """``exact`` drops what has the same words, ``near`` what shares that much of its runs of ``words`` words.

    ``near`` is a Jaccard similarity, as MinHash with ``permutations`` hashes estimates it; None is off.
    """

    __pydantic_config__ = _FORBID

    exact: bool = True
    near: float | None = 0.8
    words: int = 5
    permutations: int = 128

    def __post_init__(self) -> None:
        require(self.near is None or 0 < self.near < 1, "near", self.near, "must be between 0 and 1, or null")
        require(self.words >= 1, "words", self.words, "must be 1 or more")
        require(self.permutations >= 16, "permutations", self.permutations, "must be 16 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Decontamination:
    """Drops what shares ``words`` words in a row with any text of the evaluation files ``against``.

    ``keep_ngrams`` leaves hashes of what is learnt, 8 bytes a word, by which later evaluations leave out what was seen.
    """

    __pydantic_config__ = _FORBID

    against: Files = ()
    words: int = 13
    keep_ngrams: bool = True

    def __post_init__(self) -> None:
        require(self.words >= 4, "words", self.words, "must be 4 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Repeats rare slices until their shares are as n^alpha; 1 leaves them, 0 makes all as frequent as the largest."""

    __pydantic_config__ = _FORBID

    alpha: float = 1.0
    repeats_max: float = 4.0

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "alpha", self.alpha, "must be between 0 and 1")
        require(self.repeats_max >= 1, "repeats_max", self.repeats_max, "must be 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """The teacher's most probable answers, of up to ``tokens`` tokens, to chats that end with the user's turn."""

    __pydantic_config__ = _FORBID

    tokens: int = 128

    def __post_init__(self) -> None:
        require(self.tokens >= 1, "tokens", self.tokens, "must be 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Paraphrases:
    """The teacher's paraphrases of the share ``share`` of what is learnt from, which are learnt from too.

    Of a chat the user's last turn is put otherwise, of a document its beginning: as many whole paragraphs as are
    ``tokens`` tokens at most, which a paraphrase may be, too. ``prompt`` asks for it, with the text for ``{text}``.
    """

    __pydantic_config__ = _FORBID

    share: float = 0.1
    tokens: int = 256
    prompt: str = (
        "Rewrite the following text in other words. Keep its meaning and its length, and answer with the new text "
        "alone.\n\n{text}"
    )

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "share", self.share, "must be above 0 and at most 1")
        require(self.tokens >= 16, "tokens", self.tokens, "must be 16 or more")
        require("{text}" in self.prompt, "prompt", self.prompt, "must have {text} where the text goes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """Rows of ``tokens`` tokens in ``shards`` files; the share ``held_out`` of each slice goes to a file of its own.

    ``counted`` says which tokens of chats count in a loss and a score: all, or the assistant's alone.
    """

    __pydantic_config__ = _FORBID

    tokens: int = 512
    shards: int = 4
    held_out: float = 0.02
    counted: Literal["all", "assistant"] = "all"

    def __post_init__(self) -> None:
        require(self.tokens >= 16, "tokens", self.tokens, "must be 16 or more")
        require(self.shards >= 1, "shards", self.shards, "must be 1 or more")
        require(0 <= self.held_out < 1, "held_out", self.held_out, "must be at least 0 and under 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """A whole run: what is read, and what becomes of it; ``seed`` decides all that is drawn.

    ``tokenizer`` is the teacher's folder, of which ``answers``, ``paraphrases`` and ``cleaning.perplexity_outliers``
    need the weights, too. Without ``answers`` what nobody answers is dropped.
    """

    __pydantic_config__ = _FORBID

    tokenizer: str
    seed: int = 0
    sources: tuple[Source, ...]
    cleaning: Cleaning = field(default_factory=Cleaning)
    deduplication: Deduplication = field(default_factory=Deduplication)
    decontamination: Decontamination = field(default_factory=Decontamination)
    sampling: Sampling = field(default_factory=Sampling)
    answers: Answers | None = None
    paraphrases: Paraphrases | None = None
    packing: Packing = field(default_factory=Packing)
    meter: MeterSettings = field(default_factory=MeterSettings)

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        require(bool(names), "sources", names, "must name at least one source")
        require(len(set(names)) == len(names), "sources", names, "must have different names")
        asking = [s.name for s in self.sources for template in s.templates if template.assistant is None]
        require(not asking or self.answers is not None, "answers", None, f"must be given for templates of {asking}")

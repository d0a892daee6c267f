"""The data card: what a prepared folder holds, what became of the text, and what that took. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from economizer.energy.types import UJ_PER_J, Measurement
from economizer_compression.markdown import number, table

from economizer_training.data.account import Stage
from economizer_training.data.rules import RULES

CARD = "data-card.json"
README = "README.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    """``sha256`` is the digest of its vocabulary."""

    folder: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """A source: its files, and the examples and their bytes in them."""

    name: str
    files: int
    examples: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A split: its examples by slice, repeats too, and the rows and tokens that they take; the rest is padding."""

    examples: Mapping[str, int]
    rows: int
    tokens: int
    padding: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A span of the run: all energy of its processes on this machine, and what of it is above idling. None: unknown."""

    name: str
    seconds: float
    energy_j: float | None
    active_j: float | None
    uncertainty: float | None
    note: str = ""

    @classmethod
    def of(cls, name: str, found: Measurement) -> Span:
        joules = None if found.energy_uj is None else found.energy_uj / UJ_PER_J
        active = None if found.active_uj is None else found.active_uj / UJ_PER_J
        return cls(
            name=name,
            seconds=round(found.seconds, 3),
            energy_j=joules,
            active_j=active,
            uncertainty=found.uncertainty,
            note=found.note,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """All that is known of a prepared folder.

    ``tokens`` is a row's length, ``answered`` how often the teacher was asked, ``paraphrased`` how many paraphrases of
    its were kept, and refused by which rule. ``settings`` are the preparation's, every default written out.
    """

    seed: int
    tokens: int
    tokenizer: Tokenizer
    sources: Sequence[Read]
    stages: Sequence[Stage]
    masked: Mapping[str, int]
    answered: int
    paraphrased: Mapping[str, int]
    splits: Mapping[str, Part]
    meter: str
    spans: Sequence[Span]
    settings: Mapping[str, Any]

    @property
    def tokens_in_all(self) -> int:
        """In all splits, without padding."""
        return sum(part.tokens for part in self.splits.values())

    @property
    def energy_j(self) -> float | None:
        """Of all spans; None where one is unknown."""
        found = [span.energy_j for span in self.spans]
        return None if None in found else sum(joules for joules in found if joules is not None)


def markdown(card: Card, name: str) -> str:
    """The card for readers."""
    return "\n".join([f"# Prepared data: {name}", "", *_summary(card), *_stages(card), *_holds(card), *_took(card)])


def _summary(card: Card) -> Iterator[str]:
    rows = sum(part.rows for part in card.splits.values())
    yield f"{card.tokens_in_all:,} tokens in {rows:,} rows of {card.tokens}. Seed {card.seed}; the same seed, files and"
    yield "settings give the same rows. Settings and all figures: `data-card.json`. Checksums: `shards.json`."
    yield ""
    yield from table(
        ["source", "files", "examples", "bytes"],
        [[s.name, f"{s.files:,}", f"{s.examples:,}", f"{s.size_bytes:,}"] for s in card.sources],
    )


def _stages(card: Card) -> Iterator[str]:
    yield from ("", "## What became of it", "")
    yield from table(
        ["stage", "examples in", "examples out", "bytes in", "bytes out"],
        [
            [s.name, f"{s.examples_in:,}", f"{s.examples_out:,}", f"{s.bytes_in:,}", f"{s.bytes_out:,}"]
            for s in card.stages
        ],
    )
    sources = {rule.name: rule.source for rule in RULES}
    dropped = [
        [stage.name, rule, f"{count:,}", sources.get(rule, "")]
        for stage in card.stages
        for rule, count in stage.dropped.items()
    ]
    if dropped:
        yield ""
        yield from table(["stage", "dropped by", "examples", "the rule is from"], dropped)
    if card.masked:
        yield ""
        yield from table(["masked", "times"], [[kind, f"{count:,}"] for kind, count in card.masked.items()])


def _holds(card: Card) -> Iterator[str]:
    yield from ("", "## What it holds", "")
    yield from table(
        ["split", "rows", "tokens", "padding"],
        [[name, f"{p.rows:,}", f"{p.tokens:,}", f"{p.padding:,}"] for name, p in card.splits.items()],
    )
    yield ""
    yield from table(
        ["split", "slice", "examples"],
        [[split, name, f"{n:,}"] for split, part in card.splits.items() for name, n in part.examples.items()],
    )
    if card.answered:
        yield from ("", f"{card.answered:,} of the chats end with an answer of the teacher's.")
    if card.paraphrased:
        told = ", ".join(f"{what} {count:,}" for what, count in card.paraphrased.items())
        yield from ("", f"Paraphrases of the teacher's: {told}.")


def _took(card: Card) -> Iterator[str]:
    yield from ("", "## What it took", "")
    yield from table(
        ["span", "seconds", "joules", "joules above idle"],
        [[s.name, number(s.seconds), number(s.energy_j), number(s.active_j)] for s in card.spans],
    )
    yield from ("", f"Metered by: {card.meter}.")
    total = card.energy_j
    if total is not None and card.tokens_in_all:
        yield f"In all {number(total)} J, {number(1000 * total / card.tokens_in_all)} J a thousand tokens."
    for note in sorted({span.note for span in card.spans if span.note}):
        yield f"Unknown: {note}."
    yield ""

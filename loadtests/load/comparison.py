"""Two runs side by side: every figure of both, the second over the first, and pairs of the same request. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from load.measures import Better, Figure, figure, measures
from load.run import Run
from load.statistics import Ints, Percentile, Ratio, blocks, draws, estimate, ratio
from load.types import Outcome

_EXAMPLES = 5


class SideBySide(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of both runs; ``ratio`` is the second's over the first's, with the ends of its 95 % interval."""

    first: Figure
    second: Figure
    better: Better | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Requests whose plan is not the same in both runs: how many, and the numbers of the first few."""

    what: str
    requests: int
    numbers: tuple[int, ...]


class Paired(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity of the requests that both runs know it of: second over first, request by request."""

    label: str
    basis: str
    samples: int
    median_ratio: Figure
    less_in_second: Figure


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The second run beside the first. ``met`` counts pairs: both, first alone, second alone, neither met its terms.

    ``same_hash`` is whether the plans are the same to the last word of their prompts; None is not known.
    """

    same_plan: bool
    same_hash: bool | None
    differences: tuple[Difference, ...]
    pairs: int
    figures: dict[str, SideBySide]
    paired: dict[str, Paired]
    met: dict[str, int]


class Pair(NamedTuple):
    """The same request in both runs."""

    first: Outcome
    second: Outcome


# What makes a request the same one in both runs; that another model was asked makes it no other request.
_PLAN: dict[str, Callable[[Pair], bool]] = {
    "kind": lambda pair: pair.first.kind != pair.second.kind,
    "tenant": lambda pair: pair.first.tenant != pair.second.tenant,
    "terms": lambda pair: pair.first.terms != pair.second.terms,
    "prompt tokens": lambda pair: None not in (tokens := _prompt_tokens(pair)) and tokens[0] != tokens[1],
}
_BESIDE: dict[str, Callable[[Pair], bool]] = {
    "due time": lambda pair: pair.first.due_s != pair.second.due_s,
    "model": lambda pair: pair.first.model != pair.second.model,
}
_QUANTITIES: dict[str, tuple[str, str, Callable[[Outcome], float | None]]] = {
    "ttft_s": ("TTFT", "from the due time; whole streamed answers in both runs", lambda one: one.ttft_s),
    "tpot_s": ("TPOT", "whole streamed answers of 2 tokens or more in both runs", lambda one: one.tpot_s),
    "e2e_s": ("end to end", "from the due time; whole answers in both runs", lambda one: one.e2e_s),
    "energy_j": ("energy", "the answers' own figures (usage basis) in both runs", lambda one: one.energy_j),
    "cost_usd": ("cost", "the answers' own figures (usage basis) in both runs", lambda one: one.cost_usd),
    "output_tokens": (
        "output tokens",
        "whole answers that told their usage in both runs",
        lambda one: one.output_tokens,
    ),
}


def _prompt_tokens(pair: Pair) -> tuple[int | None, int | None]:
    return pair.first.prompt_tokens, pair.second.prompt_tokens


def draws_of(first: Run, second: Run, seed: int = 0) -> tuple[Ints, Ints]:
    """The draws of both runs' blocks: the same ones where the plan is the same, else independent ones."""
    counts = draws(first.block_of, seed)
    return counts, counts if _same_plan(first, second) else draws(second.block_of, seed + 1)


def compare(first: Run, second: Run, seed: int = 0) -> Comparison:
    """The second run over the first, with intervals from draws that begin at ``seed``."""
    counts = draws_of(first, second, seed)
    hashes = first.plan_sha256, second.plan_sha256
    pairs = _pairs(first, second)
    alike = [pair for pair in pairs if not any(differs(pair) for differs in _PLAN.values())]
    return Comparison(
        same_plan=_same_plan(first, second),
        same_hash=None if None in hashes else hashes[0] == hashes[1],
        differences=tuple(_differences(first, second, pairs)),
        pairs=len(alike),
        figures=dict(_side_by_side(first, second, counts)),
        paired=dict(_paired(alike, first.window_s, seed)),
        met={
            "both": sum(pair.first.met and pair.second.met for pair in alike),
            "first alone": sum(pair.first.met and not pair.second.met for pair in alike),
            "second alone": sum(pair.second.met and not pair.first.met for pair in alike),
            "neither": sum(not pair.first.met and not pair.second.met for pair in alike),
        },
    )


def _pairs(first: Run, second: Run) -> list[Pair]:
    other = {one.number: one for one in second.outcomes}
    return [Pair(one, other[one.number]) for one in first.outcomes if one.number in other]


def _same_plan(first: Run, second: Run) -> bool:
    """Whether both were to send the same requests at the same times."""
    pairs = _pairs(first, second)
    differ = (*_PLAN.values(), _BESIDE["due time"])
    return len(pairs) == len(first.outcomes) == len(second.outcomes) and not any(
        differs(pair) for pair in pairs for differs in differ
    )


def _differences(first: Run, second: Run, pairs: Sequence[Pair]) -> Iterator[Difference]:
    common = {pair.first.number for pair in pairs}
    for name, run in (("only in the first", first), ("only in the second", second)):
        yield from _difference(name, sorted(one.number for one in run.outcomes if one.number not in common))
    for name, differs in (*_PLAN.items(), *_BESIDE.items()):
        yield from _difference(f"another {name}", [pair.first.number for pair in pairs if differs(pair)])


def _difference(what: str, numbers: Sequence[int]) -> Iterator[Difference]:
    if numbers:
        yield Difference(what=what, requests=len(numbers), numbers=tuple(numbers[:_EXAMPLES]))


def _side_by_side(first: Run, second: Run, counts: tuple[Ints, Ints]) -> Iterator[tuple[str, SideBySide]]:
    for one in measures():
        under = estimate(one.of(first), first.block_of, counts[0])
        over = estimate(one.of(second), second.block_of, counts[1])
        value, low, high = ratio(over, under)
        yield (
            one.key,
            SideBySide(
                first=one.figure(under),
                second=one.figure(over),
                better=one.better,
                ratio=value,
                ratio_low=low,
                ratio_high=high,
            ),
        )


def _paired(pairs: Sequence[Pair], window_s: float, seed: int) -> Iterator[tuple[str, Paired]]:
    block_of = blocks(np.array([pair.first.due_s for pair in pairs], dtype=np.float64), window_s)
    counts = draws(block_of, seed)
    ones = np.ones(len(pairs))
    for key, (name, basis, value) in _QUANTITIES.items():
        ratios = np.array([_ratio(pair, value) for pair in pairs], dtype=np.float64)
        middle = estimate(Percentile(ratios, 50.0), block_of, counts)
        less = estimate(Ratio(np.where(np.isnan(ratios), np.nan, ratios < 1), ones), block_of, counts)
        yield (
            key,
            Paired(
                label=name,
                basis=basis,
                samples=middle.samples,
                median_ratio=figure(middle, label=f"{name}: second over first, median", unit="times", basis=basis),
                less_in_second=figure(less, label=f"{name}: less in the second", unit="share", basis=basis),
            ),
        )


def _ratio(pair: Pair, value: Callable[[Outcome], float | None]) -> float:
    """Second over first; nan where one of them has none, or is no whole answer."""
    first, second = value(pair.first), value(pair.second)
    if not (pair.first.answered and pair.second.answered) or first is None or second is None or first <= 0:
        return np.nan
    return second / first

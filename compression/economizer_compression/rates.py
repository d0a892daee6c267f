"""Speed and energy from what was timed. Pure: no clock, no requests.

A window is one piece of work on one engine: some prompts to read, or a batch that decodes. A round is one window of
each kind on each engine, in turns, so that a ratio compares figures of the same minute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Any

from economizer.variants.manifest import Interval

# Of one request's stream: when a part came, in seconds, and how many tokens had come with it.
Sample = tuple[float, int]

_DECODE_TOKENS_MIN = 4
_PREFILL_TOKENS_MIN = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillWindow:
    """Prompts read one after the other: their tokens, the wall time, the active energy; None is unknown."""

    tokens: int
    wall_s: float
    active_j: float | None

    @property
    def tokens_per_s(self) -> float:
        """Prompt tokens per second of wall time."""
        return self.tokens / self.wall_s

    @property
    def j_per_token(self) -> float | None:
        """Active joules per prompt token."""
        return None if self.active_j is None else self.active_j / self.tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeWindow:
    """A batch that decodes, in the time in which all its requests did.

    ``tokens_per_s`` holds each request's rate. ``active_w`` is the active power in that time, None where unknown.
    """

    tokens_per_s: tuple[float, ...]
    active_w: float | None

    @property
    def batch_tokens_per_s(self) -> float:
        """Output tokens per second of the whole batch."""
        return sum(self.tokens_per_s)

    @property
    def tpot_s(self) -> float:
        """Seconds per output token of the median request."""
        return 1 / median(self.tokens_per_s)

    @property
    def j_per_token(self) -> float | None:
        """Active joules per output token."""
        return None if self.active_w is None else self.active_w / self.batch_tokens_per_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What one engine did in one round; ``decode`` by batch size."""

    ttft_s: float
    prefill: PrefillWindow
    decode: Mapping[int, DecodeWindow]


def decode_window(streams: Sequence[Sequence[Sample]], active_w: float | None) -> DecodeWindow:
    """The window from the last request's first token to the first request's last one.

    Each request's rate is taken between its own first and last part in the window, so that it does not matter which of
    the parts that one step of the engine makes happens to arrive last. Raises ValueError where a request has no two
    parts in the window.
    """
    if not all(streams):
        raise ValueError(f"{sum(map(bool, streams))} of {len(streams)} had begun when the first was over")
    began_s = max(stream[0][0] for stream in streams)
    ended_s = min(stream[-1][0] for stream in streams)
    rates = []
    for stream in streams:
        inside = [sample for sample in stream if began_s <= sample[0] <= ended_s]
        if len(inside) < 2 or inside[-1][0] <= inside[0][0]:
            raise ValueError(
                f"one has {len(inside)} parts in the time in which all {len(streams)} run: must be 2 or more"
            )
        rates.append((inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0]))
    return DecodeWindow(tokens_per_s=tuple(rates), active_w=active_w)


def decode_tokens(request_tokens_per_s: float, window_s: float, room_tokens: int) -> int:
    """How many tokens each request is to make, so that a batch decodes for about ``window_s``; at least 4."""
    wanted = max(_DECODE_TOKENS_MIN, ceil(request_tokens_per_s * window_s) + 1)
    return min(wanted, room_tokens)


def prefill_lengths(tokens_per_s: float, window_s: float, *, short: int, long: int, room_tokens: int) -> list[int]:
    """The prompts' lengths, in tokens, that an engine reads in about ``window_s``.

    One long prompt and as many short ones as fit beside it; short ones alone where the long one leaves no time for
    one; a single shorter one on an engine that takes longer for that already.
    """
    short, long = min(short, room_tokens), min(long, room_tokens)
    budget = tokens_per_s * window_s
    if budget >= short + long:
        return [short] * int((budget - long) // short) + [long]
    if budget >= short:
        return [short] * int(budget // short)
    return [min(short, max(_PREFILL_TOKENS_MIN, int(budget)))]


def interval(values: Sequence[float]) -> Interval:
    """The median with the smallest and the largest."""
    return Interval(value=median(values), low=min(values), high=max(values))


def intervals(rounds: Sequence[Mapping[Any, float]]) -> dict[Any, Interval]:
    """For each key the median over the rounds with the smallest and the largest."""
    return {key: interval([one[key] for one in rounds]) for key in rounds[0]}


def over_batches(rounds: Sequence[Round], figure: Callable[[DecodeWindow], float]) -> dict[int, Interval]:
    """A figure of the decode windows by batch size, over the rounds."""
    return intervals([{batch: figure(window) for batch, window in one.decode.items()} for one in rounds])


def energy_j_per_token(rounds: Sequence[Round]) -> tuple[Interval, dict[int, Interval]] | None:
    """(joules per prompt token, joules per output token by batch size); None where a window's energy is unknown."""
    prefill = _known([one.prefill.j_per_token for one in rounds])
    decode = {batch: _known([one.decode[batch].j_per_token for one in rounds]) for batch in rounds[0].decode}
    if any(len(known) < len(rounds) for known in (prefill, *decode.values())):
        return None
    return interval(prefill), {batch: interval(known) for batch, known in decode.items()}


def paired_ratios(variant: Sequence[Round], full: Sequence[Round]) -> dict[str, Interval]:
    """Variant over full in each round, over the rounds: ``ttft``, ``prefill``, ``decode@16``, ``decode_j@16``, ...

    None of energy where one window's is unknown: a manifest then has no joules, and names no method that measured them.
    """
    ratios = []
    with_energy = bool(variant) and all(energy_j_per_token(rounds) is not None for rounds in (variant, full))
    for ours, theirs in zip(variant, full, strict=True):
        above, below = _named(ours, with_energy), _named(theirs, with_energy)
        ratios.append({name: above[name] / below[name] for name in above if below[name] > 0})
    common = set.intersection(*(set(one) for one in ratios)) if ratios else set()
    return intervals([{name: one[name] for name in one if name in common} for one in ratios]) if ratios else {}


def logprob_differences(
    served: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]
) -> tuple[float, float, float]:
    """How the tokens' log probabilities differ: the largest and the mean absolute difference, and the mean difference.

    Raises ValueError unless the shapes agree.
    """
    differences = [
        ours - theirs
        for served_one, expected_one in zip(served, expected, strict=True)
        for ours, theirs in zip(served_one, expected_one, strict=True)
    ]
    if not differences:
        raise ValueError("no log probabilities to compare")
    sizes = [abs(difference) for difference in differences]
    return max(sizes), sum(sizes) / len(sizes), sum(differences) / len(differences)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _named(figures: Round, with_energy: bool) -> dict[str, float]:
    named = {"ttft": figures.ttft_s, "prefill": figures.prefill.tokens_per_s}
    named |= {f"decode@{batch}": window.batch_tokens_per_s for batch, window in figures.decode.items()}
    if not with_energy:
        return named
    energies = {"prefill_j": figures.prefill.j_per_token}
    energies |= {f"decode_j@{batch}": window.j_per_token for batch, window in figures.decode.items()}
    return named | {name: energy for name, energy in energies.items() if energy is not None}

"""What is measured of a variant beside the full model, from logits and choices. Pure: numpy alone.

Intervals are 95 % percentile bootstraps (Efron, The Annals of Statistics 7, 1979) that resample whole items: the
tokens of one document and the two models' answers to one question are no independent draws, so that they stay
together (clustered and paired, as in Miller, arXiv:2411.00640).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np
from economizer.variants.manifest import Interval, SliceScore
from numpy.typing import NDArray

RESAMPLES = 2000
_TAILS = (2.5, 97.5)
_CHUNK_TOKENS = 128  # a vocabulary of 256k in float32 takes a megabyte a token

# The columns of an item's sums: those of tokens and those of choices agree in the first two.
_COUNT, _AGREES = 0, 1
_KL, _NLL_FULL, _NLL = 2, 3, 4
_FLIPS, _DIFFERENCE = 2, 3

Floats = NDArray[np.float64]
Logits = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """One number a token: its item, KL(full || variant) in nats, whether both models find the same token most probable,
    and the negative log-likelihoods of the token that follows, in nats.
    """

    item: NDArray[np.int64]
    kl: Floats
    agrees: NDArray[np.bool_]
    nll_full: Floats
    nll: Floats

    @property
    def sums(self) -> Floats:
        """Per item, [items, 5]: tokens, agreements, KL, and the two negative log-likelihoods."""
        _, index = np.unique(self.item, return_inverse=True)
        columns = (np.ones_like(self.kl), self.agrees, self.kl, self.nll_full, self.nll)
        return np.stack([np.bincount(index, weights=column) for column in columns], axis=1)


@dataclass(frozen=True, kw_only=True)
class ChoiceScores:
    """Item by item: what each model chose, and whether it was right."""

    chosen_full: NDArray[np.int64]
    chosen: NDArray[np.int64]
    correct_full: NDArray[np.bool_]
    correct: NDArray[np.bool_]

    @property
    def sums(self) -> Floats:
        """Per item, [items, 4]: 1, same choice, flip, correct minus correct with the full model."""
        same = self.chosen_full == self.chosen
        flips = self.correct_full != self.correct
        difference = self.correct.astype(np.float64) - self.correct_full
        return np.stack([np.ones(len(same)), same, flips, difference], axis=1)


Scores = TokenScores | ChoiceScores


def token_scores(full: Logits, variant: Logits, following: NDArray[np.int64], item: int) -> TokenScores:
    """Scores of one item's tokens from both models' logits, [tokens, vocabulary], and the tokens that follow."""
    parts = [
        _chunk(full[start : start + _CHUNK_TOKENS], variant[start : start + _CHUNK_TOKENS], following[start:])
        for start in range(0, len(full), _CHUNK_TOKENS)
    ]
    kl, agrees, nll_full, nll = (np.concatenate(column) for column in zip(*parts, strict=True))
    return TokenScores(item=np.full(len(kl), item), kl=kl, agrees=agrees, nll_full=nll_full, nll=nll)


def _chunk(full: Logits, variant: Logits, following: NDArray[np.int64]) -> tuple[Any, ...]:
    agrees = full.argmax(-1) == variant.argmax(-1)
    p, q = log_softmax(full), log_softmax(variant)
    kl = (np.exp(p) * (p - q)).sum(-1, dtype=np.float64)
    rows = np.arange(len(full)), following[: len(full)]
    # The sum of what is positive and negative rounds to a little below 0 for distributions that are nearly equal.
    return np.maximum(kl, 0.0), agrees, -p[rows].astype(np.float64), -q[rows].astype(np.float64)


def log_softmax(logits: Logits) -> Logits:
    """Log probabilities of logits, over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    total = np.exp(shifted).sum(-1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(total).astype(logits.dtype))


S = TypeVar("S", TokenScores, ChoiceScores)


def joined(parts: Sequence[S]) -> S:
    """The scores of several items, or of slices whose items have numbers of their own, as one."""
    kind = type(parts[0])
    return kind(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


@dataclass(frozen=True)
class Bootstrap:
    """Slices by name with their items' sums, resampled within each slice; the same draws serve every metric.

    The items' order does not matter: they are sorted before the draws, which depend on seed and slice name alone.
    """

    sums: Mapping[str, Floats]
    resampled: Mapping[str, Floats]

    @classmethod
    def of(cls, scores: Mapping[str, Scores], seed: int, resamples: int = RESAMPLES) -> Bootstrap:
        """Draws ``resamples`` times as many items as a slice has, with replacement, from each slice."""
        rows = {name: _sorted(each.sums) for name, each in scores.items()}
        resampled = {name: _resampled(each, name, seed, resamples) for name, each in rows.items()}
        return cls({name: each.sum(0) for name, each in rows.items()}, resampled)

    def ratio(self, top: int, names: Sequence[str]) -> Interval:
        """Column ``top`` over the number of tokens or items (column 0), the named slices pooled."""
        value, draws = self._pooled(names)
        return _interval(_ratio(value, top), _ratio(draws, top))

    def perplexity_ratio(self, names: Sequence[str]) -> Interval:
        """Perplexity of the variant over the full model's: exp of the mean difference of log-likelihoods."""
        value, draws = (np.exp(_ratio(each, _NLL) - _ratio(each, _NLL_FULL)) for each in self._pooled(names))
        return _interval(value, draws)

    def quality(self) -> Interval:
        """The slices' agreements averaged, each slice counting the same."""
        value = np.mean([_ratio(each, _AGREES) for each in self.sums.values()])
        draws = np.mean([_ratio(each, _AGREES) for each in self.resampled.values()], axis=0)
        return _interval(value, draws)

    def _pooled(self, names: Sequence[str]) -> tuple[Floats, Floats]:
        value = np.sum([self.sums[name] for name in names], axis=0)
        return value, np.sum([self.resampled[name] for name in names], axis=0)


def slice_score(name: str, kind: str, scores: Scores, bootstrap: Bootstrap) -> SliceScore:
    """One slice's part of the manifest."""
    own = [name]
    counted = {"slice": name, "kind": kind, "items": len(scores.sums), "agreement": bootstrap.ratio(_AGREES, own)}
    if isinstance(scores, ChoiceScores):
        return SliceScore(
            **counted,
            tokens=0,
            accuracy_full=float(scores.correct_full.mean()),
            accuracy=float(scores.correct.mean()),
            accuracy_difference=bootstrap.ratio(_DIFFERENCE, own),
            flips=bootstrap.ratio(_FLIPS, own),
        )
    return SliceScore(
        **counted,
        tokens=len(scores.kl),
        kl_mean=bootstrap.ratio(_KL, own),
        kl_p99=float(np.quantile(scores.kl, 0.99)),
        perplexity_full=float(np.exp(scores.nll_full.mean())),
        perplexity_ratio=bootstrap.perplexity_ratio(own),
    )


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What is said of all slices together; None where there is no slice of that kind."""

    quality: Interval
    top1_agreement: Interval | None
    kl_mean: Interval | None
    kl_p99: float | None
    perplexity_ratio: Interval | None
    flips: Interval | None
    accuracy_difference: Interval | None


def totals(scores: Mapping[str, Scores], bootstrap: Bootstrap) -> Totals:
    """The totals over all teacher-forced tokens, and over all multiple-choice items."""
    tokens = {name: each for name, each in scores.items() if isinstance(each, TokenScores)}
    choices = [name for name in scores if name not in tokens]
    forced = sorted(tokens)
    kl = np.concatenate([tokens[name].kl for name in forced]) if forced else None
    return Totals(
        quality=bootstrap.quality(),
        top1_agreement=bootstrap.ratio(_AGREES, forced) if forced else None,
        kl_mean=bootstrap.ratio(_KL, forced) if forced else None,
        kl_p99=float(np.quantile(kl, 0.99)) if kl is not None else None,
        perplexity_ratio=bootstrap.perplexity_ratio(forced) if forced else None,
        flips=bootstrap.ratio(_FLIPS, choices) if choices else None,
        accuracy_difference=bootstrap.ratio(_DIFFERENCE, choices) if choices else None,
    )


def _sorted(rows: Floats) -> Floats:
    return np.asarray(rows[np.lexsort(rows.T)])


def _resampled(rows: Floats, name: str, seed: int, resamples: int) -> Floats:
    """Sums over the items of each resample, [resamples, columns]."""
    digest = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    generator = np.random.default_rng([seed, digest])
    counts = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)
    return np.asarray(counts @ rows)


def _ratio(sums: Floats, top: int) -> Floats:
    return np.asarray(sums[..., top] / sums[..., _COUNT])


def _interval(value: Floats, draws: Floats) -> Interval:
    low, high = np.percentile(draws, _TAILS)
    return Interval(value=float(value), low=float(low), high=float(high))

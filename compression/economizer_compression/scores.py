"""What is measured of a variant beside the full model, with intervals. Pure: numpy alone.

Intervals are 95 % percentile bootstraps (Efron, The Annals of Statistics 7, 1979) that resample whole items: the
tokens of one document, and the two models' answers to one question, are no independent draws, so they stay together
(clustered and paired, as in Miller, arXiv:2411.00640). Figures over tokens are ratios of sums, so that an item counts
by its tokens. Flips beside accuracy, because a variant may lose items and win others and still look equal ("Accuracy is
not all you need", arXiv:2407.09141).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from economizer.variants.manifest import Evaluation, Interval, SliceScore
from numpy.typing import NDArray

from economizer_compression.errors import CompressionError
from economizer_compression.overlap import NGRAM

RESAMPLES = 2000
_TAILS = (2.5, 97.5)
# Columns of the items' sums.
_COUNT, _AGREES = 0, 1
_KL, _NLL_FULL, _NLL = 2, 3, 4
_FLIPS, _DIFFERENCE = 2, 3

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Token by token, each array one-dimensional and of one length.

    ``item`` numbers the window or chat that the token is in, ``kl`` is KL(full || variant) in nats, ``agrees`` whether
    both find the same token most probable; ``nll_full`` and ``nll`` are the negative log-likelihoods of the token that
    follows, in nats. ``kind`` is ``text`` or ``answers``.
    """

    kind: str
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
Statistic = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Bootstrap:
    """Slices by name with their items' sums and with the sums over each resample; every metric has the same draws.

    The items' order does not matter: they are sorted before the draws, which depend on seed and slice name alone.
    """

    sums: Mapping[str, Floats]
    resampled: Mapping[str, Floats]

    @classmethod
    def of(cls, scores: Mapping[str, Scores], *, seed: int, resamples: int = RESAMPLES) -> Bootstrap:
        """Draws from each slice as many items as it has, with replacement, ``resamples`` times."""
        items = {name: each.sums for name, each in scores.items()}
        items = {name: rows[np.lexsort(rows.T)] for name, rows in items.items()}
        return cls(
            sums={name: rows.sum(0) for name, rows in items.items()},
            resampled={name: _resampled(rows, name, seed, resamples) for name, rows in items.items()},
        )

    def pooled(self, names: list[str], statistic: Statistic) -> Interval:
        """A statistic of the sums of some slices together, each resampled by itself."""
        value = statistic(np.sum([self.sums[name] for name in names], axis=0))
        return _interval(float(value), statistic(np.sum([self.resampled[name] for name in names], axis=0)))

    def quality(self) -> Interval:
        """The slices' agreements averaged, each slice counting the same."""
        agreement = mean(_AGREES)
        value = np.mean([agreement(sums) for sums in self.sums.values()])
        return _interval(float(value), np.mean([agreement(sums) for sums in self.resampled.values()], axis=0))


def mean(column: int) -> Statistic:
    """The mean of a column over tokens or items, from sums [..., columns]."""
    return lambda sums: np.asarray(sums[..., column] / sums[..., _COUNT])


def perplexity_ratio(sums: Floats) -> Floats:
    """Perplexity of the variant over the full model's: exp of the mean difference of log-likelihoods."""
    return np.asarray(np.exp((sums[..., _NLL] - sums[..., _NLL_FULL]) / sums[..., _COUNT]))


def evaluation(
    scores: Mapping[str, Scores],
    *,
    suite: str,
    suite_sha256: str,
    reference_sha256: str,
    seed: int,
    items_excluded: int,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """All that the slices' scores say; raises CompressionError for a slice of fewer than two items."""
    for name, each in scores.items():
        if len(each.sums) < 2:
            raise CompressionError(
                f"slice {name} has {len(each.sums)} items to score and an interval needs 2: give it more"
            )
    bootstrap = Bootstrap.of(scores, seed=seed, resamples=resamples)
    tokens = {name: each for name, each in scores.items() if isinstance(each, TokenScores)}
    choices = {name: each for name, each in scores.items() if isinstance(each, ChoiceScores)}
    on_tokens, on_choices = list(tokens), list(choices)
    return Evaluation(
        suite=suite,
        suite_sha256=suite_sha256,
        reference_sha256=reference_sha256,
        seed=seed,
        quality=bootstrap.quality(),
        top1_agreement=bootstrap.pooled(on_tokens, mean(_AGREES)) if tokens else None,
        kl_mean=bootstrap.pooled(on_tokens, mean(_KL)) if tokens else None,
        kl_p99=_p99(np.concatenate([each.kl for each in tokens.values()])) if tokens else None,
        perplexity_ratio=bootstrap.pooled(on_tokens, perplexity_ratio) if tokens else None,
        flips=bootstrap.pooled(on_choices, mean(_FLIPS)) if choices else None,
        accuracy_difference=bootstrap.pooled(on_choices, mean(_DIFFERENCE)) if choices else None,
        slices=tuple(_slice_score(name, each, bootstrap) for name, each in scores.items()),
        items_excluded=items_excluded,
        overlap_ngram=NGRAM,
    )


def _slice_score(name: str, scores: Scores, bootstrap: Bootstrap) -> SliceScore:
    agreement = bootstrap.pooled([name], mean(_AGREES))
    if isinstance(scores, TokenScores):
        return SliceScore(
            slice=name,
            kind=scores.kind,
            items=len(scores.sums),
            tokens=len(scores.kl),
            agreement=agreement,
            kl_mean=bootstrap.pooled([name], mean(_KL)),
            kl_p99=_p99(scores.kl),
            perplexity_full=float(np.exp(scores.nll_full.mean())),
            perplexity_ratio=bootstrap.pooled([name], perplexity_ratio),
        )
    return SliceScore(
        slice=name,
        kind="choices",
        items=len(scores.chosen),
        tokens=0,
        agreement=agreement,
        accuracy_full=float(scores.correct_full.mean()),
        accuracy=float(scores.correct.mean()),
        accuracy_difference=bootstrap.pooled([name], mean(_DIFFERENCE)),
        flips=bootstrap.pooled([name], mean(_FLIPS)),
    )


def _p99(kl: Floats) -> float:
    return float(np.percentile(kl, 99))


def _resampled(items: Floats, name: str, seed: int, resamples: int) -> Floats:
    """Sums over the items of each resample, [resamples, columns]."""
    told = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    draws = np.random.default_rng([seed, told])
    counts = draws.multinomial(len(items), np.full(len(items), 1 / len(items)), size=resamples)
    return np.asarray(counts @ items)


def _interval(value: float, draws: Floats) -> Interval:
    low, high = np.percentile(draws, _TAILS)
    return Interval(value=value, low=float(low), high=float(high))

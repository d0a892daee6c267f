"""The latency predictor: an analytic prior from the variant's card, corrected online by what the gateway measures.

The prior says how long a prompt's prefill and a decode step take by the card. What really happened is learnt as the
logarithm of actual over prior, a linear function of prompt length, cached share and load, by recursive least squares
with forgetting (Haykin, Adaptive Filter Theory, ch. 10). The prior of its coefficients is zero, so a cold variant
answers with its card; a variant without a card answers None until it has been seen a few times.
The 50th and 95th percentile come from the latest residuals.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, log1p
from operator import mul

from economizer.router.types import LatencyPrediction, Quantiles, ReplicaState
from economizer.variants.estimate import decode_tokens_per_s
from economizer.variants.types import SpeedCard

_FORGETTING = 0.995
_COVARIANCE_MAX = 10.0  # forgetting without excitation would let it grow for ever
_SURPRISE_MAX = 2.0  # one outlier moves the model by at most e^2
_SIGMA_PRIOR = 0.35  # spread of log(actual / prior) believed before anything was measured
_Z95 = 1.645
_RESIDUALS_MAX = 256
_RESIDUALS_MIN = 20
_SEEN_MIN = 5  # measurements before a variant without a card is trusted
_ERROR_WEIGHT = 0.05
_FLOOR_S = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorOf:
    """How wrong one quantity's predictions were: mean absolute relative error of the median, and the share of actual
    times at or under the predicted 95th percentile."""

    mape: float
    p95_coverage: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyError:
    """The predictor's own error; None for what was not measured yet."""

    ttft: ErrorOf | None
    tpot: ErrorOf | None


class _Residuals:
    """The latest residuals, ordered, for their quantiles."""

    __slots__ = ("_ordered", "_recent", "q50", "q95")

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._ordered: list[float] = []
        self.q50 = 0.0
        self.q95 = _Z95 * _SIGMA_PRIOR

    def add(self, residual: float) -> None:
        self._recent.append(residual)
        insort(self._ordered, residual)
        if len(self._recent) > _RESIDUALS_MAX:
            del self._ordered[bisect_left(self._ordered, self._recent.popleft())]
        count = len(self._ordered)
        if count >= _RESIDUALS_MIN:
            self.q50 = self._ordered[count // 2]
            self.q95 = self._ordered[min(count - 1, int(0.95 * count))]


class _Correction:
    """log(actual / prior) = w . features, learnt online."""

    __slots__ = ("_covariance", "_coverage", "_mape", "_residuals", "_weights", "seen")

    def __init__(self, variances: Sequence[float]) -> None:
        size = len(variances)
        self._weights = [0.0] * size
        self._covariance = [[variances[i] if i == j else 0.0 for j in range(size)] for i in range(size)]
        self._residuals = _Residuals()
        self._mape = 0.0
        self._coverage = 0.0
        self.seen = 0

    def _mean(self, features: Sequence[float]) -> float:
        return float(sum(map(mul, self._weights, features)))

    def quantiles(self, prior_s: float, features: Sequence[float]) -> Quantiles:
        middle = self._mean(features)
        residuals = self._residuals
        return Quantiles(p50=prior_s * exp(middle + residuals.q50), p95=prior_s * exp(middle + residuals.q95))

    def median(self, prior_s: float, features: Sequence[float]) -> float:
        return prior_s * exp(self._mean(features) + self._residuals.q50)

    def observe(self, prior_s: float, features: Sequence[float], actual_s: float) -> None:
        actual_s = max(actual_s, _FLOOR_S)
        self._score(self.quantiles(prior_s, features), actual_s)
        residual = log(actual_s / prior_s) - self._mean(features)
        self._learn(features, max(-_SURPRISE_MAX, min(_SURPRISE_MAX, residual)))
        self._residuals.add(log(actual_s / prior_s) - self._mean(features))
        self.seen += 1

    def _score(self, predicted: Quantiles, actual_s: float) -> None:
        weight = max(_ERROR_WEIGHT, 1.0 / (self.seen + 1))
        self._mape += weight * (abs(predicted.p50 - actual_s) / actual_s - self._mape)
        self._coverage += weight * ((actual_s <= predicted.p95) - self._coverage)

    def _learn(self, features: Sequence[float], residual: float) -> None:
        covariance = self._covariance
        gain = [sum(map(mul, row, features)) for row in covariance]
        scale = _SIGMA_PRIOR**2 + sum(map(mul, gain, features))
        self._weights = [w + g * residual / scale for w, g in zip(self._weights, gain, strict=True)]
        for i, row in enumerate(covariance):
            for j in range(len(row)):
                row[j] -= gain[i] * gain[j] / scale
        if max(covariance[i][i] for i in range(len(covariance))) < _COVARIANCE_MAX * _FORGETTING:
            for row in covariance:
                row[:] = [value / _FORGETTING for value in row]

    @property
    def error(self) -> ErrorOf | None:
        return ErrorOf(mape=self._mape, p95_coverage=self._coverage) if self.seen else None


class LatencyModel:
    """One variant's latency on its hardware. The correction's features: prompt tokens, cached share, load."""

    def __init__(self, card: SpeedCard | None, concurrency_max: int) -> None:
        self._card = card
        self._concurrency_max = concurrency_max
        self._tpot_s_by_batch = (
            [batch / decode_tokens_per_s(card.decode_tokens_per_s, batch) for batch in range(1, concurrency_max + 1)]
            if card is not None
            else None
        )
        slope = 0.05 if card is not None else 1.0
        self._ttft = _Correction((1.0, slope, slope, slope))
        self._tpot = _Correction((1.0, slope))

    def predict(self, *, prompt_tokens: int, cached_share: float, replica: ReplicaState) -> LatencyPrediction | None:
        """Time to first token and per output token on a replica as it stands, or None when nothing is known."""
        if self._card is None and min(self._ttft.seen, self._tpot.seen) < _SEEN_MIN:
            return None
        uncached = prompt_tokens * (1.0 - cached_share)
        return LatencyPrediction(
            ttft_s=self._ttft.quantiles(self._ttft_prior_s(uncached, replica), _ttft_features(uncached, replica)),
            tpot_s=self._tpot.quantiles(self._tpot_prior_s(replica), (1.0, log1p(replica.running))),
        )

    def expected_ttft_s(self, *, prompt_tokens: int, cached_share: float, replica: ReplicaState) -> float | None:
        """The median time to first token that :meth:`predict` gives, or None."""
        if self._card is None and min(self._ttft.seen, self._tpot.seen) < _SEEN_MIN:
            return None
        uncached = prompt_tokens * (1.0 - cached_share)
        return self._ttft.median(self._ttft_prior_s(uncached, replica), _ttft_features(uncached, replica))

    def observe_ttft(self, *, prompt_tokens: int, cached_share: float, replica: ReplicaState, actual_s: float) -> None:
        """A request that found the replica so took ``actual_s`` to its first token."""
        uncached = prompt_tokens * (1.0 - cached_share)
        self._ttft.observe(self._ttft_prior_s(uncached, replica), _ttft_features(uncached, replica), actual_s)

    def observe_tpot(self, *, replica: ReplicaState, actual_s: float) -> None:
        """A request that found the replica so took ``actual_s`` for each later token."""
        self._tpot.observe(self._tpot_prior_s(replica), (1.0, log1p(replica.running)), actual_s)

    def error(self) -> LatencyError:
        """How wrong the predictions were so far."""
        return LatencyError(ttft=self._ttft.error, tpot=self._tpot.error)

    def _ttft_prior_s(self, uncached: float, replica: ReplicaState) -> float:
        if self._card is None:
            return 1.0
        prefill_s = (uncached + replica.queued_tokens) / self._card.prefill_tokens_per_s
        return max(_FLOOR_S, self._card.overhead_s + prefill_s)

    def _tpot_prior_s(self, replica: ReplicaState) -> float:
        if self._tpot_s_by_batch is None:
            return 1.0
        return self._tpot_s_by_batch[min(replica.running, self._concurrency_max - 1)]


def _ttft_features(uncached: float, replica: ReplicaState) -> tuple[float, float, float, float]:
    return (1.0, log1p(uncached) - 5.0, log1p(replica.running), log1p(replica.waiting))

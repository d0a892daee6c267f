"""What an engine's work takes, learnt from what it did and used. Pure.

What an engine uses beyond idling is modelled as linear in the work done::

    active = a * prefill tokens + q * prefill context + b * decode tokens + c * decode context + d * steps + e * seconds

A step reads the weights once for all sequences in it, so its cost is shared by them; context is what attention reads.
docs/decisions/0014-attribution.md has the reasons and figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, inf, sqrt
from operator import mul

from msgspec import Struct
from msgspec.structs import asdict, astuple

from economizer.energy.types import NO_WORK, UJ_PER_J, Work
from economizer.errors import require

EXCESS_MAX = 3.0  # what goes beyond so many times the prediction is not the work's: neither charged nor learnt
_FORGETTING = 0.995  # per observation: a memory of 200 of them, an hour under constant load
_ERROR_MIN = 0.01  # the least that is believed of the model's error when the prior is weighed
_ERROR_WEIGHT = 0.05
_SHARE_ERROR_WEIGHT = 0.01
_TRUSTED = 5  # observations before the model's size is believed, not only its shape
_ERROR_UNMEASURED = 0.5  # the relative error believed until then
_EPISODE_S = 20.0
_SPAN_S_MIN = 1e-3
_BACKGROUND_RISE_S = 100.0
_BACKGROUND_FALL_S = 10.0
_CHUNK_TOKENS = 2048.0  # of a prompt in one step, as engines have it by default
_SWEEPS_MAX = 1000
_CONVERGED = 1e-7
_WORK_FEATURES = 5  # all but the seconds


class Coefficients(Struct, frozen=True, kw_only=True):
    """Microjoules of active energy per unit of each feature: a token prefilled, a token that a prefilled one attends
    to, a token decoded, a token that a decoded one attends to, a step of the engine, a second of doing nothing."""

    prefill_uj: float
    prefill_context_uj: float = 0.0
    decode_uj: float
    decode_context_uj: float = 0.0
    step_uj: float
    second_uj: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            require(0 <= value < inf, name, value, "must be 0 or more and finite")

    @classmethod
    def of(cls, values: Sequence[float]) -> Coefficients:
        """From six values in the order of the fields."""
        prefill, prefill_context, decode, decode_context, step, second = values
        return cls(
            prefill_uj=prefill,
            prefill_context_uj=prefill_context,
            decode_uj=decode,
            decode_context_uj=decode_context,
            step_uj=step,
            second_uj=second,
        )

    def values(self) -> tuple[float, ...]:
        """The six in the order of the fields."""
        return astuple(self)

    def work_uj(self, work: Work, steps: float) -> float:
        """What the work and this many steps (a share of one counts as that) take, without the engine's background."""
        return (
            self.prefill_uj * work.prefill_tokens
            + self.prefill_context_uj * work.prefill_context
            + self.decode_uj * work.decode_tokens
            + self.decode_context_uj * work.decode_context
            + self.step_uj * steps
        )


# Where nothing is known of a variant, in units of a prefilled token. A decoded token computes as much as a prefilled
# one. A step costs about 20 of them: 17 to 19 as SmolLM2-135M was measured on a CPU, some 45 as ML.ENERGY's
# leaderboard (v3) has Llama-3.1-8B on an H100. So a decoded token weighs 21 alone, and 2.25 among sixteen.
PLAIN = Coefficients(prefill_uj=1.0, decode_uj=1.0, step_uj=20.0)


def prior_from(prefill_j_per_token: float, decode_j_per_token: Mapping[int, float]) -> Coefficients:
    """Coefficients from an energy card, whose decode energies are by batch size, in joules per output token.

    A token in a batch of B costs ``b + d / B``, by least squares of the relative error, neither below 0. One batch
    size alone cannot tell b from d: a decoded token then computes as much as a prefilled one, and the step takes the
    rest. Raises ValueError where a figure is not above 0 (0 or more for prefill), or no batch is given.
    """
    require(bool(decode_j_per_token), "decode_j_per_token", decode_j_per_token, "must have at least one batch size")
    for batch, value in decode_j_per_token.items():
        require(batch >= 1 and 0 < value < inf, "decode_j_per_token", {batch: value}, "must be above 0 and finite")
    if len(decode_j_per_token) == 1:
        ((batch, value),) = decode_j_per_token.items()
        decode = min(prefill_j_per_token, value)
        step = (value - decode) * batch
    else:
        rows = [(1.0 / value, 1.0 / (batch * value)) for batch, value in sorted(decode_j_per_token.items())]
        gram = [[sum(row[i] * row[j] for row in rows) for j in range(2)] for i in range(2)]
        moment = [sum(row[i] for row in rows) for i in range(2)]
        decode, step = _nonnegative_least_squares(gram, moment, [0.0, 0.0])
    return Coefficients(prefill_uj=prefill_j_per_token * UJ_PER_J, decode_uj=decode * UJ_PER_J, step_uj=step * UJ_PER_J)


class StepModel:
    """The coefficients of one variant on one kind of hardware by one meter, learnt from what engines did and used.

    The energy of work is fitted by non-negative least squares with exponential forgetting, each observation weighing
    as the seconds that it spans; the normal equations are kept, not the observations. The prior gives the *shape*: it
    is scaled to the energy seen, so a card that was measured by another meter still does, and believed of each
    coefficient give or take the whole of it, while an observation is believed to within the model's error. What the
    data cannot tell apart stays as the prior has it.

    The background (per second) is learnt apart, from spans without any work: in a busy engine seconds and steps grow
    together, and a fit over both would call work idleness. It falls fast and rises slowly, because a span that only
    seems to be without work (nobody told) uses more than one that is.

    ``shape`` is the coefficients, of which only the ratios mean anything while ``coefficients`` is None.
    """

    __slots__ = (
        "_background", "_count", "_gram", "_has_prior", "_moment", "_prior", "_square_error", "_square_share_error",
        "_weight", "shape",
    )  # fmt: skip

    def __init__(self, prior: Coefficients | None = None) -> None:
        self._has_prior = prior is not None
        self.shape = prior if prior is not None else PLAIN
        self._prior = self.shape.values()[:_WORK_FEATURES]
        self._gram = [[0.0] * _WORK_FEATURES for _ in range(_WORK_FEATURES)]
        self._moment = [0.0] * _WORK_FEATURES
        self._background = [0.0] * _WORK_FEATURES  # what a background of 1 uJ/s adds to the moment
        self._weight = 0.0
        self._count = 0
        self._square_error = 0.0
        self._square_share_error = _ERROR_UNMEASURED**2

    @property
    def coefficients(self) -> Coefficients | None:
        """What is known of them; None before there was either a prior or an observation."""
        return self.shape if self._has_prior or self._count else None

    @property
    def relative_error(self) -> float | None:
        """Root mean square of the predictions' relative error, made before the measurement; None until 5 were."""
        return sqrt(self._square_error) if self._count >= _TRUSTED else None

    @property
    def share_error(self) -> float:
        """The relative error of what one request is predicted to take in one window; 0.5 until it is known."""
        return sqrt(self._square_share_error)

    def predict_uj(self, work: Work, steps: float) -> float | None:
        """What the work and its steps (or share of them) take, or None where no coefficients are known."""
        known = self.coefficients
        return known.work_uj(work, steps) if known is not None else None

    def observe(self, work: Work, steps: float, active_uj: float, seconds: float) -> None:
        """Learn that all the work of a span, done in so many steps, took this much active energy.

        ``Episode`` makes spans that are long enough for it. A span under a millisecond teaches nothing.
        """
        if seconds < _SPAN_S_MIN:
            return
        if work.none and not steps:
            self._observe_background(active_uj / seconds, seconds)
            return
        predicted, background = self.shape.work_uj(work, steps), self.shape.second_uj * seconds
        if self.coefficients is not None:
            weight = max(_ERROR_WEIGHT, 1.0 / max(1, self._count))
            error = _relative(predicted, max(0.0, active_uj - background))
            self._square_error += weight * (error * error - self._square_error)
        if self.relative_error is not None and predicted > 0:
            active_uj = min(active_uj, background + EXCESS_MAX * predicted)
        features = (work.prefill_tokens, work.prefill_context, work.decode_tokens, work.decode_context, float(steps))
        for i, row in enumerate(self._gram):
            row[:] = [_FORGETTING * old + features[i] * one / seconds for old, one in zip(row, features, strict=True)]
            self._moment[i] = _FORGETTING * self._moment[i] + features[i] * active_uj / seconds
            self._background[i] = _FORGETTING * self._background[i] + features[i]
        self._weight = _FORGETTING * self._weight + 1.0
        self._count += 1
        self._fit()

    def judge(self, works: Sequence[Work], steps: float, active_uj: float, seconds: float) -> None:
        """Learn how wrong predictions of single requests in single windows are, from a window's total.

        With independent errors r of predictions that make up parts p of the total, the total's squared is r^2 sum p^2.
        """
        if self.relative_error is None:
            return
        weights = weights_of(works, steps, self.shape)
        predicted, actual = sum(weights), max(0.0, active_uj - self.shape.second_uj * seconds)
        if predicted > 0:
            concentration = sum((weight / predicted) ** 2 for weight in weights)
            error = min(1.0, _relative(predicted, actual) ** 2 / concentration)
            self._square_share_error += _SHARE_ERROR_WEIGHT * (error - self._square_share_error)

    def _observe_background(self, uj_per_s: float, seconds: float) -> None:
        *work, second = self.shape.values()
        time_constant_s = _BACKGROUND_RISE_S if uj_per_s > second else _BACKGROUND_FALL_S
        second += (1.0 - exp(-seconds / time_constant_s)) * (uj_per_s - second)
        self.shape = Coefficients.of((*work, second))

    def _fit(self) -> None:
        second_uj = self.shape.second_uj
        moment = [one - second_uj * idle for one, idle in zip(self._moment, self._background, strict=True)]
        square = sum(map(mul, self._prior, (sum(map(mul, row, self._prior)) for row in self._gram)))
        scale = max(0.0, sum(map(mul, self._prior, moment)) / square) if square > 0 else 0.0
        error = self.relative_error
        pull = max(_ERROR_MIN, _ERROR_UNMEASURED if error is None else error) ** 2 / self._weight
        gram = [row.copy() for row in self._gram]
        start = list(self.shape.values()[:_WORK_FEATURES])
        for i, prior in enumerate(self._prior):
            moment[i] += pull * gram[i][i] * scale * prior
            gram[i][i] *= 1.0 + pull
            if gram[i][i] == 0:
                start[i] = scale * prior
        fitted = _nonnegative_least_squares(gram, moment, start)
        self.shape = Coefficients.of((*fitted, second_uj))

    def state(self) -> tuple[float, ...]:
        """All that it knows, for a database."""
        gram = [value for row in self._gram for value in row]
        counts = (
            float(self._has_prior),
            float(self._count),
            self._weight,
            self._square_error,
            self._square_share_error,
        )
        return (*counts, *self.shape.values(), *self._prior, *self._moment, *self._background, *gram)

    @classmethod
    def from_state(cls, state: Sequence[float]) -> StepModel:
        """The model whose ``state()`` this was. Raises ValueError for anything of another length."""
        size = _WORK_FEATURES
        length = 5 + (size + 1) + 3 * size + size * size
        require(len(state) == length, "state", len(state), f"must have {length} values")
        rest = iter(state)

        def take(count: int) -> list[float]:
            return [next(rest) for _ in range(count)]

        model = cls()
        has_prior, count, model._weight, model._square_error, model._square_share_error = take(5)
        model._has_prior, model._count = bool(has_prior), int(count)
        model.shape = Coefficients.of(take(size + 1))
        model._prior, model._moment, model._background = tuple(take(size)), take(size), take(size)
        model._gram = [take(size) for _ in range(size)]
        return model


class Episode:
    """Adds up one engine's windows until they make an observation.

    A window of a second has edges: a prompt's tokens are told when it ends, a meter lags by a tenth of a second. They
    cancel inside an episode, which lasts until the engine has come to rest, and 20 seconds at most so that an engine
    under constant load is learnt of as well. The first window at rest belongs to it: the meter's lag ends there.
    """

    __slots__ = ("_active_uj", "_seconds", "_steps", "_work")

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._work = NO_WORK
        self._steps = 0.0
        self._active_uj = 0
        self._seconds = 0.0

    def add(self, model: StepModel, works: Sequence[Work], steps: float | None, active_uj: int, seconds: float) -> bool:
        """Take in a measured window with all its work; True where the model learnt of work by it."""
        work = sum(works, NO_WORK)
        taken = estimated_steps(works) if steps is None else steps
        resting = work.none and not taken
        if resting and self._seconds == 0:
            model.observe(NO_WORK, 0, active_uj, seconds)
            return False
        model.judge(works, taken, active_uj, seconds)
        self._work += work
        self._steps += taken
        self._active_uj += active_uj
        self._seconds += seconds
        if not resting and self._seconds < _EPISODE_S:
            return False
        model.observe(self._work, self._steps, self._active_uj, self._seconds)
        self._begin()
        return True


def estimated_steps(works: Iterable[Work]) -> float:
    """The fewest steps that can have done it, for engines that do not count them: the longest of the works."""
    return max((_sequence_steps(work) for work in works), default=0.0)


def weights_of(parties: Sequence[Work], steps: float, coefficients: Coefficients) -> list[float]:
    """What each is predicted to take in microjoules, with its share of the steps."""
    whole = sum(map(_sequence_steps, parties))
    share = steps / whole if whole > 0 else 0.0
    return [coefficients.work_uj(work, share * _sequence_steps(work)) for work in parties]


def _sequence_steps(work: Work) -> float:
    return work.decode_tokens + work.prefill_tokens / _CHUNK_TOKENS


def _relative(predicted: float, actual: float) -> float:
    """The error relative to the mean of both, so that it is at most 2 whatever was predicted."""
    return 2.0 * (actual - predicted) / (actual + predicted) if actual + predicted > 0 else 0.0


def _nonnegative_least_squares(
    gram: Sequence[Sequence[float]], moment: Sequence[float], start: Sequence[float]
) -> list[float]:
    """The x >= 0 with the least ``x' gram x / 2 - moment' x``, by coordinate descent.

    What has no row of its own (0 on the diagonal) stays at ``start``. Units do not matter: each coordinate is solved
    for exactly in turn, and moves are judged by what they change in the objective.
    """
    x = list(start)
    for _ in range(_SWEEPS_MAX):
        moved = 0.0
        for i, row in enumerate(gram):
            if row[i] > 0:
                solved = max(0.0, x[i] + (moment[i] - sum(map(mul, row, x))) / row[i])
                moved = max(moved, (solved - x[i]) ** 2 * row[i])
                x[i] = solved
        if moved <= _CONVERGED**2 * sum(row[i] * x[i] ** 2 for i, row in enumerate(gram)):
            break
    return x

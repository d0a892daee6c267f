"""Measures a variant on the engine that serves it: its speed, its energy, and both beside the full model's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from economizer.energy.meter import Meter
from economizer.variants.manifest import EngineMeasurement

from economizer_compression.errors import CompressionError
from economizer_compression.metering import energy_method, meter_of, see_rest
from economizer_compression.provenance import hardware
from economizer_compression.rates import (
    DecodeWindow,
    PrefillWindow,
    Round,
    decode_tokens,
    energy_j_per_token,
    interval,
    logprob_differences,
    over_batches,
    paired_ratios,
    prefill_lengths,
)
from economizer_compression.serving import Engine, EngineSettings, Progress
from economizer_compression.timing import Timed, served_logprobs

_WARM_UP_LIMIT_S = 0.7
_LIMIT_FACTOR = 2.0  # a window on an engine that turns out slower than its warm-up ends by time
_GROWTH_TOKENS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasurePlan:
    """How much to measure.

    ``batches`` are the numbers of requests that decode at the same time. ``prefill_s`` and ``decode_s`` are about how
    long a window lasts in seconds; ``prompt_short``, ``prompt_long`` and ``prompt_decode`` are prompts in tokens.
    """

    rounds: int = 3
    batches: tuple[int, ...] = (1, 4, 16)
    ttft_prompts: int = 3
    prompt_decode: int = 32
    prompt_short: int = 512
    prompt_long: int = 1500
    prefill_s: float = 4.0
    decode_s: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "ttft_prompts", "prompt_decode", "prompt_short", "prompt_long"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: must be 1 or more")
        for name in ("prefill_s", "decode_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: must be above 0")
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise ValueError(f"batches is {self.batches}: must be different numbers of requests, each 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class LogprobReference:
    """Texts as token ids, and what transformers says of the same checkpoint: each token's log probability.

    ``logprobs`` has one value fewer than ``token_ids`` for each text: nothing stands before the first token.
    """

    token_ids: Sequence[Sequence[int]]
    logprobs: Sequence[Sequence[float]]


def measure_folder(
    folder: Path,
    full: Path | Engine | None,
    settings: EngineSettings,
    plan: MeasurePlan,
    *,
    reference: LogprobReference | None = None,
    progress: Progress | None = None,
) -> EngineMeasurement:
    """Starts engines on ``folder`` and, where it is a folder, on ``full``, and measures; a running engine stays.

    Raises CompressionError with the engine's own reason where an engine does not serve its checkpoint.
    """
    with ExitStack() as stack:
        if isinstance(full, Path):
            full = stack.enter_context(Engine(full, settings, progress=progress))
        variant = stack.enter_context(Engine(folder, settings, progress=progress))
        return measure(variant, full, plan, reference=reference, progress=progress)


def measure(
    variant: Engine,
    full: Engine | None,
    plan: MeasurePlan,
    *,
    reference: LogprobReference | None = None,
    progress: Progress | None = None,
) -> EngineMeasurement:
    """Speed and energy of ``variant``, and its paired ratios to ``full``; both engines run, one works at a time.

    The engines take turns at every window, and the one that goes first changes with the round: what slows the machine
    for a while slows both. A warm-up with every batch size goes before and says how many tokens a window needs. Joules
    are active energy, by the meter of the engine's settings, in the windows in which the tokens are counted.
    """
    sides = _take_turns([variant] if full is None else [variant, full], plan, progress)
    measured = _measurement(sides[0], None if full is None else sides[1])
    return _beside_transformers(variant, measured, reference)


def measure_pair(
    variant: Engine,
    full: Engine,
    plan: MeasurePlan,
    *,
    reference: LogprobReference | None = None,
    full_reference: LogprobReference | None = None,
    progress: Progress | None = None,
) -> tuple[EngineMeasurement, EngineMeasurement]:
    """What `measure` says of the variant, and of the full model from the same rounds."""
    sides = _take_turns([variant, full], plan, progress)
    measured = _measurement(sides[0], sides[1])
    full_measured = _measurement(sides[1], None)
    return (
        _beside_transformers(variant, measured, reference),
        _beside_transformers(full, full_measured, full_reference),
    )


def _take_turns(engines: Sequence[Engine], plan: MeasurePlan, progress: Progress | None) -> list[_Side]:
    with ExitStack() as stack:
        meters = [stack.enter_context(closing(meter_of(engine.settings, engine.pid))) for engine in engines]
        sides = [_Side(engine, meter, plan) for engine, meter in zip(engines, meters, strict=True)]
        see_rest(meters)
        rate = min(side.warm_up() for side in sides)
        for side in sides:
            side.plan_prompts(rate)
        for number in range(plan.rounds):
            _one_round(sides if number % 2 == 0 else sides[::-1], plan, number)
            if progress is not None:
                progress(f"round {number + 1} of {plan.rounds}: " + "; ".join(side.told() for side in sides))
    return sides


def _beside_transformers(
    engine: Engine, measured: EngineMeasurement, reference: LogprobReference | None
) -> EngineMeasurement:
    if reference is None:
        return measured
    served = served_logprobs(engine, reference.token_ids)
    largest, mean, shift = logprob_differences(served, reference.logprobs)
    return replace(measured, logprob_difference_max=largest, logprob_difference_mean=mean, logprob_shift=shift)


class _Side:
    """One of the engines that take turns: what it is asked in a window, and what it did in each round."""

    def __init__(self, engine: Engine, meter: Meter, plan: MeasurePlan) -> None:
        self.engine = engine
        self.energy_method = energy_method(meter)
        self.rounds: list[Round] = []
        self._timed = Timed(engine, meter)
        self._plan = plan
        self._decode_room = engine.context_tokens - plan.prompt_decode
        self._prompt_room = engine.context_tokens - 1
        self._lengths: list[int] = []
        self._tokens: dict[int, int] = {}
        if self._decode_room < _GROWTH_TOKENS:
            raise CompressionError(
                f"{engine.name}: a context of {engine.context_tokens} tokens has no room for a prompt of "
                f"{plan.prompt_decode} and {_GROWTH_TOKENS} tokens of output: raise --max-model-len"
            )

    def warm_up(self) -> float:
        """Runs every kind of window once, sizes the decode windows, returns prefill tokens per second."""
        plan, timed = self._plan, self._timed
        timed.ttft_s([self._prompt("warm-up", plan.prompt_decode)])
        for batch in plan.batches:
            prompts = [self._prompt(f"warm-up {batch} {i}", plan.prompt_decode) for i in range(batch)]
            window = timed.decode(prompts, self._decode_room, _WARM_UP_LIMIT_S)
            self._tokens[batch] = decode_tokens(1 / window.tpot_s, plan.decode_s, self._decode_room)
        first = timed.prefill([self._prompt("warm-up prefill", min(plan.prompt_short, self._prompt_room) // 2)])
        return first.tokens_per_s

    def plan_prompts(self, tokens_per_s: float) -> None:
        """Sizes the prefill window by the slowest engine: all read prompts of the same lengths."""
        plan = self._plan
        self._lengths = prefill_lengths(
            tokens_per_s, plan.prefill_s, short=plan.prompt_short, long=plan.prompt_long, room_tokens=self._prompt_room
        )

    def ttft_s(self, number: int) -> float:
        """The short prompts of a round."""
        count, tokens = self._plan.ttft_prompts, self._plan.prompt_decode
        return self._timed.ttft_s([self._prompt(f"{number} ttft {i}", tokens) for i in range(count)])

    def prefill(self, number: int) -> PrefillWindow:
        """The long prompts of a round."""
        prompts = [self._prompt(f"{number} prefill {i}", tokens) for i, tokens in enumerate(self._lengths)]
        return self._timed.prefill(prompts)

    def decode(self, number: int, batch: int) -> DecodeWindow:
        """A batch of a round."""
        prompts = [self._prompt(f"{number} decode {batch} {i}", self._plan.prompt_decode) for i in range(batch)]
        return self._timed.decode(prompts, self._tokens[batch], self._plan.decode_s * _LIMIT_FACTOR)

    def told(self) -> str:
        """The last round in words."""
        last = self.rounds[-1]
        decoded = ", ".join(f"{window.batch_tokens_per_s:.1f} at {batch}" for batch, window in last.decode.items())
        prefilled = f"{last.prefill.tokens_per_s:.0f} tokens/s prefill"
        return f"{self.engine.name} {1000 * last.ttft_s:.0f} ms to a token, {prefilled}, decode {decoded}"

    def _prompt(self, seed: str, tokens: int) -> list[int]:
        return self._timed.prompt(f"{self._plan.seed} {seed}", tokens)


def _one_round(sides: Sequence[_Side], plan: MeasurePlan, number: int) -> None:
    ttft_s = {side: side.ttft_s(number) for side in sides}
    prefill = {side: side.prefill(number) for side in sides}
    decode = {batch: {side: side.decode(number, batch) for side in sides} for batch in plan.batches}
    for side in sides:
        decoded = {batch: windows[side] for batch, windows in decode.items()}
        side.rounds.append(Round(ttft_s=ttft_s[side], prefill=prefill[side], decode=decoded))


def _measurement(side: _Side, full: _Side | None) -> EngineMeasurement:
    variant, rounds = side.engine, side.rounds
    energies = energy_j_per_token(rounds) if side.energy_method is not None else None
    prefill_j, decode_j = energies or (None, None)
    return EngineMeasurement(
        engine=variant.version,
        engine_args=variant.settings.args,
        hardware=hardware(),
        rounds=len(rounds),
        prefill_tokens_per_s=interval([one.prefill.tokens_per_s for one in rounds]),
        decode_tokens_per_s=over_batches(rounds, lambda window: window.batch_tokens_per_s),
        tpot_s=over_batches(rounds, lambda window: window.tpot_s),
        ttft_s=interval([one.ttft_s for one in rounds]),
        cold_start_s=variant.cold_start_s,
        memory_bytes=variant.memory_bytes(),
        prefill_j_per_token=prefill_j,
        decode_j_per_token=decode_j,
        energy_method=side.energy_method if energies is not None else None,
        against_full=paired_ratios(rounds, full.rounds) if full is not None else {},
    )

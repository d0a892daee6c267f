"""What a request's attempt makes its engine do, told in slices while it goes on. Times on the gateway's own clock."""

from __future__ import annotations

from msgspec import Struct

from economizer.energy.types import NO_WORK, Work
from economizer.gateway.relay import StreamMeter, Usage
from economizer.ledger.types import Slice

_TTFT_S = 0.05  # where nothing is predicted
_TPOT_S = 0.05
_BRIEF_S = 0.1  # what was done in less is told together: windows are longer
_ON_TIME = 0.8  # of a prompt, when its first token is expected and has not come


class AttemptWork(Struct, kw_only=True):
    """One attempt, from its sending to its end.

    A stream shows its first token and counts the others. Of an answer that comes whole nothing is seen before its end:
    until then it goes by what was predicted, and its end puts right what was told too little. ``cached_tokens`` are
    those of ``prompt_tokens`` that the engine is expected to find in its prefix cache: attended to, not computed.
    """

    request_id: str
    attempt: int
    tenant: str
    family: str
    variant: str
    engine: str
    sent_s: float
    prompt_tokens: float
    cached_tokens: float = 0.0
    output_tokens_max: int | None
    streamed: bool
    ttft_s: float | None  # as predicted
    tpot_s: float | None
    first_s: float | None = None
    ended_s: float | None = None
    lost: bool = False
    stream: StreamMeter | None = None
    output_tokens: float | None = None
    told_s: float = 0.0  # until when
    prefill_told: float = 0.0
    decode_told: float = 0.0

    def end(self, now_s: float, usage: Usage | None, *, lost: bool = False, worked: bool = True) -> None:
        """The attempt ended; only the first call counts. ``lost`` says that it failed, ``worked`` is False where the
        engine refused it, or never got it."""
        if self.ended_s is not None:
            return
        self.ended_s = now_s
        self.lost = lost
        if usage is not None:
            self.prompt_tokens = float(usage.prompt_tokens)
            if usage.cached_tokens is not None:
                self.cached_tokens = float(usage.cached_tokens)
            self.output_tokens = float(usage.output_tokens)
        elif not worked:
            self.prompt_tokens, self.output_tokens = self.prefill_told, self.decode_told

    def tell(self, now_s: float, epoch_s: float) -> list[Slice]:
        """What it did since it was asked last; ``epoch_s`` is added to this clock's times to get the epoch's."""
        until_s = now_s if self.ended_s is None else self.ended_s
        untold = not self.told_s
        began_s, self.told_s = min(max(self.sent_s, self.told_s), until_s), until_s
        last = self.ended_s is not None
        if self.streamed and self.first_s is None and not self._answered:
            return [self._slice(began_s, until_s, self._prefill_awaited(until_s), epoch_s, last)]
        turn_s = self._prefill_ends_s()
        prefill = self._prefill(until_s, turn_s)
        decode = self._decode(until_s, turn_s)
        if prefill is NO_WORK or decode is NO_WORK:
            return [self._slice(began_s, until_s, prefill if decode is NO_WORK else decode, epoch_s, last)]
        if last and untold and until_s - began_s < _BRIEF_S:
            return [self._slice(began_s, until_s, prefill + decode, epoch_s, last)]
        turn_s = min(max(turn_s, began_s), until_s)
        return [
            self._slice(began_s, turn_s, prefill, epoch_s, last=False),
            self._slice(turn_s, until_s, decode, epoch_s, last),
        ]

    def _prefill_awaited(self, until_s: float) -> Work:
        """Of a prompt whose first token has not come: evenly at first, and never quite all, however late it is."""
        lateness = (until_s - self.sent_s) / (self.ttft_s or _TTFT_S)
        share = _ON_TIME * lateness if lateness <= 1 else 1.0 - (1.0 - _ON_TIME) / lateness
        return self._prefill_until(share)

    def _prefill_ends_s(self) -> float:
        if self.streamed and self.first_s is not None:
            return self.first_s
        expected_s = self.sent_s + (self.ttft_s or _TTFT_S)
        return min(expected_s, self.ended_s) if self._answered and self.ended_s is not None else expected_s

    @property
    def _answered(self) -> bool:
        """It ended, and not before all of its prompt was computed."""
        return self.output_tokens is not None

    def _prefill(self, until_s: float, turn_s: float) -> Work:
        """Prompt tokens computed by then and not told yet, spread evenly from the sending to the first token."""
        span_s = turn_s - self.sent_s
        whole = self._answered or span_s <= 0
        return self._prefill_until(1.0 if whole else min(1.0, (until_s - self.sent_s) / span_s))

    def _prefill_until(self, share: float) -> Work:
        """What is missing to this share of the prompt."""
        whole = max(0.0, self.prompt_tokens - self.cached_tokens)
        tokens = max(0.0, whole * share - self.prefill_told)
        if not tokens:
            return NO_WORK
        self.prefill_told += tokens
        context = (self.prompt_tokens + self.cached_tokens) / 2
        return Work(prefill_tokens=tokens, prefill_context=tokens * context)

    def _decode(self, until_s: float, turn_s: float) -> Work:
        """Answer tokens generated by then and not told yet."""
        if self.output_tokens is not None:
            whole = self.output_tokens
        elif self.stream is not None:
            whole = float(self.stream.events)
        else:
            whole = max(0.0, (until_s - turn_s) / (self.tpot_s or _TPOT_S))
            if self.output_tokens_max is not None:
                whole = min(whole, float(self.output_tokens_max))
        tokens = max(0.0, whole - self.decode_told)
        if not tokens:
            return NO_WORK
        context = self.prompt_tokens + self.decode_told + tokens / 2
        self.decode_told += tokens
        return Work(decode_tokens=tokens, decode_context=tokens * context)

    def _slice(self, began_s: float, ended_s: float, work: Work, epoch_s: float, last: bool) -> Slice:
        return Slice(
            request_id=self.request_id,
            attempt=self.attempt,
            tenant=self.tenant,
            family=self.family,
            variant=self.variant,
            engine=self.engine,
            began_s=began_s + epoch_s,
            ended_s=ended_s + epoch_s,
            work=work,
            last=last,
            lost=last and self.lost,
        )

"""Work that an engine's own counters show and no gateway told of: a gateway was killed, or somebody called the engine
past the gateways. Without it the other requests in the window would be charged for it. Pure."""

from __future__ import annotations

from economizer.energy.types import Window, Work

# Counters and gateways see the same tokens at different moments, and a gateway counts a stream's events: as long as
# the two differ by no more than this, they agree.
_SLACK_TOKENS = 64.0
_SLACK_SHARE = 0.1
_FORGET = 0.9  # of the recent tokens, per window
_CONTEXT_TOKENS = 200.0  # that a token attends to where no gateway ever told: those of a short chat


class Unclaimed:
    """The balance of one engine: tokens that its counters have shown beyond what gateways told."""

    __slots__ = ("_decode", "_prefill")

    def __init__(self) -> None:
        self._prefill = _Balance()
        self._decode = _Balance()

    def of(self, window: Window, told: Work) -> Work:
        """The work that is nobody's in this window; none where the engine has no counters.

        Its tokens attend to as many as those that gateways told of lately.
        """
        prefill = self._prefill.beyond(window.prefill_tokens, told.prefill_tokens, told.prefill_context)
        decode = self._decode.beyond(window.decode_tokens, told.decode_tokens, told.decode_context)
        return Work(
            prefill_tokens=prefill,
            prefill_context=prefill * self._prefill.context_per_token,
            decode_tokens=decode,
            decode_context=decode * self._decode.context_per_token,
        )


class _Balance:
    __slots__ = ("_balance", "_recent", "_told", "_told_context")

    def __init__(self) -> None:
        self._balance = 0.0
        self._recent = 0.0
        self._told = 0.0
        self._told_context = 0.0

    @property
    def context_per_token(self) -> float:
        return self._told_context / self._told if self._told else _CONTEXT_TOKENS

    def beyond(self, counted: int | None, told: float, told_context: float) -> float:
        if told:  # else the mean stays what it was
            self._told = self._told * _FORGET + told
            self._told_context = self._told_context * _FORGET + told_context
        self._balance -= told
        if counted is None:  # the engine did not answer: what it counted meanwhile shows in a later window
            return 0.0
        self._recent = self._recent * _FORGET + counted
        slack = _SLACK_TOKENS + _SLACK_SHARE * self._recent
        balance = self._balance + counted
        beyond = max(0.0, balance - slack)
        self._balance = max(-slack, balance - beyond)
        if counted == 0 and told == 0:
            self._balance *= _FORGET  # an engine at rest settles what was only a difference of moments
        return beyond

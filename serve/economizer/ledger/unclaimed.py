"""Work that an engine's own counters show and no gateway told of: a gateway was killed, or somebody called the engine
past the gateways. Without it the other requests in the window would be charged for it. Pure."""

from __future__ import annotations

from economizer.energy.types import Window, Work

_FORGOTTEN = 0.1  # per window, of what was counted and told before
# Counters and gateways see the same tokens at different moments, and a gateway counts a stream's events: as long as the
# two differ by no more than this, they agree. With that share of what was counted of late, forgotten as fast as a
# difference is, counters that are a window behind agree always.
_SLACK_TOKENS = 64.0
_SLACK_SHARE = _FORGOTTEN
_TOLD_LEAST = 1e-3  # tokens, below which a sliver of a slice tells nothing of contexts
_CONTEXT_TOKENS = 200.0  # that a token attends to, where no gateway ever told: that of a short chat


class Unclaimed:
    """The balance of one engine: tokens that its counters have shown beyond what gateways told."""

    __slots__ = ("_decode", "_prefill")

    def __init__(self) -> None:
        self._prefill = _Balance()
        self._decode = _Balance()

    def of(self, window: Window, told: Work) -> Work:
        """The work that is nobody's in this window; none where the engine has no counters.

        Each of its tokens attends to as many as those did that gateways told of lately.
        """
        prefill = self._prefill.beyond(window.prefill_tokens, told.prefill_tokens, told.prefill_context)
        decode = self._decode.beyond(window.decode_tokens, told.decode_tokens, told.decode_context)
        return Work(
            prefill_tokens=prefill,
            prefill_context=prefill * self._prefill.context_tokens,
            decode_tokens=decode,
            decode_context=decode * self._decode.context_tokens,
        )


class _Balance:
    """Of prefilled or of decoded tokens."""

    __slots__ = ("_balance", "_counted", "_told", "_told_context")

    def __init__(self) -> None:
        self._balance = 0.0
        self._counted = 0.0
        self._told = 0.0
        self._told_context = 0.0

    @property
    def context_tokens(self) -> float:
        """The mean of tokens that were told of lately."""
        return self._told_context / self._told if self._told else _CONTEXT_TOKENS

    def beyond(self, counted: int | None, told: float, told_context: float) -> float:
        """How many of the counted tokens are nobody's; fewer than are counted."""
        kept = 1.0 - _FORGOTTEN
        if told > _TOLD_LEAST:  # else the mean stays what it was
            self._told = self._told * kept + told
            self._told_context = self._told_context * kept + told_context
        if counted is None:  # the engine did not answer: a later window has what it counted meanwhile
            self._balance -= told
            return 0.0
        self._counted = self._counted * kept + counted
        self._balance = self._balance * kept + counted - told
        beyond = max(0.0, self._balance - _SLACK_TOKENS - _SLACK_SHARE * self._counted)
        self._balance -= beyond
        return beyond

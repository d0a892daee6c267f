"""The words of a load test: a request that is to be sent, and what came of it. Pure."""

from __future__ import annotations

import msgspec


class Terms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request asks for beside its answer, as the gateway's headers do; None asks for nothing."""

    ttft_s_max: float | None = None
    tpot_s_max: float | None = None
    e2e_s_max: float | None = None
    quality_min: float | None = None
    policy: str | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One of a chat, in OpenAI's form."""

    role: str
    content: str


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A request to send ``due_s`` seconds after the run's start, whatever became of those before it.

    ``kind`` is what the report calls requests of its sort. ``output_tokens`` is ``max_tokens``; with ``exact`` the
    engine goes on to that number (vLLM's ``ignore_eos``). ``service_tier`` is OpenAI's field: ``flex`` may wait.
    """

    number: int
    due_s: float
    kind: str
    model: str
    messages: tuple[Message, ...]
    output_tokens: int
    tenant: str = "default"
    session: str | None = None
    service_tier: str | None = None
    stream: bool = True
    exact: bool = True
    terms: Terms = Terms()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the client saw of a request; no word of its prompt or answer.

    Times are seconds after the run's start: when it was due, was sent, had its first token (of a stream), and ended.
    ``status`` is None where no answer came, and ``error`` is None of an answer that came whole; else OpenAI's error
    code or type, or the name of what went wrong on the way. Tokens are the answer's own ``usage``. The rest is what the
    answer, or its receipt, says of itself: None where it does not, as with servers that are not Economizer.
    """

    number: int
    kind: str
    model: str
    tenant: str
    terms: Terms
    due_s: float
    sent_s: float
    ended_s: float
    first_s: float | None = None
    status: int | None = None
    error: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    request_id: str | None = None
    variant: str | None = None
    quality: float | None = None
    degraded: str | None = None
    energy_j: float | None = None
    cost_usd: float | None = None
    carbon_g: float | None = None
    method: str | None = None  # how energy_j was measured
    predicted_ttft_s: float | None = None
    predicted_tpot_s: float | None = None
    predicted_energy_j: float | None = None
    predicted_cost_usd: float | None = None

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first token, from when it was due: a client that is late itself hides no wait."""
        return None if self.first_s is None else self.first_s - self.due_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds a token after the first one; None of an answer that was not streamed or has fewer than two."""
        if self.first_s is None or self.output_tokens is None or self.output_tokens < 2:
            return None
        return (self.ended_s - self.first_s) / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float:
        """Seconds to the end, from when it was due."""
        return self.ended_s - self.due_s

    @property
    def answered(self) -> bool:
        """Whether a whole answer came."""
        return self.error is None

    @property
    def met(self) -> bool:
        """Whether a whole answer came and kept every term that can be seen here: goodput counts these alone."""
        terms = self.terms
        return self.answered and all(
            limit is None or (value is not None and value <= limit)
            for value, limit in (
                (self.ttft_s, terms.ttft_s_max),
                (self.tpot_s if self.output_tokens != 1 else 0.0, terms.tpot_s_max),
                (self.e2e_s, terms.e2e_s_max),
                (
                    None if self.quality is None else -self.quality,
                    None if terms.quality_min is None else -terms.quality_min,
                ),
            )
        )

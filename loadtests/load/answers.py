"""What comes back for one request: read from an OpenAI-compatible answer, streamed or whole, and from its receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from load.types import Outcome, Planned

ESTIMATE = "estimate"  # the method of what was not measured, or not yet
_DONE = b"[DONE]"


class _Error(msgspec.Struct):
    type: str | None = None
    code: str | int | None = None

    @property
    def name(self) -> str:
        return str(self.code or self.type or "error")


class _Spent(msgspec.Struct):
    """``usage.economizer``, and ``actual`` of a receipt."""

    request_id: str | None = None
    variant: str | None = None
    degraded: str | None = None
    method: str | None = None
    energy_j: float | None = None
    cost_usd: float | None = None
    carbon_g: float | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    economizer: _Spent | None = None


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None

    @property
    def full(self) -> bool:
        """Whether there is a token in it."""
        return bool(self.content or self.reasoning_content or self.reasoning or self.tool_calls)


class _Choice(msgspec.Struct):
    delta: _Delta | None = None


class _Piece(msgspec.Struct):
    """A whole answer, an event of a stream, or an error: what matters here of each."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: _Error | str | None = None


class _Times(msgspec.Struct):
    p50: float | None = None


class _Prediction(msgspec.Struct):
    ttft_s: _Times | None = None
    tpot_s: _Times | None = None
    costs: _Spent | None = None
    quality: float | None = None


class _Candidate(msgspec.Struct):
    variant: str
    prediction: _Prediction


class _Predicted(msgspec.Struct):
    ttft_s: float | None = None
    energy_j: float | None = None
    cost_usd: float | None = None


class _Decision(msgspec.Struct):
    """``candidates`` where the gateway still has its decision, ``predicted`` where only the books do."""

    variant: str | None = None
    candidates: list[_Candidate] = []
    predicted: _Predicted | None = None


class _Receipt(msgspec.Struct):
    actual: _Spent | None = None
    decision: _Decision | None = None
    redecision: _Decision | None = None
    degraded: str | None = None


_PIECE = msgspec.json.Decoder(_Piece)
_RECEIPT = msgspec.json.Decoder(_Receipt)


@dataclass(kw_only=True, slots=True)
class Answer:
    """What has been seen of one answer so far; ``clock`` gives seconds after the run's start.

    A stream that came whole ended with its last token: what follows, usage that may wait for a meter and ``[DONE]``, is
    no part of the caller's wait.
    """

    clock: Callable[[], float]
    quality: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    ended_s: float | None = None
    status: int | None = None
    error: str | None = None
    request_id: str | None = None
    variant: str | None = None
    degraded: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    spent: _Spent | None = None
    predicted_ttft_s: float | None = None
    predicted_tpot_s: float | None = None
    predicted_energy_j: float | None = None
    predicted_cost_usd: float | None = None

    @property
    def measured(self) -> bool:
        """Whether a meter has told what it took."""
        return self.spent is not None and self.spent.method not in (None, ESTIMATE)

    def end(self, error: str | None = None) -> None:
        """Note how and when it ended; what happens to the connection after that is of no interest."""
        if self.ended_s is not None:
            return
        self.error = self.error or error
        whole = self.error is None and self.last_s is not None
        self.ended_s = self.last_s if whole else self.clock()

    def token(self) -> None:
        """Note that a token came."""
        self.last_s = self.clock()
        if self.first_s is None:
            self.first_s = self.last_s

    def outcome(self, planned: Planned, sent_s: float) -> Outcome:
        """The whole of it."""
        spent = self.spent or _Spent()
        return Outcome(
            number=planned.number,
            kind=planned.kind,
            model=planned.model,
            tenant=planned.tenant,
            terms=planned.terms,
            due_s=planned.due_s,
            sent_s=sent_s,
            ended_s=self.clock() if self.ended_s is None else self.ended_s,
            first_s=self.first_s,
            status=self.status,
            error=self.error,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            request_id=self.request_id,
            variant=self.variant,
            quality=self.quality,
            degraded=self.degraded,
            energy_j=spent.energy_j,
            cost_usd=spent.cost_usd,
            carbon_g=spent.carbon_g,
            method=spent.method,
            predicted_ttft_s=self.predicted_ttft_s,
            predicted_tpot_s=self.predicted_tpot_s,
            predicted_energy_j=self.predicted_energy_j,
            predicted_cost_usd=self.predicted_cost_usd,
        )


async def read_answer(found: aiohttp.ClientResponse, answer: Answer) -> None:
    """Read an answer to its end; raises what aiohttp does where it breaks off, DecodeError for what is not JSON."""
    answer.status = found.status
    read_head(found.headers, answer)
    if found.content_type == "text/event-stream":
        await _read_stream(found, answer)
        return
    body = await found.read()
    try:
        piece = _PIECE.decode(body)
    except msgspec.DecodeError:
        if found.ok:
            raise
        piece = _Piece()  # an error of something that does not speak OpenAI's language, such as a proxy
    _take(piece, answer)
    answer.end(None if found.ok else f"http_{found.status}")


def read_receipt(content: bytes, answer: Answer) -> None:
    """Fill in what a receipt knows: what was measured, predicted and promised of the variant that answered."""
    receipt = _RECEIPT.decode(content)
    answer.degraded = receipt.degraded or answer.degraded
    if receipt.actual is not None and receipt.actual.method is not None:
        answer.spent = receipt.actual
    decision = receipt.redecision or receipt.decision or _Decision()
    if decision.predicted is not None:
        answer.predicted_ttft_s = decision.predicted.ttft_s
        answer.predicted_energy_j = decision.predicted.energy_j
        answer.predicted_cost_usd = decision.predicted.cost_usd
    for candidate in decision.candidates:
        if candidate.variant == (answer.variant or decision.variant):
            _take_prediction(candidate.prediction, answer)


def _take_prediction(prediction: _Prediction, answer: Answer) -> None:
    answer.quality = answer.quality if prediction.quality is None else prediction.quality
    answer.predicted_ttft_s = prediction.ttft_s.p50 if prediction.ttft_s else None
    answer.predicted_tpot_s = prediction.tpot_s.p50 if prediction.tpot_s else None
    answer.predicted_energy_j = prediction.costs.energy_j if prediction.costs else None
    answer.predicted_cost_usd = prediction.costs.cost_usd if prediction.costs else None


async def _read_stream(found: aiohttp.ClientResponse, answer: Answer) -> None:
    events = Events()
    async for received in found.content.iter_any():
        for data in events.feed(received):
            if data == _DONE:
                answer.end()  # and read on: a connection that is left now looks to the server like a caller who leaves
            else:
                take(data, answer)
    answer.end("stream_cut")  # it closed as if all was well, without saying that it is done


def take(data: bytes, answer: Answer) -> None:
    """Take in an event of a stream, or a whole body; raises DecodeError where that is not JSON of OpenAI's form."""
    _take(_PIECE.decode(data), answer)


def _take(piece: _Piece, answer: Answer) -> None:
    if piece.error is not None:
        answer.error = piece.error.name if isinstance(piece.error, _Error) else "error"
    if any(choice.delta is not None and choice.delta.full for choice in piece.choices or ()):
        answer.token()
    if piece.usage is None:
        return
    answer.prompt_tokens, answer.output_tokens = piece.usage.prompt_tokens, piece.usage.completion_tokens
    if (spent := piece.usage.economizer) is not None:
        answer.spent = spent
        answer.request_id = answer.request_id or spent.request_id
        answer.variant = answer.variant or spent.variant
        answer.degraded = answer.degraded or spent.degraded


def read_head(head: Mapping[str, str], answer: Answer) -> None:
    """Take in what Economizer's headers say; names are in small letters, or ``head`` does not care."""
    answer.request_id = head.get("x-economizer-request-id")
    answer.variant = head.get("x-economizer-variant") or None
    answer.degraded = head.get("x-economizer-degraded")
    if "x-energy-joules" in head or "x-cost-usd" in head:
        answer.spent = _Spent(
            method=head.get("x-economizer-method"),
            energy_j=_number(head.get("x-energy-joules")),
            cost_usd=_number(head.get("x-cost-usd")),
            carbon_g=_number(head.get("x-carbon-gco2e")),
        )


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


class Events:
    """Server-sent events, from bytes as they come: the ``data`` of each, in OpenAI's form of one line an event."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The data of every event that these bytes complete."""
        *lines, self._left = (self._left + received).split(b"\n")
        for line in lines:
            name, _, value = line.rstrip(b"\r").partition(b":")
            if name == b"data":
                yield value.strip()

"""The open loop: each request goes out when it is due, whatever became of those before it.

A request is a task of its own on a connection of its own where none is free, so slow, hanging or broken answers neither
delay nor drop an arrival. How late the client itself was is ``sent_s - due_s`` of each outcome: a client that cannot
keep up shows it there. Works with any OpenAI-compatible server; what only Economizer says stays None with others.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
import msgspec

from load.answers import Answer, read_answer, read_receipt
from load.types import Outcome, Planned, Terms

INTERRUPTED, CANCELLED, TIMED_OUT = "interrupted", "cancelled", "timeout"
TIMEOUT_S = 600.0
_RECEIPT_AFTER_S = (2.0, 3.0, 5.0)  # a receipt is measured about a second after its answer; later on a busy machine
_KEEP_ALIVE_S = 3.0  # below the 5 s of uvicorn: a connection that the server is just closing is not used again
_HEADERS = (
    ("x-slo-ttft-ms", "ttft_s_max", 1e3),
    ("x-slo-tpot-ms", "tpot_s_max", 1e3),
    ("x-slo-e2e-ms", "e2e_s_max", 1e3),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where requests go.

    ``urls`` are base URLs that end in ``/v1``; of several, requests take turns by their numbers. ``keys`` are API keys
    by tenant, ``key`` that of the others. ``terms``: whether they are sent, as Economizer's headers. ``receipts``:
    whether to ask for each answer's receipt, for what was predicted and measured. ``quality`` is what answers are worth
    where nothing says it: 1.0 of engines that serve the full model alone. ``extra`` are further fields of each body.
    """

    urls: tuple[str, ...]
    key: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    terms: bool = True
    receipts: bool = False
    timeout_s: float = TIMEOUT_S
    quality: float | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError("urls is empty: must have at least one base URL, such as http://127.0.0.1:8000/v1")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s is {self.timeout_s!r}: must be above 0")

    def url(self, number: int) -> str:
        """The base URL of a request."""
        return self.urls[number % len(self.urls)].rstrip("/")

    def key_of(self, tenant: str) -> str | None:
        """The API key of a tenant."""
        return self.keys.get(tenant, self.key)


def open_session() -> aiohttp.ClientSession:
    """A session without a limit of its own on connections or time."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))


async def replay(
    plan: Sequence[Planned],
    target: Target,
    *,
    on_sent: Callable[[Planned, float], None] | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
    leaves_s: Mapping[int, float] | None = None,
) -> list[Outcome]:
    """Send every request when it is due; returns all outcomes, in the order in which they ended, when the last has.

    ``on_sent`` is told of each request and how late it was sent, in seconds; ``on_outcome`` of each outcome. What they
    raise ends the run. ``leaves_s`` are seconds, by a request's number, after which its caller goes away: an outcome
    with the error ``cancelled`` unless the whole answer came before. A replay that is cancelled cancels what is on its
    way, tells ``on_outcome`` of it as ``interrupted``, and raises CancelledError.
    """
    _allow_many_connections()
    outcomes: list[Outcome] = []

    def ended(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if on_outcome is not None:
            on_outcome(outcome)

    loop = asyncio.get_running_loop()
    async with open_session() as session, asyncio.TaskGroup() as tasks:
        client = _Client(session, target, loop.time(), ended, leaves_s or {})
        for planned in sorted(plan, key=lambda one: (one.due_s, one.number)):
            body = request_body(planned, target)
            if (wait_s := planned.due_s - client.now_s()) > 0:
                await asyncio.sleep(wait_s)
            sent_s = client.now_s()
            tasks.create_task(client.ask(planned, body, sent_s))
            if on_sent is not None:
                on_sent(planned, sent_s - planned.due_s)
    return outcomes


class _Client:
    """Sends requests to a target and reads what comes of them. Times are seconds after the run's start."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        target: Target,
        started_s: float,
        ended: Callable[[Outcome], None],
        leaves_s: Mapping[int, float],
    ) -> None:
        self._session = session
        self._target = target
        self._started_s = started_s
        self._ended = ended
        self._leaves_s = leaves_s

    def now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._started_s

    async def ask(self, planned: Planned, body: bytes, sent_s: float) -> None:
        """Send one request, read its answer and its receipt, and tell what came of it."""
        answer = Answer(clock=self.now_s, quality=self._target.quality)
        try:
            await self._answer(planned, body, answer)
            if self._target.receipts and answer.request_id is not None and answer.variant is not None:
                await self._receipt(planned, answer)
        finally:
            self._ended(answer.outcome(planned, sent_s))

    async def _answer(self, planned: Planned, body: bytes, answer: Answer) -> None:
        """Fill the answer; what goes wrong on the way is its ``error``."""
        leaves_s = self._leaves_s.get(planned.number)
        limit_s = min(self._target.timeout_s, self._target.timeout_s if leaves_s is None else leaves_s)
        url = f"{self._target.url(planned.number)}/chat/completions"
        try:
            async with (
                asyncio.timeout(limit_s),
                self._session.post(url, data=body, headers=request_head(planned, self._target)) as found,
            ):
                await read_answer(found, answer)
        except asyncio.CancelledError:
            answer.end(INTERRUPTED)
            raise
        except TimeoutError:
            answer.end(TIMED_OUT if leaves_s is None or leaves_s > limit_s else CANCELLED)
        except (aiohttp.ClientError, OSError, msgspec.DecodeError) as error:
            answer.end(_name(error))

    async def _receipt(self, planned: Planned, answer: Answer) -> None:
        """Read the receipt once it is measured, or as it is after a while; a run does not fail for want of one."""
        url = f"{self._target.url(planned.number)}/receipts/{answer.request_id}"
        for wait_s in _RECEIPT_AFTER_S:
            await asyncio.sleep(wait_s)
            try:
                async with (
                    asyncio.timeout(10),
                    self._session.get(url, headers=_authorization(planned, self._target)) as found,
                ):
                    if found.status != 200:
                        return
                    read_receipt(await found.read(), answer)
            except (TimeoutError, aiohttp.ClientError, OSError, msgspec.DecodeError):
                return
            if answer.measured:
                return


def request_head(planned: Planned, target: Target) -> dict[str, str]:
    """The request's headers: its tenant's key, its session and, where the target knows them, its terms."""
    head = {"content-type": "application/json"} | _authorization(planned, target)
    if planned.session is not None:
        head["x-session-id"] = planned.session
    return head | (_term_headers(planned.terms) if target.terms else {})


def _authorization(planned: Planned, target: Target) -> dict[str, str]:
    key = target.key_of(planned.tenant)
    return {} if key is None else {"authorization": f"Bearer {key}"}


def request_body(planned: Planned, target: Target) -> bytes:
    """The request as OpenAI has it; the engine goes on to an exact length by vLLM's ``ignore_eos``."""
    body: dict[str, object] = {
        "model": planned.model,
        "messages": planned.messages,
        "max_tokens": planned.output_tokens,
        "temperature": 0,
        "user": planned.session or planned.tenant,
    }
    if planned.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if planned.exact:
        body["ignore_eos"] = True
    if planned.service_tier is not None:
        body["service_tier"] = planned.service_tier
    return msgspec.json.encode(body | dict(target.extra))


def _term_headers(terms: Terms) -> dict[str, str]:
    values = [(header, getattr(terms, name), per) for header, name, per in _HEADERS]
    head = {header: f"{value * per:.10g}" for header, value, per in values if value is not None}
    if terms.quality_min is not None:
        head["x-quality-min"] = f"{terms.quality_min:.10g}"
    if terms.policy is not None:
        head["x-economizer-policy"] = terms.policy
    return head


def _name(error: Exception) -> str:
    """What went wrong on the way, in a word."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return "not_connected"
    return "not_understood" if isinstance(error, msgspec.DecodeError) else "broken_off"


def _allow_many_connections() -> None:
    """Each answer that hangs holds a file descriptor; the usual limit of 1,024 would drop arrivals."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

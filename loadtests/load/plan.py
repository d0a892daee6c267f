"""From a trace to the requests of a run: when each is due, what it says, on what terms and for whom. Pure.

The same trace, texts, mix and seed give the same plan. What is drawn of a request (its prompt, its terms, its tenant)
does not change with the speed, so that the same requests can be sent faster or slower.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from load.arrivals import Row
from load.mixes import Mix, Sort
from load.prompts import Prompts
from load.traces import MOONCAKE_BLOCK_TOKENS, Trace
from load.types import Message, Planned

CONTEXT_TOKENS = 2_048
_LONG_TOKENS = 1_024
_ANSWER_SHARE_MAX = 0.5  # of the context
_PROMPT_TOKENS_MIN = 32  # a chat template alone has about so many


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of a run in the order in which they are due, and what the trace's lengths had to give up.

    ``prompts_cut`` and ``answers_cut`` are how many did not fit into the context; ``prompt_tokens`` is the sum of what
    was planned, in tokens as ``counted`` says.
    """

    requests: tuple[Planned, ...]
    trace: str
    failed: int
    share: float | None
    texts: str
    counted: str
    prompts_cut: int
    answers_cut: int
    prompt_tokens: int
    output_tokens: int

    @property
    def facts(self) -> dict[str, object]:
        """All but the requests, and when the last is due."""
        facts = {name: getattr(self, name) for name in self.__struct_fields__ if name != "requests"}
        return facts | {"requests": len(self.requests), "last_due_s": self.requests[-1].due_s if self.requests else 0.0}


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """How a trace is bent to a machine.

    ``speed`` 10 lets an hour pass in six minutes. ``length_scale`` multiplies prompts and answers, which are then cut
    to a context of ``context_tokens``. ``tenants`` spreads requests over so many (of a trace with tenants, the busiest
    keep their place); None leaves tenants as the trace has them.
    """

    speed: float = 1.0
    length_scale: float = 1.0
    context_tokens: int = CONTEXT_TOKENS
    tenants: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("speed", 0), ("length_scale", 0), ("context_tokens", 4 * _PROMPT_TOKENS_MIN - 1)):
            if not getattr(self, name) > least:
                raise ValueError(f"{name} is {getattr(self, name)!r}: must be above {least}")
        if self.tenants is not None and self.tenants < 1:
            raise ValueError(f"tenants is {self.tenants!r}: must be 1 or more")


def make_plan(
    trace: Trace,
    prompts: Prompts,
    mix: Mix,
    *,
    model: str,
    shape: Shape | None = None,
    seed: int = 0,
    stream: bool = True,
    exact: bool = True,
) -> Plan:
    """The plan of a trace."""
    shape = shape or Shape()
    rows = sorted(trace.rows, key=lambda row: row.at_s)
    terms = random.Random(f"{seed} terms")
    tenants = _tenants(rows, shape.tenants, seed)
    lengths = [_lengths(row, shape, prompts.counter.margin) for row in rows]
    chats = _Chats(prompts, round(MOONCAKE_BLOCK_TOKENS * shape.length_scale) or 1)
    requests = []
    for number, (row, (prompt_tokens, output_tokens), tenant) in enumerate(zip(rows, lengths, tenants, strict=True)):
        sort: Sort = mix.draw(terms)
        requests.append(
            Planned(
                number=number,
                due_s=row.at_s / shape.speed,
                kind=_kind(row, prompt_tokens),
                model=model,
                messages=chats.next(row, number, prompt_tokens, output_tokens),
                output_tokens=output_tokens,
                tenant=tenant,
                session=row.session,
                service_tier=sort.service_tier,
                stream=stream,
                exact=exact,
                terms=sort.terms,
            )
        )
    wanted = [_scaled(row, shape.length_scale) for row in rows]
    return Plan(
        requests=tuple(requests),
        trace=trace.format,
        failed=trace.failed,
        share=trace.share,
        texts=prompts.source,
        counted=prompts.counter.how,
        prompts_cut=sum(cut < want for (cut, _), (want, _) in zip(lengths, wanted, strict=True)),
        answers_cut=sum(cut < want for (_, cut), (_, want) in zip(lengths, wanted, strict=True)),
        prompt_tokens=sum(prompt_tokens for prompt_tokens, _ in lengths),
        output_tokens=sum(output_tokens for _, output_tokens in lengths),
    )


class _Chats:
    """The messages of one request after the other; sessions go on from where they were."""

    def __init__(self, prompts: Prompts, block_tokens: int) -> None:
        self._prompts = prompts
        self._block_tokens = block_tokens
        self._histories: dict[str, tuple[Message, ...]] = {}

    def next(self, row: Row, number: int, prompt_tokens: int, output_tokens: int) -> tuple[Message, ...]:
        if row.session is not None:
            history = self._histories.get(row.session, ())
            messages = self._prompts.turn(history, prompt_tokens, number)
            self._histories[row.session] = self._prompts.answered(messages, output_tokens, number)
            return messages
        if row.blocks:
            return self._prompts.shared(row.blocks, self._block_tokens, prompt_tokens, number)
        return self._prompts.chat(prompt_tokens, number)


def _kind(row: Row, prompt_tokens: int) -> str:
    if row.session is not None:
        return "multi-turn"
    if row.blocks:
        return "shared prefix"
    return "long prompt" if prompt_tokens >= _LONG_TOKENS else "chat"


def _scaled(row: Row, scale: float) -> tuple[int, int]:
    return max(_PROMPT_TOKENS_MIN, round(row.prompt_tokens * scale)), max(1, round(row.output_tokens * scale))


def _lengths(row: Row, shape: Shape, margin: float) -> tuple[int, int]:
    """Prompt and answer in tokens, so that both fit: the answer has half the context at most, the prompt the rest."""
    prompt_tokens, output_tokens = _scaled(row, shape.length_scale)
    output_tokens = min(output_tokens, int(shape.context_tokens * _ANSWER_SHARE_MAX))
    return min(prompt_tokens, int((shape.context_tokens - output_tokens) / (1 + margin))), output_tokens


def _tenants(rows: Sequence[Row], wanted: int | None, seed: int) -> list[str]:
    """The tenant of each row.

    Tenants that are drawn send in proportion to 1, 1/2, 1/3, ...: unlike each other, as a ServeGen day's clients are.
    """
    if wanted is None:
        return [row.tenant or "default" for row in rows]
    names = [f"tenant-{place + 1}" for place in range(wanted)]
    counts: dict[str, int] = {}
    for row in rows:
        if row.tenant is not None:
            counts[row.tenant] = counts.get(row.tenant, 0) + 1
    busiest = sorted(counts, key=lambda name: (-counts[name], name))
    of = {name: names[place % wanted] for place, name in enumerate(busiest)}
    draw = random.Random(f"{seed} tenants")
    drawn: dict[str, str] = {}
    tenants = []
    for row in rows:
        pick = draw.choices(names, weights=[1 / (place + 1) for place in range(wanted)])[0]
        whose = of[row.tenant] if row.tenant is not None else pick
        tenants.append(whose if row.session is None else drawn.setdefault(row.session, whose))
    return tenants

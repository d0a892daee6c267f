"""The load of a soak: a steady mixture of requests of several tenants, and which of their callers go away. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from economizer.errors import require

from load.prompts import Prompts
from load.types import Message, Planned, Terms

FREE_TENANTS = ("soak-a", "soak-b")
LIMITED_TENANT = "soak-limited"  # has a rate limit that its requests exceed now and then
_LIMITED_SHARE = 0.1
_TURNS_MAX = 4
_SESSIONS = 6
_NO_TERMS = Terms()


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Requests of one sort: how often they come, how long they are in tokens (at least, at most), and what they ask.

    A session's prompt is so much longer than what was said before.
    """

    name: str
    share: float
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    stream: bool = False
    service_tier: str | None = None
    terms: Terms = _NO_TERMS
    pinned: bool = False


KINDS = (
    Kind(name="chat", share=0.28, prompt_tokens=(40, 110), output_tokens=(8, 48)),
    Kind(name="stream", share=0.28, prompt_tokens=(40, 110), output_tokens=(16, 64), stream=True),
    Kind(name="long", share=0.08, prompt_tokens=(600, 1200), output_tokens=(4, 16), stream=True),
    Kind(name="session", share=0.16, prompt_tokens=(60, 140), output_tokens=(8, 32), stream=True),
    Kind(name="flex", share=0.08, prompt_tokens=(40, 230), output_tokens=(16, 48), service_tier="flex"),
    Kind(name="pinned", share=0.06, prompt_tokens=(40, 110), output_tokens=(8, 32), stream=True, pinned=True),
    Kind(name="floor", share=0.04, prompt_tokens=(40, 110), output_tokens=(8, 32), terms=Terms(quality_min=0.99)),
    # No variant has its first token in a microsecond: refused, with a reason.
    Kind(name="impossible", share=0.02, prompt_tokens=(40, 110), output_tokens=(8, 32), terms=Terms(ttft_s_max=1e-6)),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Steady:
    """How much comes, for how long. ``cancel_share`` of the callers go away within ``leave_s_max`` seconds."""

    seconds: float
    rate_per_s: float
    cancel_share: float
    leave_s_max: float
    seed: int

    def __post_init__(self) -> None:
        require(self.seconds > 0, "seconds", self.seconds, "must be above 0")
        require(self.rate_per_s > 0, "rate_per_s", self.rate_per_s, "must be above 0")
        require(0 <= self.cancel_share <= 1, "cancel_share", self.cancel_share, "must be between 0 and 1")
        require(self.leave_s_max > 0, "leave_s_max", self.leave_s_max, "must be above 0")


def steady_plan(how: Steady, *, models: Sequence[str], pins: Sequence[str], prompts: Prompts) -> list[Planned]:
    """Requests at random times (a Poisson process), of each kind its share, to ``models``, and pinned to ``pins``."""
    draw = random.Random(how.seed)
    sessions = _Sessions(prompts, draw)
    plan = []
    for number, due_s in enumerate(_arrivals(how, draw)):
        (kind,) = draw.choices(KINDS, weights=[kind.share for kind in KINDS])
        prompt_tokens, output_tokens = draw.randint(*kind.prompt_tokens), draw.randint(*kind.output_tokens)
        if kind.name == "session":
            session, messages = sessions.next(number, prompt_tokens, output_tokens)
        else:
            session, messages = None, prompts.chat(prompt_tokens, number)
        plan.append(
            Planned(
                number=number,
                due_s=due_s,
                kind=kind.name,
                model=draw.choice(pins if kind.pinned else models),
                messages=messages,
                output_tokens=output_tokens,
                tenant=LIMITED_TENANT if draw.random() < _LIMITED_SHARE else draw.choice(FREE_TENANTS),
                session=session,
                service_tier=kind.service_tier,
                stream=kind.stream,
                terms=kind.terms,
            )
        )
    return plan


class _Sessions:
    """Some conversations at a time, each of a few turns, after which another one takes its place."""

    def __init__(self, prompts: Prompts, draw: random.Random) -> None:
        self._prompts = prompts
        self._draw = draw
        self._numbers = count()
        self._open: list[tuple[str, tuple[Message, ...]]] = [self._new() for _ in range(_SESSIONS)]

    def next(self, key: int, prompt_tokens: int, output_tokens: int) -> tuple[str, tuple[Message, ...]]:
        """The name of one of them, and its next turn."""
        place = self._draw.randrange(_SESSIONS)
        name, history = self._open[place]
        messages = self._prompts.turn(history, self._prompts.tokens(history) + prompt_tokens, key)
        turns = sum(message.role == "user" for message in messages)
        answered = self._prompts.answered(messages, output_tokens, key)
        self._open[place] = self._new() if turns >= _TURNS_MAX else (name, answered)
        return name, messages

    def _new(self) -> tuple[str, tuple[Message, ...]]:
        return f"session-{next(self._numbers)}", ()


def leaving(plan: Sequence[Planned], how: Steady) -> dict[int, float]:
    """After how many seconds each of the callers who go away does, by their requests' numbers."""
    draw = random.Random(f"leaving {how.seed}")
    return {planned.number: draw.uniform(0.0, how.leave_s_max) for planned in plan if draw.random() < how.cancel_share}


def _arrivals(how: Steady, draw: random.Random) -> Iterator[float]:
    due_s = draw.expovariate(how.rate_per_s)
    while due_s < how.seconds:
        yield due_s
        due_s += draw.expovariate(how.rate_per_s)

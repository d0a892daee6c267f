"""A made-up engine with continuous batching, of which is known what each request takes: attribution is judged by it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from economizer.energy.attribution import Attribution, attribute
from economizer.energy.step_model import Coefficients, Episode, StepModel
from economizer.energy.types import NO_WORK, Work

TRUE = Coefficients(
    prefill_uj=5_000,
    prefill_context_uj=2,
    decode_uj=6_000,
    decode_context_uj=15,
    step_uj=100_000,
    second_uj=1_500_000,
)


def decoded(tokens: float, context: float = 0.0) -> Work:
    return Work(decode_tokens=tokens, decode_context=context)


def prefilled(tokens: float, context: float = 0.0) -> Work:
    return Work(prefill_tokens=tokens, prefill_context=context)


@dataclass(frozen=True)
class Request:
    name: str
    began_s: float
    prompt: int
    output: int


@dataclass
class Window:
    """A second of the engine: what gateways tell of it, what it used, and for whom."""

    works: defaultdict[str, Work] = field(default_factory=lambda: defaultdict(Work))
    steps: int = 0
    active_uj: float = 0.0
    truth_uj: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    first_s: dict[str, float] = field(default_factory=dict)


def engine(requests: Sequence[Request], chunk_tokens: int = 2048) -> Iterator[tuple[float, dict[str, Work]]]:
    """Each step of an engine that batches continuously: when it ended, and the work in it.

    Prompts are computed in chunks beside the sequences that decode, and the last chunk gives the first token.
    """
    waiting = sorted(requests, key=lambda request: (request.began_s, request.name))
    running: list[Request] = []
    done: defaultdict[str, int] = defaultdict(int)
    tokens: defaultdict[str, int] = defaultdict(int)
    now_s = 0.0
    while waiting or running:
        if not running:
            now_s = max(now_s, waiting[0].began_s)
        while waiting and waiting[0].began_s <= now_s and len(running) < 32:
            running.append(waiting.pop(0))
        budget = chunk_tokens
        works: dict[str, Work] = {}
        for one in running:
            if done[one.name] == one.prompt:
                works[one.name] = decoded(1, one.prompt + tokens[one.name])
                tokens[one.name] += 1
                budget -= 1
        for one in running:
            count = min(budget, one.prompt - done[one.name])
            if count > 0:
                works[one.name] = prefilled(count, count * (2 * done[one.name] + count) / 2)
                done[one.name] += count
                tokens[one.name] = int(done[one.name] == one.prompt)
                budget -= count
        whole = sum(works.values(), NO_WORK)
        now_s += 0.008 + 5e-5 * whole.prefill_tokens + 5e-9 * whole.prefill_context
        now_s += 1e-4 * whole.decode_tokens + 1e-7 * whole.decode_context
        yield now_s, works
        running = [one for one in running if tokens[one.name] < one.output]


def windows(requests: Sequence[Request], true: Coefficients = TRUE, chunk_tokens: int = 2048) -> list[Window]:
    """The engine's seconds, the work in them told exactly."""
    found: defaultdict[int, Window] = defaultdict(Window)
    last: dict[str, float] = {}
    for ended_s, works in engine(requests, chunk_tokens):
        window = found[int(ended_s)]
        window.steps += 1
        for name, work in works.items():
            window.works[name] += work
            energy_uj = true.work_uj(work, 1 / len(works))
            window.truth_uj[name] += energy_uj
            window.active_uj += energy_uj
            if work.prefill_tokens:
                last[name] = ended_s
    for name, ended_s in last.items():
        found[int(ended_s)].first_s[name] = ended_s
    seconds = [found[second] for second in range(max(found) + 4)]
    for window in seconds:
        window.active_uj += true.second_uj
    return seconds


def as_gateways_see_it(requests: Sequence[Request], exact: Sequence[Window]) -> list[Window]:
    """Prompts told evenly from sending to the first token, queueing included; the first token counts as decoded."""
    seen = [replace(window, works=defaultdict(Work)) for window in exact]
    for second, window in enumerate(exact):
        for name, work in window.works.items():
            if work.decode_tokens:
                seen[second].works[name] += decoded(work.decode_tokens, work.decode_context)
    for one in requests:
        first_s = next(window.first_s[one.name] for window in exact if one.name in window.first_s)
        seen[int(first_s)].works[one.name] += decoded(1, one.prompt)
        for second in range(int(one.began_s), int(first_s) + 1):
            inside_s = min(first_s, second + 1) - max(one.began_s, second)
            share = inside_s / (first_s - one.began_s)
            seen[second].works[one.name] += prefilled(one.prompt, one.prompt**2 / 2).scaled(share)
    return seen


def traffic(seed: int, seconds: float) -> list[Request]:
    """Bursts of requests with pauses between them; one prompt in ten is long."""
    random = Random(seed)
    at_s, rate, requests = 0.0, 3.0, list[Request]()
    while at_s < seconds:
        if random.random() < 0.05:
            at_s += random.uniform(3, 15)
            rate = random.choice([1.0, 3.0, 6.0])
        at_s += random.expovariate(rate)
        long = random.random() < 0.1
        prompt = random.randrange(4_000, 8_000) if long else int(min(2_000, random.lognormvariate(5, 0.8))) + 1
        output = int(min(400, random.lognormvariate(4.5, 0.6))) + 1
        requests.append(Request(f"r{len(requests):04}", at_s, prompt, output))
    return requests


def metered(seconds: Sequence[Window], seed: int, noise: float, lag: float) -> list[int]:
    """What a meter reads: with relative noise, and up to a share of each second read in the next."""
    random, late, read = Random(seed), 0.0, list[int]()
    for window in seconds:
        later = window.active_uj * lag * random.random()
        read.append(max(0, int((window.active_uj - later + late) * random.gauss(1, noise))))
        late = later
    return read


def taught(model: StepModel, seconds: Sequence[Window], read_uj: Sequence[int]) -> StepModel:
    episode = Episode()
    for window, active_uj in zip(seconds, read_uj, strict=True):
        episode.add(model, list(window.works.values()), window.steps, active_uj, 1.0)
    return model


def attributed(model: StepModel, window: Window, active_uj: int) -> Attribution[str]:
    return attribute(active_uj=active_uj, idle_uj=0, seconds=1.0, steps=window.steps, works=window.works, model=model)

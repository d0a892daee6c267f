"""The runs of the comparison that are still to be made, one fleet after the other on the machine."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from economizer.config import home

from load import traces
from load.contest import Contest
from load.delivered import Qualities, scored
from load.fleets import Fleet
from load.mixes import Mix, read_mix
from load.plan import Plan, Shape
from load.prompts import Prompts, read_texts
from load.savings import Side
from load.sending import Target, replay
from load.sizing import Requests
from load.study import Folder, of, say
from load.tokens import counter
from load.workload import Load, Workload, capacity_rps, drawn_trace, floors

FULL, OURS = "full", "economizer"  # the names of the fleets
_WAVES = 3  # of full batches, in the burst that tells what the full model can answer
_STEPS = 2  # bare fleets between the two sides, mostly
_START_S, _AFTER_S = 60.0, 15.0  # about, of a fleet's start, and of the last answers and the books after a run


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What the full model's engines answered of a burst, and the load that is offered to both fleets.

    ``speed`` is how much faster than it was recorded the trace goes by in the first round; below 1 it is slowed down.
    """

    requests: int
    capacity_rps: float
    share: float
    load: Load
    speed: float


class Setup:
    """What a comparison is made of, from the options of its command. Raises ValueError or an EconomizerError."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.contest = Contest.read(options.config, options.family, options.engines)
        self.machine = self.contest.machine()
        self.mixes = {mix.name: mix for mix in map(read_mix, options.mixes)}
        trace = drawn_trace(options.seed) if options.trace is None else traces.read(options.trace, seed=options.seed)
        self.trace = trace.format
        self.workload = Workload(
            trace,
            Prompts(read_texts(options.data), counter(None), options.seed),
            model=self.contest.family,
            shape=Shape(length_scale=options.length_scale, context_tokens=options.context),
            seed=options.seed,
        )
        self.folder = Folder(options.out, self.settings())

    def settings(self) -> dict[str, Any]:
        """What all runs of a folder must have in common."""
        names = ("share", "minutes", "warm_s", "length_scale", "context", "seed", "engines")
        settings = {name: getattr(self.options, name) for name in names}
        for name in ("config", "trace", "data"):
            path = getattr(self.options, name)
            settings[name] = None if path is None else str(path)
        return settings | {"family": self.contest.family, "variants": self.contest.variants}

    @property
    def capacity(self) -> Capacity | None:
        """What was measured of the full model, once it was."""
        return self.folder.kept("capacity.json", Capacity)

    def sides(self) -> list[Side]:
        """All runs of ours, by mix and policy."""
        runs = of(self.folder.runs(), fleet=OURS)
        which = sorted({(run.ran.mix, run.ran.policy) for run in runs})
        return [Side(runs=tuple(of(runs, mix=mix, policy=policy)), machine=self.machine) for mix, policy in which]


class Making:
    """Makes the runs that are missing in the folder."""

    def __init__(self, setup: Setup) -> None:
        self._options = setup.options
        self._setup = setup
        self._contest = setup.contest
        self._folder = setup.folder
        self._workload = setup.workload
        self._started_s = time.monotonic()
        self._made = 0

    def run(self) -> None:
        """Make what is missing, in the order in which it is compared."""
        load = self._load()
        for number in range(1, self._options.rounds + 1):
            policies = self._options.policies if number % 2 else self._options.policies[::-1]
            for mix in self._setup.mixes.values():
                self._full(number, mix, load)
                self._ours(number, mix, load, policies)
        if self._options.steps:
            for variant, engines in self._steps():
                self._step(variant, engines, load)
        self._score()

    def _load(self) -> Load:
        """The load that is offered, from what the full model answers when it is full; measured once."""
        known = self._setup.capacity
        if known is None:
            burst = self._workload.burst(_WAVES * self._contest.engines * self._contest.batch)
            say(f"how much the full model can do: {len(burst.requests)} requests at once")
            with self._contest.alone(self._contest.full, self._contest.engines) as fleet:
                ends_s = _burst(fleet, burst)
            rps = capacity_rps(ends_s)
            load = Load(
                requests_per_s=rps * self._options.share,
                seconds=self._options.minutes * 60,
                warm_s=self._options.warm_s,
            )
            known = Capacity(
                requests=len(burst.requests),
                capacity_rps=rps,
                share=self._options.share,
                load=load,
                speed=self._workload.speed(load, 0),
            )
            self._folder.keep("capacity.json", known)
        self._workload.speed(known.load, self._options.rounds - 1)  # a trace that is too short is refused now
        say(f"capacity {known.capacity_rps:.3g} requests/s; {known.load.requests_per_s:.3g} are offered")
        return known.load

    def _full(self, number: int, mix: Mix, load: Load) -> None:
        name = f"{number}-{mix.name}-{FULL}"
        if not self._folder.has(name):
            self._say_left(name)
            with self._contest.alone(self._contest.full, self._contest.engines) as fleet:
                self._one(name, fleet, number, mix, load, fleet_name=FULL, variant=self._contest.full)

    def _ours(self, number: int, mix: Mix, load: Load, policies: Sequence[str]) -> None:
        missing = [policy for policy in policies if not self._folder.has(f"{number}-{mix.name}-{policy}")]
        if not missing:
            return
        plan = self._workload.round(mix, load, number - 1)
        count = len(plan.requests)
        requests = Requests(
            prompt_tokens=plan.prompt_tokens / count,
            output_tokens=plan.output_tokens / count,
            floor=max(floors(mix)),
        )
        self._say_left(f"{number}-{mix.name}-{missing[0]}")
        with self._contest.ours(requests) as fleet:
            for policy in missing:
                name = f"{number}-{mix.name}-{policy}"
                self._say_left(name)
                self._one(
                    name, fleet, number, mix.with_policy(policy), load, fleet_name=OURS, variant="", policy=policy
                )

    def _step(self, variant: str, engines: int, load: Load) -> None:
        name = step_name(variant, engines)
        if not self._folder.has(name):
            self._say_left(name)
            mix = next(iter(self._setup.mixes.values()))
            with self._contest.alone(variant, engines) as fleet:
                self._one(name, fleet, 1, mix, load, fleet_name=name, variant=variant, engines=engines)

    def _one(
        self,
        name: str,
        fleet: Fleet,
        number: int,
        mix: Mix,
        load: Load,
        *,
        fleet_name: str,
        variant: str,
        policy: str = "",
        engines: int | None = None,
    ) -> None:
        ran = {
            "round": number,
            "mix": mix.name,
            "fleet": fleet_name,
            "policy": policy,
            "variant": variant,
            "engines": self._contest.engines if engines is None else engines,
            "seconds": load.seconds,
            "gateway_cores": self._contest.gateway_cores if fleet_name == OURS else 0.0,
        }
        plan = self._workload.round(mix, load, number - 1)
        warm_up = self._workload.warm_up(mix, load, number - 1)
        self._folder.run(name, fleet, plan, warm_up, self._setup.machine, ran)
        self._made += 1

    def _steps(self) -> list[tuple[str, int]]:
        """Bare fleets between the full model alone and ours: as few engines as ours had, then the variant it used."""
        wanted = set()
        for side in self._setup.sides():
            if not side.answers.any():
                continue
            engines, variant = mainly(side)
            wanted |= {(self._contest.full, engines), (variant, engines)}
        return sorted(wanted - {(self._contest.full, self._contest.engines)})

    def _score(self) -> None:
        """The quality of the variants that answered, on the replay's prompts, where it can be scored here."""
        used = sorted({name for side in self._setup.sides() for name in side.variants()} | {self._contest.full})
        known = self._folder.kept("quality.json", Qualities)
        python = home() / ".venvs" / "compression" / "bin" / "python"
        if (known is not None and set(used) <= set(known.of)) or not python.exists() or not self._options.quality_items:
            return
        say(f"scoring {', '.join(used)} on {self._options.quality_items} of the replay's prompts")
        assert self._setup.capacity is not None  # there are runs
        plan = self._workload.round(next(iter(self._setup.mixes.values())), self._setup.capacity.load, 0)
        folders = {name: self._contest.folder(name) for name in used}
        try:
            found = scored(
                plan.requests,
                folders,
                full=self._contest.full,
                python=python,
                items=self._options.quality_items,
            )
        except subprocess.CalledProcessError as error:
            say(f"the variants could not be scored (exit code {error.returncode}): their published quality is taken")
            return
        self._folder.keep("quality.json", Qualities(source="replayed prompts", of=found))

    def _say_left(self, name: str) -> None:
        """What comes now, and how long the rest will take, by the runs that were made."""
        options = self._options
        fleets = (FULL, *options.policies)
        rounds = range(1, options.rounds + 1)
        names = [f"{number}-{mix}-{fleet}" for number in rounds for mix in self._setup.mixes for fleet in fleets]
        left = sum(not self._folder.has(each) for each in names) + (_STEPS if options.steps else 0)
        past_s = time.monotonic() - self._started_s
        each_s = past_s / self._made if self._made else options.minutes * 60 + options.warm_s + _START_S + _AFTER_S
        say(f"{name}: {left} runs left, about {left * each_s / 60:.0f} min")


def _burst(fleet: Fleet, plan: Plan) -> list[float]:
    target = Target(urls=fleet.urls, key=fleet.key, extra={"cache_salt": "capacity"})
    outcomes = asyncio.run(replay(plan.requests, target))
    return [one.ended_s for one in outcomes if one.answered]


def mainly(side: Side) -> tuple[int, str]:
    """How many engines it had on average, and the variant that most answers came from."""
    return max(1, round(side.engines())), next(iter(side.variants()))


def step_name(variant: str, engines: int) -> str:
    """The name of a fleet of bare engines that is neither side's."""
    return f"step-{variant}-x{engines}"

"""Other people's servers and Economizer in front of the same vLLM engines, driven by the same replay, in turns.

Economizer starts the engines: replicas of the full model alone, so that nobody has less work than another. The others
are pointed at these very engines: nginx, vllm-router, LiteLLM's proxy, and the client itself (``bare``), which takes
the engines in turns. In each round each of them gets the same requests twice, paced and all at once, with a number
before each prompt so that no engine has it in its cache. A server's joules are those of its own processes, and of the
engines beside them, by one meter; the client is not counted. All servers run from the start, idle while it is not their
turn. Ctrl-C ends it with the passes that are whole. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import processes
import yaml
from economizer.config import home
from load import peers, results
from load.arrivals import Rate, Window, arrivals
from load.joules import Instrument
from load.mixes import Mix, Sort
from load.passes import BARE, BURST, PACED, Pass, figures, marked, table
from load.plan import make_plan
from load.prompts import Prompts, read_texts
from load.sending import Target, replay
from load.tokens import Rule
from load.traces import Trace
from load.types import Outcome, Planned
from load.watching import FAST_ENGINE, VLLM, engines_below, parent_of
from msgspec.structs import replace
from processes import command_line
from stand import economizer, free_ports

OURS = "economizer"
FAMILY = "smollm2-135m"
LENGTHS = ((45, 24), (60, 48), (90, 32), (160, 64), (300, 48), (700, 16))  # tokens of prompts and answers
_HERE = Path(__file__).resolve().parent
_IDLE_S = 10.0
_REST_S = 2.0
_WARM_UP_REQUESTS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A server that takes part, and what measures it."""

    name: str
    target: Target
    instrument: Instrument


def configuration(folder: Path, port: int, *, engines: int, fast: bool) -> dict[str, Any]:
    """``deploy/config.yaml`` with the full model alone, on engines that take requests from everybody on loopback."""
    content: dict[str, Any] = yaml.safe_load((home() / "deploy" / "config.yaml").read_text())
    content["http_options"] = {"host": peers.HOST, "port": port}
    args = content["applications"][0]["args"]
    args.pop("catalogue", None)
    args["ledger"] = {"url": f"sqlite:///{folder / 'ledger.db'}", "spool": str(folder / "spool")}
    family = args["families"][FAMILY]
    variant = family["variants"][family["full"]]
    family["variants"] = {family["full"]: variant}
    variant["replicas"] = {"min": engines, "max": engines}
    variant["engine"] = _fast_engine() if fast else _open_engine(variant["engine"])
    if fast:
        variant["ray"] = {"num_cpus": 0.1}
    return content


def _open_engine(engine: dict[str, Any]) -> dict[str, Any]:
    """The same vLLM as a server of any kind, which does not ask for the gateway's secret."""
    command = [engine.get("python") or str(home() / ".venvs" / "engine" / "bin" / "python"), "-m", VLLM]
    command += ["--model", "{model}", "--served-model-name", "{name}", "--host", "{host}", "--port", "{port}"]
    command += ["--enable-prompt-tokens-details", "--disable-uvicorn-access-log", *engine["args"]]
    env = {**engine["env"], "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    return {"model": engine["model"], "command": command, "env": env}


def _fast_engine() -> dict[str, Any]:
    command = ["env", "-u", "ECONOMIZER_ENGINE_SECRET", sys.executable, str(_HERE / FAST_ENGINE)]
    return {"command": [*command, "--host", "{host}", "--port", "{port}"]}


def plans(options: argparse.Namespace, model: str) -> dict[str, list[Planned]]:
    """The requests of each phase: paced ones at random times, and a burst of all at once."""
    steady = [Rate(at_s=moment_s, per_s=options.rate) for moment_s in (0.0, options.seconds)]
    rows = arrivals(
        steady,
        LENGTHS,
        window=Window(seconds=options.seconds),
        seed=options.seed,
        clients={},
        bursty=False,
    )
    prompts = Prompts(read_texts(options.data), Rule(), options.seed)
    plain = Mix(name="plain", sorts={"plain": Sort(share=1.0)})
    made = make_plan(Trace(format="drawn", rows=tuple(rows)), prompts, plain, model=model, seed=options.seed)
    burst = [replace(one, due_s=0.0) for one in made.requests[: options.burst]]
    return {PACED: list(made.requests), BURST: burst}


class Bench:
    """Starts everything, and measures in rounds what is whole."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self._options = options
        self._out = out
        self.passes: list[Pass] = []
        self.left_out: dict[str, str] = {}
        self.idle_mw: dict[str, float | None] = {}
        self.servers: list[str] = []
        self.meter = "none"
        self._marks = 0
        self._key = f"sk-{secrets.token_urlsafe(32)}"

    def run(self) -> None:
        """All rounds; what is measured is in ``passes`` after each."""
        options = self._options
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="eco-peers-")))
            (port,) = free_ports(1)
            content = configuration(folder, port, engines=options.engines, fast=options.engine == "fast")
            file = folder / "peers.yaml"
            file.write_text(yaml.safe_dump(content))
            root = stack.enter_context(economizer(file))
            family = content["applications"][0]["args"]["families"][FAMILY]
            model = f"{FAMILY}@{family['full']}"
            contenders = list(self._contenders(stack, folder, root, port, model))
            planned = plans(options, model)
            contenders = [one for one in contenders if self._takes_part(one, planned[PACED])]
            self.servers, self.meter = [one.name for one in contenders], contenders[0].instrument.describe()
            self._measure_idle(contenders)
            for number in range(1, options.rounds + 1):
                turn = (number - 1) % len(contenders)
                for phase in (PACED, BURST):
                    for one in contenders[turn:] + contenders[:turn]:
                        self._say(f"round {number} of {options.rounds}, {phase}: {one.name}{self._left(number)}")
                        mark = self._mark()
                        self.passes.append(self._pass(one, number, phase, marked(planned[phase], mark)))

    def _contenders(self, stack: ExitStack, folder: Path, root: int, port: int, model: str) -> Iterator[Contender]:
        """The bare engines, every peer that starts, and Economizer."""
        engines = engines_below(root)
        guards = [parent_of(pid) for pid in engines]
        ports = [int(words[words.index("--port") + 1]) for words in (command_line(pid).split() for pid in engines)]
        urls = tuple(f"http://{peers.HOST}:{engine}/v1" for engine in ports)
        yield Contender(name=BARE, target=_target(self._key, *urls), instrument=Instrument(None, guards, inside=False))
        programs, self.left_out = peers.found(home() / ".venvs" / "peers")
        for name, program in programs.items():
            own, metrics = free_ports(2)
            if name == "nginx":
                peer = peers.nginx(program, port=own, engines=ports, folder=folder)
            elif name == "vllm-router":
                peer = peers.vllm_router(program, port=own, metrics_port=metrics, engines=ports)
            else:
                peer = peers.litellm(program, port=own, engines=ports, model=model, key=self._key, folder=folder)
            self._say(f"starting {name}")
            try:
                of = stack.enter_context(peers.started(peer, port=own, folder=folder))
            except peers.NotStarted as failed:
                self.left_out[name] = str(failed)
                continue
            instrument = Instrument(of, guards, inside=False)
            yield Contender(
                name=name, target=_target(self._key, f"http://{peers.HOST}:{own}/v1"), instrument=instrument
            )
        ours = Instrument(root, guards, inside=True)
        yield Contender(name=OURS, target=_target(self._key, f"http://{peers.HOST}:{port}/v1"), instrument=ours)

    def _takes_part(self, one: Contender, plan: Sequence[Planned]) -> bool:
        """Whether it answers a few requests, which also warm it up."""
        some = [replace(each, due_s=0.2 * place) for place, each in enumerate(plan[:_WARM_UP_REQUESTS])]
        some = marked(some, self._mark())
        outcomes = asyncio.run(replay(some, one.target))
        errors = sorted({f"{each.status} {each.error}" for each in outcomes if not each.answered})
        if errors:
            self.left_out[one.name] = f"does not answer all requests: {', '.join(errors)}"
        return not errors

    def _measure_idle(self, contenders: Sequence[Contender]) -> None:
        """What each server takes while no request comes, in milliwatts above a waiting core."""
        self._say(f"idle: {_IDLE_S:g} s")
        for one in contenders:
            one.instrument.begin()
        time.sleep(_IDLE_S)
        for one in contenders:
            took = one.instrument.end()
            self.idle_mw[one.name] = None if took.own_uj is None else round(took.own_uj / took.seconds / 1e3, 2)

    def _pass(self, one: Contender, number: int, phase: str, plan: Sequence[Planned]) -> Pass:
        time.sleep(_REST_S)
        facts = {"server": one.name, "round": number, "phase": phase}
        header = results.header("bench-peers", plan, settings=_settings(self._options), facts=facts)
        with results.Writer(self._out / f"{number}-{phase}-{one.name}.jsonl", header) as writer:
            one.instrument.begin()
            try:
                outcomes: list[Outcome] = asyncio.run(replay(plan, one.target, on_outcome=writer.write))
            finally:
                took = one.instrument.end(self.idle_mw.get(one.name))
        return Pass(round=number, server=one.name, phase=phase, planned=plan, outcomes=outcomes, took=took)

    def _mark(self) -> str:
        """Another one each time, of as many tokens where digits are tokens of their own."""
        self._marks += 1
        return f"{(self._options.seed + self._marks * 7919) % 10**6:06d}"

    def _left(self, number: int) -> str:
        """How long it will take yet, by the paced requests that are still to come."""
        done = sum(one.phase == PACED for one in self.passes)
        passes = self._options.rounds * len(self.servers) - done
        return f" (about {passes * (self._options.seconds + 15) / 60:.0f} min left)"

    def _say(self, line: str) -> None:
        print(f"  {line}", file=sys.stderr, flush=True)


def _target(key: str, *urls: str) -> Target:
    return Target(urls=urls, key=key, terms=False)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def _options() -> argparse.Namespace:
    default = home() / ".economizer" / "loadtests" / f"peers-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="how often each server has its turn (3)")
    add("--seconds", type=float, default=40.0, help="length of the paced replay (40)")
    add("--rate", type=float, default=1.5, help="its requests a second (1.5)")
    add("--burst", type=int, default=32, help="requests that come at once (32)")
    add("--engines", type=int, default=2, help="engines behind every server (2)")
    add("--engine", choices=("real", "fast"), default="real", help="vLLM, or an engine that costs nothing")
    add("--data", type=Path, help="a folder of public sets to take prompts from (built-in texts)")
    add("--seed", type=int, default=1, help="of the requests (1)")
    add("--out", type=Path, default=default, help="a folder that is not there (.economizer/loadtests/peers-TIME)")
    return parser.parse_args()


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    machine = processes.machine()
    print(f"machine: {machine}", flush=True)
    try:
        bench = Bench(options, results.new_folder(options.out))
        try:
            bench.run()
        except KeyboardInterrupt:
            print("ended early: these are the passes that are whole", file=sys.stderr)
    except (FileExistsError, ValueError) as error:
        print(f"bench-peers: {error}", file=sys.stderr)
        return 2
    for name, why in bench.left_out.items():
        print(f"left out: {name}: {why}")
    if not bench.passes:
        return 1
    print(f"meter: {bench.meter}\nmedian (least-most) of {options.rounds} rounds")
    print("\n".join(table(bench.passes, bench.servers, bench.idle_mw)))
    last = {
        "machine": machine,
        "results": str(options.out),
        "meter": bench.meter,
        "left_out": bench.left_out,
        "servers": figures(bench.passes, bench.servers, bench.idle_mw),
    }
    (options.out / "summary.json").write_text(json.dumps(last, indent=1))
    print(json.dumps(last))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the gateway itself costs: CPU time per request and per streamed chunk, added latency, memory.

Four targets in the same run, in turns: Economizer; the same without a ledger, so without metering and booking; a bare
FastAPI + aiohttp pass-through on the same Ray Serve behind the same HAProxy, which decides nothing; and the engine
alone. The engine answers from memory (``fast_engine.py``), the client is a process of its own (``client.py``); neither
is counted. CPU time of a request is that of HAProxy and of the ingress replica, less what the same processes burn when
no request comes. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import decide_cost
import gateway_tables
import processes
import stand
from client import Load, Outcome
from gateway_tables import Measured
from stand import Stand, Target

_CLIENT = Path(__file__).resolve().with_name("client.py")
_CHUNKS = 200
_MEMORY_STEPS = 10
_QUICK_SHARE = 0.2
_OPENING_TRIES = 5
_OPENING_PAUSE_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One kind of load; ``straight`` says whether the engine alone is measured too."""

    name: str
    connections: int
    requests: int
    chunks: int = 0
    interval_s: float = 0.0
    straight: bool = True


PHASES = (
    Phase(name="whole-c1", connections=1, requests=800),
    Phase(name="whole-c32", connections=32, requests=3200),
    Phase(name="burst-c1", connections=1, requests=100, chunks=_CHUNKS),
    Phase(name="burst-c32", connections=32, requests=480, chunks=_CHUNKS),
    Phase(name="paced-c32", connections=32, requests=64, chunks=_CHUNKS, interval_s=0.01, straight=False),
)


class Bench:
    """The measurements on one stand. Every request has a number of its own: another user, session and prompt."""

    def __init__(self, on: Stand, idle_s: float) -> None:
        self._on = on
        self._numbered = 0
        self._idle_s = idle_s
        self.idle: dict[str, float] = {}

    def warm_up(self) -> None:
        """Open connections, fill caches, and let the processes settle."""
        for target in (self._on.ours, self._on.unbooked, self._on.bare, self._on.straight):
            self._until_it_stays_open(target)
            self._send(target, Phase(name="warm-up", connections=32, requests=640))
            self._send(target, Phase(name="warm-up", connections=32, requests=32, chunks=_CHUNKS))

    def _until_it_stays_open(self, target: Target) -> None:
        """HAProxy is reloaded a moment after the last application came up, and closes what is open then."""
        for left in reversed(range(_OPENING_TRIES)):
            try:
                self._send(target, Phase(name="opening", connections=32, requests=320))
                return
            except subprocess.CalledProcessError:
                if not left:
                    raise
                time.sleep(_OPENING_PAUSE_S)

    def measure_idle(self) -> None:
        """CPU seconds a second by group, with no request about."""
        before, started_s = self._on.tree.cpu_s(), time.monotonic()
        time.sleep(self._idle_s)
        after, past_s = self._on.tree.cpu_s(), time.monotonic() - started_s
        self.idle = {group: (after[group] - before.get(group, 0.0)) / past_s for group in after}

    def fill(self, requests: int) -> None:
        """As many requests to the gateway without books: what is compared shall keep as much of what it saw."""
        self._send(self._on.unbooked, Phase(name="fill", connections=32, requests=requests))

    def memory(self, requests: int) -> Iterator[tuple[int, float]]:
        """(requests so far, resident MB of the ingress replica), ten times on the way."""
        ours = self._on.ours
        assert ours.ingress is not None
        yield 0, self._on.tree.rss_mb(ours.ingress)
        step = requests // _MEMORY_STEPS
        for done in range(step, requests + 1, step):
            self._send(ours, Phase(name="memory", connections=32, requests=step))
            yield done, self._on.tree.rss_mb(ours.ingress)

    def round(self, number: int, share: float) -> Iterator[Measured]:
        """Every phase on every target; who is first changes from round to round."""
        targets = [self._on.ours, self._on.unbooked, self._on.bare, self._on.straight]
        turn = number % len(targets)
        for phase in PHASES:
            for target in targets[turn:] + targets[:turn]:
                if phase.straight or target.ingress is not None:
                    yield self._measure(target, phase, share)

    def _measure(self, target: Target, phase: Phase, share: float) -> Measured:
        before, started_s = self._on.tree.cpu_s(), time.monotonic()
        outcome = self._send(target, phase, share)
        after, past_s = self._on.tree.cpu_s(), time.monotonic() - started_s
        # A group that idles a little less than when it was measured must not come out below nothing.
        used = {
            group: max(0.0, after[group] - before.get(group, 0.0) - self.idle.get(group, 0.0) * past_s)
            for group in after
        }
        requests = len(outcome.latency_s)
        return Measured(
            target=target.name,
            phase=phase.name,
            requests=requests,
            chunks=requests * phase.chunks,
            reads=outcome.reads,
            wall_s=outcome.wall_s,
            latency_s=tuple(sorted(outcome.latency_s)),
            haproxy_s=used.get(stand.HAPROXY, 0.0),
            ingress_s=used.get(target.ingress, 0.0) if target.ingress else 0.0,
            books_s=used.get(stand.BOOKKEEPER, 0.0) if target is self._on.ours else 0.0,
            ray_s=sum(used.values()) - used.get(stand.ENGINES, 0.0),
        )

    def _send(self, target: Target, phase: Phase, share: float = 1.0) -> Outcome:
        requests = max(phase.connections, round(share * phase.requests))
        load = target.load(
            connections=phase.connections,
            requests=requests,
            first=self._numbered,
            chunks=phase.chunks,
            interval_s=phase.interval_s,
        )
        self._numbered += requests
        return _client(load)


def _client(load: Load) -> Outcome:
    command = [sys.executable, str(_CLIENT), json.dumps(asdict(load))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Outcome(**json.loads(done.stdout))


def run(rounds: int, requests: int, share: float) -> dict[str, object]:
    """Measure, print the tables, and return what the last line says."""
    machine = processes.machine()
    print(f"machine: {machine}")
    sizes = {size: decide_cost.decide_us(*size) for size in decide_cost.SIZES}
    with tempfile.TemporaryDirectory(prefix="eco-bench-") as folder, stand.running(Path(folder)) as on:
        bench = Bench(on, idle_s=12.0 * share)
        bench.warm_up()
        curve = []
        for done, rss_mb in bench.memory(requests):
            _say(f"{done} requests, {rss_mb:.0f} MB")
            curve.append((done, rss_mb))
        bench.fill(min(requests, gateway_tables.STORES_FULL))
        bench.measure_idle()
        measured = []
        for number in range(rounds):
            _say(f"round {number + 1} of {rounds}")
            measured.append(list(bench.round(number, share)))
        idle = {target.name: bench.idle.get(target.ingress or "", 0.0) for target in (on.ours, on.unbooked, on.bare)}
    return {"machine": machine, **gateway_tables.write(measured, idle=idle, curve=curve, decide_us=sizes)}


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each load meets each target (5)")
    parser.add_argument("--requests", type=int, default=100_000, help="requests of the memory curve (100000)")
    parser.add_argument("--quick", action="store_true", help="2 short rounds and 5000 requests: does it work at all?")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    last = run(2, 5000, _QUICK_SHARE) if args.quick else run(args.rounds, args.requests, 1.0)
    print(json.dumps(last))


if __name__ == "__main__":
    main()

"""Attributed joules against ground truth: request mixes on a real engine, alone and together.

Two kinds of requests on one vLLM engine behind Economizer: short chats with long answers, and long prompts with short
answers. Each kind runs alone, where the meter itself says what it took, and then both at once, where the books split
the meter's joules among them. Shown for each round and kind: what was attributed to it together, over what was metered
of the same requests alone; beside it the same for joules shared per token, prefilled or decoded. Prompts differ from
round to round, so that the prefix cache has none of them. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median
from typing import Any

import aiohttp
import processes
import yaml
from economizer.config import home
from economizer.energy.attribution import per_token_shares
from economizer.energy.types import Work
from economizer.ledger.store import Store
from sqlalchemy import create_engine, text
from stand import economizer, free_ports

_FAMILY, _VARIANT = "smollm2-135m", "bf16"
_SETTLED_S = 6.0  # after the last answer everything is booked
_REST_S = 3.0
_CHARS_PER_TOKEN = 4.2
_WORDS = " ".join(topics.values()).split()


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Requests of one kind: how many, how many at once, how long the prompt and the answer are, in tokens."""

    name: str
    requests: int
    at_once: int
    prompt_tokens: int
    output_tokens: int


CHATS = Kind(name="chats", requests=24, at_once=6, prompt_tokens=40, output_tokens=120)
LONG = Kind(name="long prompts", requests=10, at_once=2, prompt_tokens=1200, output_tokens=4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """What one kind took in one run: the requests' ids and tokens, and when it began and ended."""

    kind: str
    ids: tuple[str, ...]
    works: dict[str, Work]
    began_s: float
    ended_s: float


class Bench:
    """One engine behind Economizer, and its ledger."""

    def __init__(self, url: str, ledger: str, seed: int) -> None:
        self._url = url
        self._ledger = ledger
        self._random = random.Random(seed)

    async def run(self, *kinds: Kind) -> list[Ran]:
        """Run kinds at the same time, to the end of the last."""
        async with aiohttp.ClientSession() as session:
            ran = await asyncio.gather(*(self._run(session, kind, self._prompts(kind)) for kind in kinds))
        await asyncio.sleep(_SETTLED_S)
        return list(ran)

    def _prompts(self, kind: Kind) -> list[str]:
        chars = int(kind.prompt_tokens * _CHARS_PER_TOKEN)
        starts = [self._random.randrange(len(_WORDS) - chars) for _ in range(kind.requests)]
        return [" ".join(_WORDS[start : start + chars])[:chars] for start in starts]

    async def _run(self, session: aiohttp.ClientSession, kind: Kind, prompts: list[str]) -> Ran:
        waiting, works, began_s = list(prompts), {}, time.time()

        async def worker() -> None:
            while waiting:
                request_id, work = await self._ask(session, kind, waiting.pop())
                works[request_id] = work

        await asyncio.gather(*(worker() for _ in range(kind.at_once)))
        return Ran(kind=kind.name, ids=tuple(works), works=works, began_s=began_s, ended_s=time.time())

    async def _ask(self, session: aiohttp.ClientSession, kind: Kind, prompt: str) -> tuple[str, Work]:
        body = {
            "model": f"{_FAMILY}@{_VARIANT}",
            "prompt": prompt,
            "max_tokens": kind.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        usage: dict[str, Any] = {}
        async with session.post(f"{self._url}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    usage = json.loads(line[6:]).get("usage") or usage
        prefilled = usage["prompt_tokens"] - ((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        work = Work(prefill_tokens=float(prefilled), decode_tokens=float(usage["completion_tokens"]))
        return usage["economizer"]["request_id"], work

    def metered_uj(self, ran: Sequence[Ran]) -> tuple[int, float]:
        """Active microjoules of the windows in which these ran, and their seconds."""
        began_s, ended_s = min(one.began_s for one in ran), max(one.ended_s for one in ran)
        statement = text(
            "select coalesce(sum(measured_uj - idle_uj), 0), coalesce(sum(seconds), 0) from windows "
            "where variant = :variant and ended_s >= :began and began_s <= :ended and state = 'serving'"
        )
        engine = create_engine(self._ledger)
        with engine.connect() as connection:
            values = {"variant": f"{_FAMILY}@{_VARIANT}", "began": began_s, "ended": ended_s + 0.5}
            active_uj, seconds = connection.execute(statement, values).one()
        engine.dispose()
        return int(active_uj), float(seconds)

    def attributed_uj(self, ran: Ran) -> int:
        """What the books charged to the requests of a kind."""
        store = Store.open(self._ledger)
        try:
            rows = [store.request(request_id) for request_id in ran.ids]
        finally:
            store.close()
        missing = [request_id for request_id, row in zip(ran.ids, rows, strict=True) if row is None]
        assert not missing, f"not booked: {missing}"
        return sum(row.usage.energy_uj or 0 for row in rows if row is not None)


async def measure(bench: Bench, rounds: int, scale: float) -> list[dict[str, float]]:
    """Rounds of chats alone, long prompts alone, both together; the background of an idle engine is taken off."""
    chats, long = (replace(kind, requests=max(2, round(kind.requests * scale))) for kind in (CHATS, LONG))
    _say("learning: both kinds, alone and together")
    for kinds in ((chats,), (long,), (chats, long), (chats,)):
        await bench.run(*kinds)
    idle = Ran(kind="idle", ids=(), works={}, began_s=time.time(), ended_s=time.time() + 8)
    await asyncio.sleep(8 + _REST_S)
    idle_uj, idle_s = bench.metered_uj([idle])
    background_uw = idle_uj / idle_s if idle_s else 0.0
    found = []
    for number in range(rounds):
        _say(f"round {number + 1} of {rounds}")
        alone = {}
        for kind in (chats, long) if number % 2 == 0 else (long, chats):
            ran = await bench.run(kind)
            active_uj, seconds = bench.metered_uj(ran)
            alone[kind.name] = active_uj - background_uw * seconds
        together = await bench.run(chats, long)
        active_uj, seconds = bench.metered_uj(together)
        works = {request_id: work for one in together for request_id, work in one.works.items()}
        by_token = per_token_shares(round(active_uj - background_uw * seconds), works)
        row = {"both_together_over_alone": (active_uj - background_uw * seconds) / sum(alone.values())}
        for one in together:
            row[f"{one.kind}: metered alone, J"] = alone[one.kind] / 1e6
            row[f"{one.kind}: attributed"] = bench.attributed_uj(one) / alone[one.kind]
            row[f"{one.kind}: per token"] = sum(by_token[request_id] for request_id in one.ids) / alone[one.kind]
        found.append(row)
        print("  ".join(f"{name} {value:.3f}" for name, value in row.items()), flush=True)
    return found


def _configuration(folder: Path, port: int) -> Path:
    """``deploy/config.yaml`` with one engine of the full model, and a ledger of its own."""
    content = yaml.safe_load((home() / "deploy" / "config.yaml").read_text())
    content["http_options"]["port"] = port
    args = content["applications"][0]["args"]
    args.pop("catalogue", None)
    args["ledger"] = {"url": f"sqlite:///{folder / 'ledger.db'}", "spool": str(folder / "spool")}
    args["families"][_FAMILY]["variants"] = {_VARIANT: args["families"][_FAMILY]["variants"][_VARIANT]}
    path = folder / "energy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(rounds: int, seed: int, scale: float) -> dict[str, object]:
    """Measure, print a line for each round, and return what the last line says."""
    machine = processes.machine()
    print(f"machine: {machine}")
    with tempfile.TemporaryDirectory(prefix="eco-bench-") as name:
        folder = Path(name)
        (port,) = free_ports(1)
        with economizer(_configuration(folder, port)):
            bench = Bench(f"http://127.0.0.1:{port}", f"sqlite:///{folder / 'ledger.db'}", seed)
            found = asyncio.run(measure(bench, rounds, scale))
    medians = {name: round(median(row[name] for row in found), 3) for name in found[0]}
    worst = {
        way: round(max(abs(value - 1) for row in found for name, value in row.items() if name.endswith(f": {way}")), 3)
        for way in ("attributed", "per token")
    }
    return {"machine": machine, "rounds": len(found), "median": medians, "worst_error": worst}


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often the mixes run alone and together (5)")
    parser.add_argument("--seed", type=int, default=1, help="which passages become prompts (1)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests (1)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    print(json.dumps(run(args.rounds, args.seed, args.scale)))


if __name__ == "__main__":
    main()

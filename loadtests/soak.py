"""A steady mixed load on a fleet of its own, whose engines are killed now and then and whose clients go away: is
anything lost, does anything grow, and does the bill close?

Starts Economizer with a ledger of its own and three tenants, one of them with a rate limit; sends chats, long prompts,
sessions, streams, batch work, floors and terms that nobody can meet; ends an engine with SIGKILL once all are up. At
the end every request must be answered, refused with a reason, failed with an error that the client saw, or cancelled by
its client; the books must say of each what its client saw; the bill must close; and no part of Economizer may hold more
and more. Ctrl-C ends the load, and what was measured until then is judged. The exit code is 1 where anything is
missing. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import processes
import yaml
from economizer.admission.keys import new_key
from economizer.config import home
from economizer.ledger.store import Store
from economizer.ledger.types import RequestRow
from load import results
from load.accounting import Books
from load.growth import growths
from load.prompts import Prompts, read_texts
from load.sending import Target
from load.soaking import Rhythm, Soak, Soaked
from load.steady import FREE_TENANTS, LIMITED_TENANT, Steady, leaving, steady_plan
from load.tokens import Rule
from load.types import Outcome, Planned
from load.verdict import LIMITS_PER_MIN, MAY_REMAIN, Judged, judge
from load.watching import FAST_ENGINE, Watch
from stand import economizer, free_ports

_HERE = Path(__file__).resolve().parent
_TENANTS = (*FREE_TENANTS, LIMITED_TENANT)
_SETTLE_S = 90.0  # after the load: until everything is booked, and receipts are measured
_BILL_S = 120.0
_ENDINGS = (signal.SIGINT, signal.SIGTERM)


def configuration(file: Path, folder: Path, port: int, *, fast: bool, limit_per_minute: int) -> dict[str, Any]:
    """The configuration ``file`` on a port and with a ledger of its own, its variants on fast engines where wanted."""
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    content.setdefault("http_options", {}).update(host="127.0.0.1", port=port)
    args = content["applications"][0]["args"]
    ledger = {"url": _ledger(folder), "spool": str(folder / "spool")}
    args["ledger"] = {**(args.get("ledger") or {}), **ledger}
    args["admission"] = {"tenants": {LIMITED_TENANT: {"requests_per_minute": limit_per_minute}}}
    if fast:
        args.pop("catalogue", None)
        command = [sys.executable, str(_HERE / FAST_ENGINE), "--host", "{host}", "--port", "{port}"]
        for family in args["families"].values():
            for variant in family["variants"].values():
                variant["engine"] = {"command": command, "restart_backoff_s": 0.5}
                variant["ray"] = {"num_cpus": 0.1}
    return content


def _ledger(folder: Path) -> str:
    return f"sqlite:///{folder / 'ledger.db'}"


def make_keys(ledger: str) -> dict[str, str]:
    """A key for each tenant, by its name."""
    store = Store.open(ledger)
    try:
        keys = {}
        for tenant in _TENANTS:
            keys[tenant], record = new_key(tenant, "tenant", now_s=time.time(), expires_s=None, note="soak")
            store.add_key(record)
        return keys
    finally:
        store.close()


def plan_of(content: Mapping[str, Any], how: Steady) -> list[Planned]:
    """The load for all families of a configuration; its pins are the variants that always have a replica."""
    families = content["applications"][0]["args"]["families"]
    pins = [
        f"{name}@{variant}"
        for name, family in families.items()
        for variant, of in family["variants"].items()
        if (of.get("replicas") or {}).get("min", 1) > 0
    ]
    prompts = Prompts(read_texts(None), Rule(), how.seed)
    return steady_plan(how, models=list(families), pins=pins, prompts=prompts)


async def load(soak: Soak, plan: Sequence[Planned], target: Target, how: Steady) -> Soaked:
    """The load, which the first Ctrl-C or SIGTERM ends."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        _say("ending: what was measured so far is judged; once more ends it at once")
        soak.stop()
        for number in _ENDINGS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.default_int_handler)

    for number in _ENDINGS:
        loop.add_signal_handler(number, stop)
    return await soak.run(plan, target, leaving(plan, how))


def settled(outcomes: Sequence[Outcome], ledger: str, began: datetime, watch: Watch) -> tuple[Books, dict[str, float]]:
    """The books once they agree with the clients, or as they are after a while, and what the queues hold then."""
    deadline_s = time.monotonic() + _SETTLE_S
    while True:
        books, queues = Books(outcomes, _rows(ledger), _bill(ledger, began)), watch.queues()
        waits = [value for name, value in queues.items() if name not in MAY_REMAIN]
        if time.monotonic() > deadline_s or (queues and not any(waits) and not books.problems()):
            return books, queues
        time.sleep(2.0)


def _rows(ledger: str) -> dict[str, RequestRow]:
    store = Store.open(ledger)
    try:
        return {row.request_id: row for row in store.requests(0, 4e9)}
    finally:
        store.close()


def _bill(ledger: str, began: datetime) -> dict[str, Any]:
    """What ``economizer bill`` says of the whole run; of a bill that does not close, too."""
    command = [sys.executable, "-m", "economizer.cli", "bill", "--ledger", ledger, "--by", "tenant", "--json"]
    command += ["--since", began.isoformat(timespec="seconds")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_BILL_S, check=False)
    if not done.stdout:
        raise RuntimeError(f"economizer bill failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run(options: argparse.Namespace) -> Judged:
    """Start, load, end and judge; the files are in ``options.out``."""
    out = results.new_folder(options.out)
    how = Steady(
        seconds=options.minutes * 60,
        rate_per_s=options.rate,
        cancel_share=options.cancels,
        leave_s_max=options.leave_s,
        seed=options.seed,
    )
    rhythm = Rhythm(sample_s=options.sample_s, progress_s=options.progress_s, kill_s=options.kill_s or None)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="eco-soak-")))
        (port,) = free_ports(1)
        limit = max(1, round(options.rate * 60 / 40))  # a quarter of what the limited tenant sends
        content = configuration(options.config, folder, port, fast=options.engine == "fast", limit_per_minute=limit)
        file = folder / "soak.yaml"
        file.write_text(yaml.safe_dump(content))
        plan, keys = plan_of(content, how), make_keys(_ledger(folder))
        header = results.header("soak", plan, settings=_settings(options), facts={"tenants": list(_TENANTS)})
        writer = stack.enter_context(results.Writer(out / results.JSONL, header))
        samples = stack.enter_context((out / "samples.jsonl").open("x"))
        began = datetime.now(UTC)
        root = stack.enter_context(economizer(file))
        url = f"http://127.0.0.1:{port}"
        watch = Watch(root=root, url=url, ledger=_ledger(folder), spool=folder / "spool")
        stack.callback(watch.close)

        def sampled(at_s: float, sample: Mapping[str, float]) -> None:
            samples.write(json.dumps({"at_s": round(at_s, 3), **sample}) + "\n")
            samples.flush()

        soak = Soak(
            watch,
            rhythm,
            seconds=how.seconds,
            seed=how.seed,
            on_outcome=writer.write,
            on_sample=sampled,
            say=_say,
        )
        _say(f"{len(plan)} requests in {options.minutes:g} minutes; results go to {out}")
        soaked = asyncio.run(load(soak, plan, Target(urls=(f"{url}/v1",), keys=keys), how))
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # asyncio gave it back as the system has it
        _say("the load has ended; waiting for the books")
        books, queues = settled(soaked.outcomes, _ledger(folder), began, watch)
    grown = growths(soaked.series, warm_up_s=_warm_up_s(options), limits=LIMITS_PER_MIN)
    return judge(soaked, books, queues=queues, grown=grown, planned=len(plan))


def _warm_up_s(options: argparse.Namespace) -> float:
    return float(options.minutes * 60 * 0.2 if options.warm_up_s is None else options.warm_up_s)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def _options() -> argparse.Namespace:
    default = home() / ".economizer" / "loadtests" / f"soak-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--minutes", type=float, default=30.0, help="how long the load lasts (30)")
    add("--rate", type=float, help="requests a second (1; of fast engines 20)")
    add("--engine", choices=("real", "fast"), default="real", help="the configuration's, or ones that cost nothing")
    add("--config", type=Path, default=home() / "deploy" / "config.yaml", help="a Serve config (deploy/config.yaml)")
    add("--kill-s", type=float, default=90.0, help="seconds between engines' ends, about; 0 kills none (90)")
    add("--cancels", type=float, default=0.08, help="share of clients that go away (0.08)")
    add("--leave-s", type=float, default=3.0, help="within so many seconds they do (3)")
    add("--sample-s", type=float, default=5.0, help="seconds between samples (5)")
    add("--progress-s", type=float, default=30.0, help="seconds between lines of progress (30)")
    add("--warm-up-s", type=float, help="what comes before is no growth (a fifth of the time)")
    add("--seed", type=int, default=1, help="of the load (1)")
    add("--out", type=Path, default=default, help="a folder that is not there (.economizer/loadtests/soak-TIME)")
    options = parser.parse_args()
    options.rate = options.rate or (20.0 if options.engine == "fast" else 1.0)
    return options


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    print(f"machine: {processes.machine()}", flush=True)
    try:
        judged = run(options)
    except (FileExistsError, ValueError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("soak: ended before there was anything to judge; every process is gone", file=sys.stderr)
        return 130
    print(judged.table())
    last = {"results": str(options.out), **asdict(judged)}
    (options.out / "summary.json").write_text(json.dumps(last, indent=1))
    print(json.dumps(last))
    return 1 if judged.problems else 0


if __name__ == "__main__":
    sys.exit(main())

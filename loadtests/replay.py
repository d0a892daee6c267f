"""Replay a trace against any OpenAI-compatible server, and write what came of each request.

::

    python loadtests/replay.py TRACE --url http://127.0.0.1:8000/v1 --model smollm2-135m --out DIR --speed 10 \\
        --duration 300 --mix mixed

Requests are sent when the trace says, divided by the speed, whatever became of those before (open loop). The folder
gets ``outcomes.jsonl``, a line for each request as its outcome comes. Ctrl-C ends the run and keeps what came until
then. The last line of output is JSON. Exit code 0: every request was sent and accounted for; 130: it was stopped;
2: it did not begin.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import msgspec
from load import progress, results, traces
from load.arrivals import Window
from load.mixes import Mix, read_mix
from load.plan import CONTEXT_TOKENS, Plan, Shape, make_plan
from load.prompts import Prompts, read_texts
from load.sending import TIMEOUT_S, Target, open_session, replay
from load.tokens import counter
from load.types import Outcome

_STOPPED, _NOT_BEGUN = 130, 2
_ASK_S = 10.0


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    """What ``GET /v1/models`` answers."""

    data: list[_Model]


def main(words: Sequence[str] | None = None) -> int:
    """Plan, send, write; returns the exit code."""
    args = _arguments(words)
    try:
        target = _target(args)
        mix = read_mix(args.mix).with_policy(args.policy)
        asyncio.run(_check(target, args.model))
        plan = _plan(args, mix)
        folder = results.new_folder(args.out)
    except (ValueError, OSError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return _NOT_BEGUN
    _describe(plan, mix, target)
    header = results.header("replay", plan.requests, settings=_settings(args), facts=plan.facts)
    shown = progress.Progress(plan.requests)
    whole = True
    with results.Writer(folder / results.JSONL, header) as writer:
        try:
            asyncio.run(_run(plan, target, shown, writer))
        except (KeyboardInterrupt, asyncio.CancelledError):
            whole = False
            print("stopped; what was measured until now is kept", file=sys.stderr)
    if args.format == "parquet":
        results.write_parquet(folder / results.PARQUET, header, shown.outcomes)
    print(msgspec.json.encode(shown.summary() | {"out": str(folder)}).decode(), flush=True)
    return 0 if whole and shown.accounted else _STOPPED


async def _run(plan: Plan, target: Target, shown: progress.Progress, writer: results.Writer) -> None:
    """Send the plan, showing how far it is; SIGTERM ends it as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    showing = asyncio.create_task(shown.show())

    def ended(outcome: Outcome) -> None:
        writer.write(outcome)
        shown.ended(outcome)

    try:
        await replay(plan.requests, target, on_sent=shown.sent, on_outcome=ended)
    finally:
        showing.cancel()


async def _check(target: Target, model: str) -> None:
    """Raise ValueError where nothing answers at a URL, or what does has no such model."""
    async with open_session() as session:
        for url in target.urls:
            head = {} if target.key is None else {"authorization": f"Bearer {target.key}"}
            try:
                async with asyncio.timeout(_ASK_S), session.get(f"{url.rstrip('/')}/models", headers=head) as found:
                    body = await found.read() if found.ok else b""
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                raise ValueError(f"--url {url}: nothing answers there ({type(error).__name__}: {error})") from None
            if (names := _model_names(body)) and model not in names:
                raise ValueError(f"--model {model}: must be one of what {url} serves: {', '.join(sorted(names)[:20])}")


def _model_names(body: bytes) -> set[str]:
    """The names in a list of models; empty where there is none to be read."""
    try:
        return {one.id for one in msgspec.json.decode(body, type=_Models).data}
    except msgspec.DecodeError:
        return set()


def _plan(args: argparse.Namespace, mix: Mix) -> Plan:
    shape = Shape(speed=args.speed, length_scale=args.length_scale, context_tokens=args.context, tenants=args.tenants)
    window = Window(
        start_s=args.start,
        seconds=None if args.duration is None else args.duration * shape.speed,
        requests_per_s=None if args.rps is None else args.rps / shape.speed,
        requests_max=args.requests,
    )
    trace = traces.read(
        args.trace,
        window=window,
        seed=args.seed,
        lengths=args.lengths,
        clients=args.clients,
        bursty=args.arrivals == "gamma",
    )
    return make_plan(
        trace,
        Prompts(read_texts(args.data), counter(args.tokenizer), args.seed),
        mix,
        model=args.model,
        shape=shape,
        seed=args.seed,
        stream=args.stream,
        exact=args.exact,
    )


def _target(args: argparse.Namespace) -> Target:
    return Target(
        urls=tuple(args.url),
        key=None if args.key_env is None else _key("--key-env", args.key_env),
        keys={tenant: _key("--tenant-key-env", name) for tenant, name in map(_named, args.tenant_key_env)},
        terms=args.terms,
        receipts=args.receipts,
        timeout_s=args.timeout,
    )


def _named(pair: str) -> tuple[str, str]:
    tenant, equals, name = pair.partition("=")
    if not (tenant and equals and name):
        raise ValueError(f"--tenant-key-env {pair}: must be a tenant, =, and the name of an environment variable")
    return tenant, name


def _key(option: str, name: str) -> str:
    """A key from the environment: on a command line everybody on the machine would read it."""
    if not (key := os.environ.get(name)):
        raise ValueError(f"{option} {name}: must name an environment variable that holds an API key; it is not set")
    return key


def _describe(plan: Plan, mix: Mix, target: Target) -> None:
    """Say what is about to be sent, and what became of the trace's lengths."""
    facts = plan.facts
    of = "drawn from a rate curve" if plan.share is None else f"{plan.share:.1%} of the window's"
    print(f"{plan.trace}: {len(plan.requests)} requests ({of}) in {facts['last_due_s']:.0f} s, mix {mix.name}")
    print(f"  {plan.failed} failed rows of the trace are left out")
    print(f"  prompts: {plan.prompt_tokens} tokens, texts {plan.texts}; counted by {plan.counted}")
    print(f"  cut to the context: {plan.prompts_cut} prompts, {plan.answers_cut} answers", flush=True)
    floors = any(one.terms.quality_min is not None for one in plan.requests)
    if floors and target.terms and not target.receipts and target.quality is None:
        print(
            "  without --receipts no answer's quality is known, and requests with a floor do not count as met",
            flush=True,
        )


def _settings(args: argparse.Namespace) -> dict[str, object]:
    """The options as they are written down: keys are none of them, only the names of their variables."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="replay.py", description=(__doc__ or "").split("\n", 1)[0], epilog="More: docs/loadtests.md"
    )
    yes_or_no = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("trace", type=Path, help="a trace: Azure, BurstGPT, Mooncake, ServeGen or our own JSONL, told by its content")
    add("--out", type=Path, required=True, help="a new folder for the results")
    add("--format", choices=("jsonl", "parquet"), default="jsonl", help="parquet: beside the JSONL, at the end")
    add("--seed", type=int, default=0, help="of all that is drawn: prompts, terms, tenants, arrivals (%(default)s)")

    add = parser.add_argument_group("where requests go").add_argument
    add("--url", action="append", required=True, help="base URL that ends in /v1; of several, requests take turns")
    add("--model", required=True, help="the model's name there")
    add("--key-env", metavar="NAME", help="environment variable that holds the API key")
    add("--tenant-key-env", action="append", default=[], metavar="TENANT=NAME", help="the same, for one tenant")
    add("--terms", action=yes_or_no, default=True, help="send terms, as Economizer's headers (yes)")
    add("--receipts", action="store_true", help="ask for each answer's receipt: predictions, and measured energy")
    add("--timeout", type=float, default=TIMEOUT_S, help="seconds until the client gives an answer up (%(default)g)")

    add = parser.add_argument_group("when").add_argument
    add("--speed", type=float, default=1.0, help="how many seconds of the trace pass in a second (%(default)g)")
    add("--start", type=float, default=0.0, help="where to begin, in the trace's own seconds (%(default)g)")
    add("--duration", type=float, help="send for so many seconds")
    add("--requests", type=int, help="send so many requests at most")
    add("--rps", type=float, help="thin the trace (scale a rate curve) to so many requests a second on average")

    add = parser.add_argument_group("what").add_argument
    add("--mix", default="mixed", help="terms: strict, mixed, relaxed, or a YAML file (%(default)s)")
    add("--policy", help="Economizer's policy for requests whose terms name none")
    add("--tenants", type=int, help="spread requests over so many tenants: tenant-1, tenant-2, ...")
    add("--length-scale", type=float, default=1.0, help="multiply the lengths of prompts and answers (%(default)g)")
    add("--context", type=int, default=CONTEXT_TOKENS, help="cut lengths to so many tokens in all (%(default)s)")
    add("--stream", action=yes_or_no, default=True, help="ask for streams (yes)")
    add("--exact", action=yes_or_no, default=True, help="answers as long as in the trace, by vLLM's ignore_eos (yes)")
    data = os.environ.get("ECONOMIZER_DATA")
    add("--data", type=Path, default=data, help="folder of public sets to make prompts of ($ECONOMIZER_DATA, or none)")
    add("--tokenizer", type=Path, help="the model's tokenizer.json, to count tokens by; needs the package tokenizers")

    add = parser.add_argument_group("for a ServeGen rate curve").add_argument
    add("--lengths", type=Path, help="a trace, or a table of lengths, that lengths are drawn from")
    add("--clients", type=Path, help="its table of clients; by default X_clients.csv beside X_rate_10min.csv")
    add("--arrivals", choices=("gamma", "poisson"), default="gamma", help="gamma: as bursty as it says (%(default)s)")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())

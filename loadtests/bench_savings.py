"""What Economizer saves: the same requests to the full model alone and to Economizer, in turns, on real engines.

A, the control: bare engines of the full model, which the client takes in turns (round robin, at no cost). B: Economizer
with every gated variant and at most as many engines awake, under one policy after the other. Both get the same seeded
replay of a trace on the same terms, at a stated share of what A answers while it is full, and are read by the same
instrument from outside: the CPU time of all their processes, the gateway's, HAProxy's and Ray's among B's.

``--out DIR`` keeps every run; the same command on the same folder makes what is missing. Ctrl-C prints what is there.
The last line of output is JSON. Exit code 0: all runs are there; 1: one failed; 2: it did not begin; 130: it was
stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from economizer.config import home
from economizer.errors import EconomizerError
from load.savings_found import Found
from load.savings_runs import Making, Setup
from load.study import say

_TRACE = "azure_llm_2023_conv.csv"
_FAILED, _NOT_BEGUN, _STOPPED = 1, 2, 130


def main(words: Sequence[str] | None = None) -> int:
    """Make the runs that are missing, print what all came to; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    try:
        setup = Setup(_options(words))
    except (ValueError, OSError, EconomizerError) as error:
        print(f"bench_savings: {error}", file=sys.stderr)
        return _NOT_BEGUN
    code = 0
    try:
        Making(setup).run()
    except KeyboardInterrupt:
        code = _STOPPED
        say("stopped: what follows is of the runs that are whole; the same command goes on")
    except (ValueError, OSError, RuntimeError, EconomizerError) as error:
        code = _FAILED
        print(f"bench_savings: {error}", file=sys.stderr)
    found = Found(setup)
    text = found.report()
    (setup.folder.path / "savings.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(json.dumps(found.last_line(whole=code == 0)))
    return code


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the folder of the runs: a new one, or one to go on with")
    add("--config", type=Path, default=home() / "deploy" / "config.yaml", help="a Serve config (%(default)s)")
    add("--family", help="which of its families, where there are several")
    add("--mixes", type=_list, default=["strict", "mixed", "relaxed"], help="shipped mixes or YAML files (all three)")
    add("--policies", type=_list, default=["green", "cheap"], help="of Economizer (green,cheap)")
    add("--rounds", type=int, default=2, help="how often every fleet runs (%(default)s)")
    add("--minutes", type=float, default=1.5, help="that a run is measured (%(default)s)")
    add("--warm-s", type=float, default=20.0, help="seconds of requests before each run (%(default)s)")
    add("--share", type=float, default=0.5, help="of what the full model answers when it is full (%(default)s)")
    add("--engines", type=int, default=os.cpu_count() or 1, help="of the full model, and at most of ours (%(default)s)")
    data = os.environ.get("ECONOMIZER_DATA")
    add("--data", type=Path, default=data, help="a folder of public sets for prompts (built-in ones; ECONOMIZER_DATA)")
    add("--trace", type=Path, help=f"a recorded trace ({_TRACE} in or beside DATA, or one drawn like it)")
    add("--length-scale", type=float, default=0.25, help="times the trace's lengths (%(default)s)")
    add("--context", type=int, default=2048, help="tokens that a prompt and its answer are cut to (%(default)s)")
    add("--seed", type=int, default=0, help="of everything that is drawn (%(default)s)")
    add(
        "--quality-items",
        type=int,
        default=40,
        help="prompts that variants are scored on; 0: as published (%(default)s)",
    )
    add("--no-steps", dest="steps", action="store_false", help="do not measure what the saving comes from")
    options = parser.parse_args(words)
    for name, least in (("rounds", 1), ("minutes", 0), ("warm_s", 0), ("share", 0)):
        value = getattr(options, name)
        if not (value >= least if name == "rounds" else value > least):
            parser.error(f"--{name.replace('_', '-')} {value:g}: must be {'1 or more' if least else 'above 0'}")
    if options.trace is None and options.data is not None:
        places = (options.data, options.data / "traces", options.data.parent / "traces")
        options.trace = next((place / _TRACE for place in places if (place / _TRACE).is_file()), None)
    return options


def _list(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


if __name__ == "__main__":
    sys.exit(main())

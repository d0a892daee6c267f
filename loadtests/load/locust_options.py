"""The options that a Locust run has here besides Locust's own."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from load.arrivals import read_rates
from load.shapes import Curve, built_in_day, bursts, day, ramp

if TYPE_CHECKING:
    from locust.env import Environment  # Locust changes how everything waits, which tests of this must not

NO_TERMS = "none"  # the mix of requests that ask for nothing
STEADY = "steady"
SHAPES = (STEADY, "day", "bursts", "ramp")
_RATES = "servegen_*_rate_10min.csv"


def _positive(word: str) -> float:
    value = float(word)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"is {word}: must be a number above 0")
    return value


def _share(word: str) -> float:
    value = float(word)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"is {word}: must be a share from 0 to 1")
    return value


def add_options(parser: Any, **_: Any) -> None:
    """Add them to Locust's parser.

    Its web UI shows the first ones alone: a test can be started anew with others. Groups are not in it.
    """
    parser.add_argument("--model", default="", help="model of the requests; without it the first that the server lists")
    parser.add_argument(
        "--mix", default=NO_TERMS, help="terms of the requests: none, strict, mixed, relaxed, or a YAML file of shares"
    )
    parser.add_argument(
        "--tenants",
        default="",
        help="who asks: names, or NAME:MIX, with commas between, each with its key in the environment's "
        "ECONOMIZER_KEY_<NAME>; without it one, with OPENAI_API_KEY",
    )
    group = parser.add_argument_group("What is asked")
    group.add_argument(
        "--plain", action="store_true", help="send no header that is Economizer's own, to drive other servers"
    )
    group.add_argument(
        "--data",
        default="",
        env_var="ECONOMIZER_DATA",
        help="a folder of public data: prompts, and rates for --shape day; or a CSV of rates (columns t_s, rate_rps)",
    )
    group.add_argument("--context", type=int, default=2048, help="tokens of a prompt and its answer together, at most")
    group.add_argument("--answer-timeout", type=_positive, default=600.0, help="seconds without a byte of an answer")
    group = parser.add_argument_group("How the load goes")
    group.add_argument(
        "--shape",
        choices=SHAPES,
        default=STEADY,
        help="users over --run-time, --users at its peak: a day of ServeGen's rates, bursts, or a ramp",
    )
    group = parser.add_argument_group("When the exit code is 1", "a limit missed; without any, as Locust: a failure")
    for name, figure in (("ttft", "time to the first token"), ("tpot", "time per later token"), ("e2e", "whole time")):
        option = f"--slo-{name}-p95-ms"
        group.add_argument(option, type=_positive, help=f"95th percentile of the {figure} at most")
    group.add_argument("--slo-failures-max", type=_share, help="share of the requests that may fail")
    group.add_argument("--out", default="", help="a new folder for report.html and CSV files")


def options_of(environment: Environment) -> Namespace:
    """The run's options as they are now: the web UI and the master change some."""
    options = environment.parsed_options
    if not isinstance(options, Namespace):
        raise TypeError(f"parsed_options is {options!r}: must be the options of Locust's command line")
    return options


def curve(options: Namespace) -> Curve | None:
    """The shape that the options name; None for steady users. Raises ValueError, and OSError for a file of rates."""
    if options.shape == STEADY:
        return None
    if not options.run_time:
        raise ValueError(f"--shape {options.shape} is pressed into --run-time, which must be given, such as -t 10m")
    if options.shape == "day":
        return _day(Path(options.data) if options.data else None)
    return bursts() if options.shape == "bursts" else ramp()


def _day(data: Path | None) -> Curve:
    """The day of the first table of rates in a folder or its folder ``traces``, or of a file; else the built-in one."""
    if data is None:
        return built_in_day()
    found = [data] if data.is_file() else sorted([*data.glob(_RATES), *data.glob(f"traces/{_RATES}")])
    if not found:
        raise ValueError(
            f"--data is {data}, which has no {_RATES}, nor has its folder traces: leave it out for the built-in day"
        )
    print(f"the day is that of {found[0].name}")
    return day(read_rates(found[0]))

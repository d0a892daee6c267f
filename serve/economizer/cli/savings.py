"""``economizer savings``: what routing saved, and whether the hold-out says so too."""

from __future__ import annotations

import argparse
import json
from time import time
from typing import Any

from economizer.cli.ledger import WHEN, add_span_options, opened
from economizer.cli.tables import table
from economizer.ledger.savings import Savings
from economizer.ledger.when import span

_TEXT = "what routing saved, and whether the hold-out says so too"


def add_savings(commands: Any) -> None:
    """``savings``."""
    parser: argparse.ArgumentParser = commands.add_parser("savings", help=_TEXT, description=_TEXT, epilog=WHEN)
    parser.set_defaults(run=_savings)
    add_span_options(parser, since="7d")
    parser.add_argument("--json", action="store_true", help="for machines: every figure, with its interval")


def _savings(options: argparse.Namespace) -> int:
    since_s, until_s = span(options.since, options.until, time())
    with opened(options.ledger, options.file) as store:
        savings = Savings.of(store.requests(since_s, until_s, family=options.family))
    if options.json:
        print(json.dumps(savings.to_json(), indent=2))
        return 0
    print(table(savings.rows()))
    if savings.findings:
        print()
    for one in savings.findings:
        print(f"{one.family} in {one.unit}: {one.words}")
    return 0

"""The command line: ``economizer up | check-config | variants | status | bill | savings | keys``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from economizer.cli.bill import add_bill
from economizer.cli.keys import add_keys
from economizer.cli.savings import add_savings
from economizer.cli.serving import add_serving
from economizer.errors import EconomizerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 well, 1 not, 2 for a command line that is wrong."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except EconomizerError as error:
        print(f"economizer: {error.message}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="economizer", description="An OpenAI-compatible gateway that answers each request at the least cost."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    add_serving(commands)
    add_bill(commands)
    add_savings(commands)
    add_keys(commands)
    return parser

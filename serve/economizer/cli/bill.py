"""``economizer bill``: what was spent, by whom and on what, and whether it adds up to what was measured."""

from __future__ import annotations

import argparse
import json
import sys
from time import time
from typing import Any

from economizer.cli.ledger import WHEN, add_span_options, opened
from economizer.errors import EconomizerError
from economizer.ledger.bill import WORDS, Bill
from economizer.ledger.bill_forms import as_csv, as_json, difference, table
from economizer.ledger.when import span

_TEXT = "what was spent, by whom and on what, and whether it adds up to what was measured"


def add_bill(commands: Any) -> None:
    """``bill``."""
    parser: argparse.ArgumentParser = commands.add_parser("bill", help=_TEXT, description=_TEXT, epilog=WHEN)
    parser.set_defaults(run=_bill)
    add_span_options(parser, since="today")
    parser.add_argument(
        "--by", default="tenant,variant", help=f"rows by any of {', '.join(WORDS)} (default %(default)s)"
    )
    parser.add_argument("--tenant", help="this tenant only")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="one line per row, in whole micro-units")
    form.add_argument("--json", action="store_true", help="for machines: rows, totals and meters")


def _bill(options: argparse.Namespace) -> int:
    since_s, until_s = span(options.since, options.until, time())
    with opened(options.ledger, options.file) as store:
        accounts, meters = store.statement(since_s, until_s)
    by, tenant, family = options.by.split(","), options.tenant, options.family
    try:
        bill = Bill.of(accounts, meters, since_s, until_s, by=by, tenant=tenant, family=family)
    except ValueError as error:
        raise EconomizerError(str(error)) from None
    if options.csv:
        sys.stdout.write(as_csv(bill))
    else:
        print(json.dumps(as_json(bill), indent=2) if options.json else table(bill))
    if not bill.closes:
        raise EconomizerError(f"the bill does not close: meters less accounts {difference(bill)}")
    return 0

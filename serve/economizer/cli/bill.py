"""``economizer bill``: what was spent, by whom and on what, and whether it adds up to what was measured."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from time import time
from typing import Any

from economizer.cli.ledger import add_ledger_option, opened
from economizer.config import home
from economizer.errors import EconomizerError
from economizer.ledger.bill import WORDS, Bill
from economizer.ledger.bill_forms import as_csv, as_json, difference, table
from economizer.ledger.store import Store
from economizer.ledger.when import RULE, span

_TRIES = 3
_TEXT = "what was spent, by whom and on what, and whether it adds up to what was measured"
_WHEN = f"""\
WHEN {RULE}.

Accounts are kept by the hour (UTC), so --since goes down and --until goes up to a whole hour.
"""


def add_bill(commands: Any) -> None:
    """``bill``."""
    parser: argparse.ArgumentParser = commands.add_parser("bill", help=_TEXT, description=_TEXT, epilog=_WHEN)
    parser.set_defaults(run=_bill)
    default = home() / "deploy" / "config.yaml"
    parser.add_argument("file", type=Path, nargs="?", default=default, help=f"a Serve config (default {default})")
    parser.add_argument("--since", metavar="WHEN", default="today", help="from this hour on (default %(default)s)")
    parser.add_argument("--until", metavar="WHEN", help="up to the end of this hour (default now)")
    parser.add_argument(
        "--by", default="tenant,variant", help=f"rows by any of {', '.join(WORDS)} (default %(default)s)"
    )
    parser.add_argument("--tenant", help="rows and totals of this tenant only")
    parser.add_argument("--family", help="rows and totals of this family only")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="one line per row, in whole micro-units")
    form.add_argument("--json", action="store_true", help="for machines: rows, totals and meters")
    add_ledger_option(parser)


def _bill(options: argparse.Namespace) -> int:
    since_s, until_s = span(options.since, options.until, time())
    with opened(options.ledger, options.file) as store:
        bill = _read(store, since_s, until_s, options)
    if options.csv:
        sys.stdout.write(as_csv(bill))
    else:
        print(json.dumps(as_json(bill), indent=2) if options.json else table(bill))
    if not bill.closes:
        raise EconomizerError(f"the bill does not close: meters less accounts {difference(bill)}")
    return 0


def _read(store: Store, since_s: int, until_s: int, options: argparse.Namespace) -> Bill:
    """Again where it does not close: something may have been booked between the two reads."""
    by, tenant, family = options.by.split(","), options.tenant, options.family
    for _ in range(_TRIES):
        accounts, meters = store.accounts(since_s, until_s), store.meters(since_s, until_s)
        try:
            bill = Bill.of(accounts, meters, since_s, until_s, by=by, tenant=tenant, family=family)
        except ValueError as error:
            raise EconomizerError(str(error)) from None
        if bill.closes:
            break
    return bill

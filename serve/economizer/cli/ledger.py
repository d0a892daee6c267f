"""The ledger that a command reads: which one, which time of it, and that it is there."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from economizer.config import LedgerSettings, home, load
from economizer.errors import EconomizerError
from economizer.ledger.when import RULE

if TYPE_CHECKING:
    from economizer.ledger.store import Store

_SQLITE_FILE = re.compile(r"sqlite(?:\+pysqlite)?:///([^?]+)")
WHEN = f"WHEN {RULE}. The books go by the hour (UTC): --since goes down and --until goes up to a whole one."


def add_span_options(parser: argparse.ArgumentParser, *, since: str) -> None:
    """``FILE``, ``--since``, ``--until``, ``--family`` and ``--ledger``."""
    default = home() / "deploy" / "config.yaml"
    parser.add_argument("file", type=Path, nargs="?", default=default, help=f"a Serve config (default {default})")
    parser.add_argument("--since", metavar="WHEN", default=since, help="from this hour on (default %(default)s)")
    parser.add_argument("--until", metavar="WHEN", help="up to the end of this hour (default now)")
    parser.add_argument("--family", help="this family only")
    add_ledger_option(parser)


def add_ledger_option(parser: argparse.ArgumentParser) -> None:
    """``--ledger``."""
    parser.add_argument("--ledger", metavar="URL", help="the ledger's database (default: the configuration's)")


@contextmanager
def opened(ledger: str | None, file: Path, *, make: bool = False) -> Iterator[Store]:
    """The ledger of that URL, else of that configuration.

    Raises:
        EconomizerError: where there is none, unless ``make`` says to make it.
    """
    # Not at the top: SQLAlchemy and Alembic take 0.3 s to import, which commands without a ledger need not wait for.
    from economizer.ledger.store import Store

    url = _url(ledger, file)
    path = _SQLITE_FILE.match(url)
    if path and not make and not Path(path[1]).is_file():
        raise EconomizerError(f"There is no ledger at {path[1]}: `economizer up` and `economizer keys create` make it.")
    store = Store.open(url)
    try:
        yield store
    finally:
        store.close()


def _url(ledger: str | None, file: Path) -> str:
    if ledger is not None:
        try:
            return LedgerSettings(url=ledger).located(Path.cwd()).url
        except ValueError as error:
            raise EconomizerError(str(error)) from None
    settings = load(file).configuration.ledger
    if settings is None:
        raise EconomizerError(f"{file} keeps no ledger (ledger: null): name one with --ledger.")
    return settings.located(home()).url

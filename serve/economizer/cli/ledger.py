"""The ledger that a command reads: which one, and that it is there."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from economizer.config import LedgerSettings, home, load
from economizer.errors import EconomizerError
from economizer.ledger.store import Store

_SQLITE_FILE = re.compile(r"sqlite(?:\+pysqlite)?:///([^?]+)")


def add_ledger_option(parser: argparse.ArgumentParser) -> None:
    """``--ledger``."""
    parser.add_argument("--ledger", metavar="URL", help="the ledger's database (default: the configuration's)")


@contextmanager
def opened(ledger: str | None, file: Path, *, make: bool = False) -> Iterator[Store]:
    """The ledger of that URL, else of that configuration.

    Raises:
        EconomizerError: where there is none, unless ``make`` says to make it.
    """
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

"""The database below the ledger: its URL, its transactions, its schema's version, and what its failures mean.

Writers take turns: SQLite by ``BEGIN IMMEDIATE``, PostgreSQL by an advisory lock. So what a writer has read stays true
until it commits. Readers see one moment, and wait for nobody.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, create_engine, event, exc, make_url
from sqlalchemy.pool import ConnectionPoolEntry

from economizer.errors import EconomizerError

VERSION_TABLE = "ledger_version"  # the default's name would be shared with another program's migrations
_FORMS = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
_BUSY_S = 10
_LOCK = 0x65636F6C  # any number that all writers share
_BEGIN_READING = {"sqlite": "BEGIN", "postgresql": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"}
_BEGIN_WRITING = {
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": f"SELECT set_config('lock_timeout', '{_BUSY_S}s', true), pg_advisory_xact_lock({_LOCK})",
}
# What a URL may say otherwise. A dead peer is noticed after seconds instead of the kernel's quarter of an hour.
_DEFAULTS = {
    "sqlite": {"timeout": f"{_BUSY_S}"},
    "postgresql": {
        "connect_timeout": "5",
        "tcp_user_timeout": "15000",
        "keepalives_idle": "15",
        "application_name": "economizer",
    },
}


class LedgerUnusable(EconomizerError):
    """The ledger cannot be used, and somebody must do something about it; the message says why, without a password."""


class LedgerUnreachable(LedgerUnusable):
    """The ledger cannot be used now: no connection, no space, locked, read-only. The same may work later."""


class LedgerRefused(LedgerUnusable):
    """The database refuses what it was given, and will do so again; what is there already is well."""


class Database:
    """One database, SQLite or PostgreSQL. Threads may share it.

    Raises:
        LedgerUnusable: where the URL is none of the two forms, or SQLite's folder cannot be made.
    """

    def __init__(self, url: str) -> None:
        self._url = _parsed(url)
        self.dialect = self._url.get_backend_name()
        secrets = (self._url.password, self._url.query.get("password"))
        self._file: tuple[int, int] | None = None
        self._secrets = [secret for secret in secrets if isinstance(secret, str) and secret]
        if self.dialect == "sqlite":
            _make_folder(self._url)
            self._engine = create_engine(self._url, hide_parameters=True)
            event.listen(self._engine, "connect", _set_up_sqlite)
        else:
            self._engine = create_engine(self._url, hide_parameters=True, pool_pre_ping=True, pool_recycle=3600)

    def __str__(self) -> str:
        return self._url.set(query={}).render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one moment. Raises LedgerUnusable, most often LedgerUnreachable."""
        with self._telling(), self._engine.begin() as connection:
            connection.exec_driver_sql(_BEGIN_READING[self.dialect])
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """The only writing transaction at the time, on disk when this returns. Raises LedgerUnusable and what is below
        it: then nothing was written, or, where the connection broke while committing, all of it may have been."""
        with self._telling(), self._engine.begin() as connection:
            connection.exec_driver_sql(_BEGIN_WRITING[self.dialect])
            if self._file is not None and self._file != self._file_now():
                raise LedgerUnusable(
                    f"The ledger {self} is no longer the file that was opened: it was taken away or replaced. Restart "
                    "what uses it."
                )
            yield connection

    def upgrade(self) -> None:
        """Bring the schema to this program's version.

        Raises:
            LedgerUnusable: where a newer Economizer has brought it further already.
        """
        config = Config()
        folder = Path(__file__).parent / "migrations"
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        script = ScriptDirectory.from_config(config)
        head = script.get_current_head()
        with self.reading() as connection:
            self._file = self._file_now()
            if _version(connection) == head:
                return
        with self.writing() as connection:
            version = _version(connection)
            if version is not None and version not in {one.revision for one in script.walk_revisions()}:
                raise LedgerUnusable(
                    f"The ledger {self} has schema {version}, made by a newer Economizer; this one knows {head}. "
                    "Update Economizer, or use another ledger."
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        """Give up all connections."""
        self._engine.dispose()

    def _file_now(self) -> tuple[int, int] | None:
        """What file SQLite's path leads to. Without a look, a file that was removed would be written to for hours."""
        if self.dialect != "sqlite":
            return None
        try:
            found = Path(self._url.database or "").stat()
        except OSError:
            return (0, 0)
        return (found.st_dev, found.st_ino)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Database errors as ours. What is raised keeps no cause: that would show the statement and its values."""
        try:
            yield
        except exc.DBAPIError as error:
            reason = str(error.orig).strip()
            for secret in self._secrets:
                reason = reason.replace(secret, "***")
            if isinstance(error, exc.DataError | exc.IntegrityError):
                raise LedgerRefused(f"The ledger {self} refuses what is written: {reason}") from None
            if _passing(error):
                self._engine.dispose()  # a connection to a file that was moved, or to a dead server, stays broken
                raise LedgerUnreachable(f"The ledger {self} cannot be used now: {reason}") from None
            raise LedgerUnusable(f"The ledger {self} cannot be used: {reason}") from None
        except exc.SQLAlchemyError as error:  # the pool's, where every connection is in use for long
            raise LedgerUnreachable(f"The ledger {self} cannot be used now: {error.args[0]}") from None
        except (OverflowError, UnicodeEncodeError) as error:  # SQLite's driver, of values that it cannot hold
            raise LedgerRefused(f"The ledger {self} refuses what is written: {error}") from None


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        raise LedgerUnusable(f"The ledger's URL is not one: write {_FORMS}.") from None
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise LedgerUnusable(f"The ledger's URL begins with {parsed.drivername}: write {_FORMS}.")
    dialect = parsed.get_backend_name()
    if dialect == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise LedgerUnusable("The ledger's URL names no file, so the ledger would end with the process.")
    defaults = {name: value for name, value in _DEFAULTS[dialect].items() if name not in parsed.query}
    return parsed.update_query_dict(defaults)


def _make_folder(url: URL) -> None:
    folder = Path(url.database or "").parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerUnusable(f"The ledger's folder {folder} cannot be made: {error.strerror}") from None


def _set_up_sqlite(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin where ``reading`` and ``writing`` say
    # WAL: readers and the writer do not wait for each other. FULL: a commit survives the loss of power, too.
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _passing(error: exc.DBAPIError) -> bool:
    """It may work later. SQLITE_ERROR is SQL that does not fit the tables; all else is the file's or the disk's."""
    if isinstance(error.orig, sqlite3.OperationalError):
        return error.orig.sqlite_errorcode != sqlite3.SQLITE_ERROR
    if isinstance(error.orig, sqlite3.Error):
        return False
    return isinstance(error, exc.OperationalError | exc.InterfaceError | exc.InternalError)


def _version(connection: Connection) -> str | None:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()

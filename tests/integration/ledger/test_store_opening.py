"""A ledger is made, migrated or refused when it is opened."""

import subprocess
import sys
import zipfile
from pathlib import Path

import ledger_batches
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from economizer.ledger.database import VERSION_TABLE, Database
from economizer.ledger.schema import METADATA
from economizer.ledger.store import LedgerUnreachable, LedgerUnusable, Store, Written
from economizer.ledger.types import Batch, Moved, Transfer
from postgres import PASSWORD, Postgres
from sqlalchemy import text

CHECKOUT = Path(__file__).parents[3]


def test_the_migrations_make_the_tables_that_the_code_knows(url: str) -> None:
    Store.open(url).close()
    database = Database(url)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, METADATA) == []
    database.close()


def test_a_ledger_is_opened_again_with_all_that_is_in_it(url: str) -> None:
    batch = Batch(id="1", bookings=(ledger_batches.booking(),))
    for written in (Written(bookings=1), Written(repeated=True)):
        store = Store.open(url)
        assert store.write(batch) == written
        store.close()


def test_processes_that_open_a_new_ledger_at_once_all_get_it(url: str) -> None:
    opening = [sys.executable, ledger_batches.__file__, "open", url]
    openers = [subprocess.Popen(opening, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(opener.communicate(timeout=60)[1], opener.returncode) for opener in openers] == [("", 0)] * 4
    store = Store.open(url)
    assert store.write(Batch(id="1")) == Written()
    store.close()


def test_a_ledger_of_a_newer_economizer_is_refused_and_left_as_it_is(url: str) -> None:
    Store.open(url).close()
    database = Database(url)
    with database.writing() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(LedgerUnusable, match="has schema 9999, made by a newer Economizer; this one knows 0002"):
        Store.open(url)
    with database.reading() as connection:
        assert connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}")) == "9999"
    database.close()


def test_a_ledger_of_the_first_schema_is_migrated_and_keeps_what_is_in_it(url: str) -> None:
    _make_first_schema(url)
    store = Store.open(url)
    (window,) = store.unfinished()
    assert (window.engine, window.number, window.measurement.energy_uj) == ("engine-1", 7, 5)
    # Nobody knows who split that window, so nothing that it charged is moved.
    share = ledger_batches.share(usage=ledger_batches.amounts(5))
    account = ledger_batches.posting(share.usage).account
    part = Moved(engine="engine-1", number=7, account=account, share=share)
    store.write(Batch(id="1", transfers=(Transfer(request_id="request-1", attempt=0, parts=(part,)),)))
    assert store.accounts(0, 3600) == []
    store.close()


def _make_first_schema(url: str) -> None:
    """A ledger as the first migration made it, with one window."""
    database = Database(url)
    config = Config()
    config.set_main_option("script_location", str(CHECKOUT / "serve/economizer/ledger/migrations"))
    with database.writing() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO windows (engine, number, variant, began_s, ended_s, state, seconds, measured_uj, idle_uj,"
                " method, note, last) VALUES ('engine-1', 7, 'boiler@int8', 1, 2, 'serving', 1, 5, 0, 'replay', '',"
                " false)"
            )
        )
    database.close()


def test_the_migrations_are_in_the_wheel(tmp_path: Path) -> None:
    building = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(building, cwd=CHECKOUT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    folder = CHECKOUT / "serve/economizer/ledger/migrations"
    here = {str(path.relative_to(CHECKOUT / "serve")) for path in folder.rglob("*") if path.suffix in (".py", ".mako")}
    assert "economizer/ledger/migrations/env.py" in here
    assert here <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "is not one: write sqlite:///FILE or postgresql://"),
        (f"postgresql://me:{PASSWORD}@there:half/books", "is not one: write"),
        (f"mysql://me:{PASSWORD}@there/books", "begins with mysql: write"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////proc/no/books.db", "folder /proc/no cannot be made"),
    ],
)
def test_a_url_that_names_no_ledger_is_refused_and_says_why(url: str, reason: str) -> None:
    with pytest.raises(LedgerUnusable, match=reason) as caught:
        Store.open(url)
    assert type(caught.value) is LedgerUnusable
    assert PASSWORD not in _all_that_is_said(caught)


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Buy coal. " * 100)
    with pytest.raises(LedgerUnusable, match="file is not a database") as caught:
        Store.open(f"sqlite:///{tmp_path}/notes.txt")
    assert type(caught.value) is LedgerUnusable
    assert (tmp_path / "notes.txt").read_text() == "Buy coal. " * 100


def test_no_error_of_a_database_tells_its_password(postgres: Postgres) -> None:
    there = postgres.url()
    for url in (
        there.replace("/postgres", "/nowhere"),
        there.replace("127.0.0.1:", "127.0.0.1:1"),
        there.replace(f":{PASSWORD}@", f":{PASSWORD}-not@"),
        there.replace(f":{PASSWORD}@", "@") + f"?password={PASSWORD}-not",
        there + f"?sslmode={PASSWORD}",
    ):
        with pytest.raises(LedgerUnreachable, match="cannot be used now") as caught:
            Store.open(url)
        assert PASSWORD not in _all_that_is_said(caught)


def _all_that_is_said(caught: pytest.ExceptionInfo[LedgerUnusable]) -> str:
    return f"{caught.value!s} {caught.value!r} {caught.value.body()} {caught.value.__cause__!r}"

"""Processes and servers that die, disks that are full: nothing that was acknowledged is lost, nothing counts twice."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import ledger_batches
import psycopg
import pytest
from economizer.ledger.database import Database
from economizer.ledger.spool import Spool
from economizer.ledger.store import LedgerUnreachable, LedgerUnusable, Store, Written
from economizer.ledger.types import Batch
from ledger_batches import account_rows, booking, charges, stream
from postgres import Postgres

DAY_S = 86_400.0
SEED, COUNT = 7, 100
SMALL_FILES = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def written_by(url: str) -> subprocess.Popen[str]:
    command = [sys.executable, ledger_batches.__file__, "write", url, str(SEED), str(COUNT)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("after", [1, 17, 60])
def test_a_writer_that_is_killed_is_made_good_by_writing_all_again(url: str, after: int) -> None:
    writer = written_by(url)
    assert writer.stdout is not None
    acknowledged = [int(line) for line, _ in zip(writer.stdout, range(after), strict=False)]
    writer.kill()
    acknowledged += [int(line) for line in writer.stdout.read().split()]
    writer.wait()
    batches = list(stream(SEED, COUNT))
    assert len(acknowledged) < COUNT, "the writer was not killed in the middle"
    store = Store.open(url)
    assert {store.write(batches[number]).repeated for number in acknowledged} == {True}
    Random(after).shuffle(batches)
    for batch in batches:
        store.write(batch)
    assert store.accounts(0, DAY_S) == account_rows(stream(SEED, COUNT))
    assert {row.request_id: (row.usage, row.idle, row.lost) for row in store.requests(0, DAY_S)} == charges(batches)
    assert store.close_check(0, DAY_S).closes
    store.close()


def test_readers_see_books_that_close_while_a_batch_is_written(url: str, store: Store) -> None:
    writer = written_by(url)
    assert writer.stdout is not None
    seen, ended = [], threading.Event()

    def read() -> None:
        while not ended.is_set():
            seen.append((store.close_check(0, DAY_S).closes, len(store.accounts(0, DAY_S))))

    reader = threading.Thread(target=read)
    reader.start()
    acknowledged = writer.stdout.read().split()
    ended.set()
    reader.join()
    assert (writer.wait(), len(acknowledged)) == (0, COUNT)
    assert {closes for closes, _ in seen} == {True}
    assert len({rows for _, rows in seen}) > 1, "nothing was written while it was read"


def test_keys_change_while_batches_are_written(url: str, store: Store) -> None:
    writer = written_by(url)
    assert writer.stdout is not None
    for line in writer.stdout:
        store.revoke_key("nobody", float(line))
    assert writer.wait() == 0
    assert store.accounts(0, DAY_S) == account_rows(stream(SEED, COUNT))


def test_a_locked_file_is_written_later(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db?timeout=0.1"
    store, other = Store.open(url), Database(url)
    with other.writing(), pytest.raises(LedgerUnreachable, match="database is locked"):
        store.write(Batch(id="1", bookings=(booking(),)))
    assert store.write(Batch(id="1", bookings=(booking(),))) == Written(bookings=1)


def test_when_all_connections_are_in_use_for_long_it_can_be_used_later(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/ledger.db")
    database.upgrade()
    database._engine.pool._timeout = 0.1  # type: ignore[attr-defined]  # instead of half a minute
    with ExitStack() as held:
        for _ in range(15):
            held.enter_context(database.reading())
        with pytest.raises(LedgerUnreachable, match="connection timed out"), database.writing():
            pass
    with database.writing():
        pass
    database.close()


def test_a_full_disk_is_told_and_what_was_written_stays(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    Store.open(url).close()
    command = [sys.executable, "-c", SMALL_FILES, ledger_batches.__file__, "write", url, str(SEED), "5000"]
    writer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "LedgerUnreachable" in writer.stderr
    written = [int(line) for line in writer.stdout.split()]
    assert written
    store = Store.open(url)
    assert store.accounts(0, 100 * DAY_S) == account_rows(list(stream(SEED, 5000))[: len(written)])
    store.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_taken_away_or_replaced_is_not_written_to(tmp_path: Path, replaced: bool) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/ledger.db")
    store.write(Batch(id="1", bookings=(booking(),)))
    for path in tmp_path.iterdir():
        path.unlink()
    if replaced:
        Store.open(f"sqlite:///{tmp_path}/ledger.db").close()
    for _ in range(2):
        with pytest.raises(LedgerUnusable, match="is no longer the file that was opened"):
            store.write(Batch(id="2", bookings=(booking("later"),)))
    store.close()


@pytest.fixture
def own(postgres: Postgres) -> Iterator[str]:
    """A database whose server may be killed: it runs again afterwards."""
    yield postgres.new_database()
    postgres.stop()
    postgres.start()


def test_a_server_that_was_killed_is_told_and_the_same_store_goes_on_with_the_next_one(
    postgres: Postgres, own: str, tmp_path: Path
) -> None:
    batches = list(stream(SEED, 9))
    store, spool = Store.open(own), Spool(tmp_path, bytes_max=10**6)
    for batch in batches[:3]:
        store.write(batch)
    postgres.kill()
    for batch in batches[3:6]:
        with pytest.raises(LedgerUnreachable, match="cannot be used now"):
            store.write(batch)
        spool.append(batch)
    with pytest.raises(LedgerUnreachable):
        spool.replay(store.write)
    assert spool.pending() == 3
    postgres.start()
    assert spool.replay(store.write).written == 3
    for batch in batches[6:]:
        store.write(batch)
    assert store.accounts(0, DAY_S) == account_rows(batches)
    store.close()


def test_a_connection_that_the_server_closed_meanwhile_is_made_anew(postgres: Postgres) -> None:
    url = postgres.new_database()
    store = Store.open(url)
    store.write(Batch(id="1"))
    ending = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s"
    with psycopg.connect(postgres.url(), autocommit=True) as administrator:
        ended = administrator.execute(ending, (urlsplit(url).path[1:],)).fetchone()
    assert ended is not None
    assert ended[0] >= 1
    assert store.write(Batch(id="2", bookings=(booking(),))) == Written(bookings=1)
    store.close()

"""A ledger in SQLite, and the same in a real PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from economizer.ledger.store import Store
from postgres import Postgres, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server that all tests share; each has a database of its own."""
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where nobody has kept books yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/books/ledger.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """An open ledger whose clock stands at 5000 seconds after the epoch."""
    store = Store.open(url, clock=lambda: 5000.0)
    yield store
    store.close()

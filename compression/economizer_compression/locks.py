"""One process at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from economizer_compression.progress import say


@contextmanager
def one_at_a_time(folder: Path, what: str) -> Iterator[None]:
    """Makes the folder and holds it until the block ends or the process does; others wait and say for what."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting until another process is done with {what}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

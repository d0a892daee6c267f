"""Files of this machine that are either whole or absent, and the lock by which their writers take turns."""

import fcntl
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, chunks: Iterable[bytes], *, partial: Path | None = None, mode: int = 0o644) -> None:
    """Puts a file in place in one step: whoever looks finds the old one or the new one, never a part.

    It is written to `partial` (by default a sibling) and is on the disk before it takes its name. An error removes the
    part; only a kill leaves it.
    """
    partial = partial or path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(mode)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`; waits for whoever holds it. A killed holder's lock is free at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

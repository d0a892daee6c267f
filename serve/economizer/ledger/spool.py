"""Batches on disk while the database cannot take them: one file each, written again until the database has it.

A file is its checksum and the batch as JSON, which nobody can make execute anything. It gets its name once all of it
is on disk, so a process that is killed leaves nothing half written under a name. A file that is damaged, and a batch
that the database refuses for good, is kept under another name for somebody to look at.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from msgspec import convert, to_builtins

from economizer.errors import EconomizerError
from economizer.ledger.types import Batch

_WHOLE, _TORN, _ASIDE = ".batch", ".torn", ".aside"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SpoolFull(EconomizerError):
    """The spool has no room for the batch, which is not kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """What a replay did. ``aside`` names the files that it could not use, with the reason for each."""

    written: int
    aside: tuple[str, ...] = ()


class Spool:
    """A folder of batches in the order in which they came. One thread at a time may use it.

    ``bytes_max`` limits what waits in it. ``torn`` is how many batches an earlier process was writing when it died;
    none of them was acknowledged. OSError where the folder cannot be made or read.
    """

    def __init__(self, folder: Path, bytes_max: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._bytes_max = bytes_max
        torn = list(folder.glob(f"*{_TORN}"))
        for path in torn:
            path.unlink()
        self.torn = len(torn)
        self._sizes = {path: path.stat().st_size for path in sorted(folder.glob(f"*{_WHOLE}"))}
        self._number = max((_number(path) for path in self._sizes), default=0)

    def append(self, batch: Batch) -> None:
        """Keep a batch; it is on disk when this returns.

        Raises:
            SpoolFull: where there is no room for it, or the disk fails. Then it is not kept.
        """
        content = self._content(batch)
        if sum(self._sizes.values()) + len(content) > self._bytes_max:
            raise SpoolFull(f"The spool {self._folder} holds {self.pending()} batches, its {self._bytes_max} bytes.")
        self._number += 1
        # Two processes may number alike while one takes over from the other; a batch's id is its own.
        path = self._folder / f"{self._number:012d}-{_name(batch)}{_WHOLE}"
        self._keep(path, content)
        self._sizes[path] = len(content)

    def put_aside(self, batch: Batch) -> Path:
        """Keep a batch for somebody to look at; returns where. Raises SpoolFull as ``append`` does."""
        path = self._folder / f"{_name(batch)}{_ASIDE}"  # the same when it is refused once more
        self._keep(path, self._content(batch))
        return path

    def _content(self, batch: Batch) -> bytes:
        body = json.dumps(to_builtins(batch), separators=(",", ":")).encode()
        return b"%08x\n%s\n" % (zlib.crc32(body), body)

    def _keep(self, path: Path, content: bytes) -> None:
        torn = path.with_suffix(_TORN)
        try:
            with torn.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            torn.rename(path)
            self._sync_names()
        except OSError as error:
            with suppress(OSError):  # what stays is cleared away by the next process, or written once more
                torn.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            what = "is full" if error.errno in _FULL else "cannot be written"
            raise SpoolFull(f"The spool {self._folder} {what}: {error.strerror}.") from None

    def pending(self) -> int:
        """How many batches wait."""
        return len(self._sizes)

    def replay(self, write: Callable[[Batch], object]) -> Replayed:
        """Write all batches in their order, and forget each once it is written.

        Whatever ``write`` raises is raised, and the batch and those after it stay; but a file that is damaged is put
        aside. A batch is written twice where the process dies before it is forgotten. OSError where the folder cannot
        be read or changed.
        """
        written, aside = 0, []
        for path in list(self._sizes):
            try:
                write(self._read(path))
            except _Damaged as error:
                path.rename(path.with_suffix(_ASIDE))
                aside.append(f"{path.with_suffix(_ASIDE)}: {error}")
            else:
                path.unlink(missing_ok=True)
                written += 1
            del self._sizes[path]
        return Replayed(written=written, aside=tuple(aside))

    def _read(self, path: Path) -> Batch:
        checksum, _, rest = path.read_bytes().partition(b"\n")
        body = rest.removesuffix(b"\n")
        if checksum != b"%08x" % zlib.crc32(body):
            raise _Damaged("its checksum does not fit")
        try:
            return convert(json.loads(body), Batch)
        except ValueError as error:
            raise _Damaged(f"it is no batch: {str(error).splitlines()[0]}") from None

    def _sync_names(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class _Damaged(Exception):
    """A file of the spool is not as it was written."""


def _name(batch: Batch) -> str:
    return sha256(batch.id.encode()).hexdigest()[:16]


def _number(path: Path) -> int:
    first = path.name.partition("-")[0]
    return int(first) if first.isdecimal() else 0

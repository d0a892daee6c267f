"""Where a store's files lie: a folder of this machine, or any URL that fsspec knows. Paths are relative to its root.

A file appears whole or not at all: it is written under `partial/` and then takes its name.
"""

import errno
import hashlib
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import fsspec  # type: ignore[import-untyped]
from economizer.variants.manifest import FileDigest
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from economizer_compression.errors import CompressionError
from economizer_compression.manifests import digest_file
from economizer_compression.whole_files import locked, write_whole

BLOBS = "blobs"
VARIANTS = "variants"
PARTIAL = "partial"
READ_ONLY = 0o444

_CHUNK_BYTES = 4 << 20
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Storage(Protocol):
    """Files below one root."""

    @property
    def folder(self) -> Path | None:
        """The root where it is a folder of this machine."""

    def read(self, path: str) -> bytes:
        """A file's content; raises FileNotFoundError."""

    def write(self, path: str, chunks: Iterable[bytes], *, mode: int = READ_ONLY) -> None:
        """Puts a whole file in place of what is there."""

    def size(self, path: str) -> int | None:
        """A file's size, or None where there is none."""

    def digest(self, path: str) -> FileDigest:
        """A file's SHA-256 and size, all of it read; raises FileNotFoundError."""

    def copy(self, path: str, out: Path) -> None:
        """A file's content as a file of this machine; raises FileNotFoundError."""

    def sizes(self, folder: str) -> dict[str, int]:
        """The sizes of all files below a folder by their path."""

    def age_s(self, path: str) -> float | None:
        """How long ago a file was written, or None where that is unknown."""

    def remove(self, path: str) -> None:
        """Removes a file, if it is there."""

    def lock(self) -> AbstractContextManager[None]:
        """One writer at a time, where the storage can tell."""


def storage_at(url: str) -> Storage:
    """The storage that a URL or a path names; raises CompressionError where fsspec knows no such place."""
    try:
        filesystem, root = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise CompressionError(f"the store {url!r} cannot be opened: {error}") from None
    if isinstance(filesystem, LocalFileSystem):
        return LocalStorage(Path(root))
    return RemoteStorage(filesystem, root)


class LocalStorage:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def folder(self) -> Path:
        return self._root

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def write(self, path: str, chunks: Iterable[bytes], *, mode: int = READ_ONLY) -> None:
        with disk_full_is_told(self._root):
            write_whole(self._root / path, chunks, partial=self._root / partial_path(path), mode=mode)

    def size(self, path: str) -> int | None:
        file = self._root / path
        return file.stat().st_size if file.is_file() else None

    def digest(self, path: str) -> FileDigest:
        return digest_file(self._root / path)

    def copy(self, path: str, out: Path) -> None:
        shutil.copyfile(self._root / path, out)

    def sizes(self, folder: str) -> dict[str, int]:
        files = (file for file in sorted((self._root / folder).rglob("*")) if file.is_file())
        return {file.relative_to(self._root).as_posix(): file.stat().st_size for file in files}

    def age_s(self, path: str) -> float | None:
        file = self._root / path
        return time.time() - file.stat().st_mtime if file.exists() else None

    def remove(self, path: str) -> None:
        (self._root / path).unlink(missing_ok=True)

    def lock(self) -> AbstractContextManager[None]:
        return locked(self._root / ".lock")


class RemoteStorage:
    """Any filesystem that fsspec knows. Nothing keeps two writers apart: the last one's record is the one that stays.

    Credentials and endpoints come from where the filesystem's library looks for them.
    """

    def __init__(self, filesystem: Any, root: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")

    @property
    def folder(self) -> None:
        return None

    def read(self, path: str) -> bytes:
        content: bytes = self._fs.cat_file(self._at(path))
        return content

    def write(self, path: str, chunks: Iterable[bytes], *, mode: int = READ_ONLY) -> None:
        del mode  # an object has none
        partial, whole = self._at(partial_path(path)), self._at(path)
        for file in (partial, whole):
            self._fs.makedirs(file.rpartition("/")[0], exist_ok=True)
        with self._fs.open(partial, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
        self._fs.mv(partial, whole)

    def size(self, path: str) -> int | None:
        self._fs.invalidate_cache()  # another machine may have written since it was listed
        try:
            return int(self._fs.info(self._at(path))["size"])
        except FileNotFoundError:
            return None

    def digest(self, path: str) -> FileDigest:
        digest, size = hashlib.sha256(), 0
        with self._fs.open(self._at(path), "rb", cache_type="readahead") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        return FileDigest(sha256=digest.hexdigest(), size_bytes=size)

    def copy(self, path: str, out: Path) -> None:
        self._fs.get_file(self._at(path), str(out))

    def sizes(self, folder: str) -> dict[str, int]:
        self._fs.invalidate_cache()
        found = self._fs.find(self._at(folder), detail=True)
        root = PurePosixPath(self._root or "/")
        return {PurePosixPath(path).relative_to(root).as_posix(): int(found[path]["size"]) for path in sorted(found)}

    def age_s(self, path: str) -> float | None:
        try:
            return float(time.time() - self._fs.modified(self._at(path)).timestamp())
        except (NotImplementedError, KeyError, FileNotFoundError):
            return None

    def remove(self, path: str) -> None:
        if self.size(path) is not None:
            self._fs.rm_file(self._at(path))

    def lock(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"


def partial_path(path: str) -> str:
    """A name of its own for a file while it is written."""
    return f"{PARTIAL}/{PurePosixPath(path).name}.{uuid.uuid4().hex}"


@contextmanager
def disk_full_is_told(where: Path) -> Iterator[None]:
    """Turns the system's errors for a full disk into a CompressionError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise CompressionError(
            f"there is no room left for {where} ({error.strerror}). What was not finished is removed; what a store "
            "already holds stays, so that a repeat goes on from there once there is room"
        ) from None


def refuse_without_room(folder: Path, needed_bytes: int) -> None:
    """Raises CompressionError where the folder's disk has less free than that."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        raise CompressionError(f"{folder} needs {needed_bytes:,} bytes, and its disk has {free:,} free")

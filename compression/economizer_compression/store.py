"""A content-addressed store of published checkpoints, on this machine's disk or on any URL that fsspec knows.

``blobs/<aa>/<sha256>`` holds each content once: weights are split into one file per module, so tensors that variants
share are stored once. ``variants/<family>/<variant>.json`` is a variant's record. A local store also has
``checkpoints/<family>/<variant>-<digest>/``, the folder that an engine loads (views.py).

On a local disk writers take turns. An object store keeps nobody apart: of two who publish the same variant the last
one's record stays (both records are whole, for blobs are never overwritten with others), and `remove` must not run
while somebody publishes what has lain there unused.
"""

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from economizer.variants.manifest import FileDigest, Manifest

from economizer_compression.contents import Content, checkpoint
from economizer_compression.errors import CompressionError
from economizer_compression.folders import whole_folder
from economizer_compression.manifests import damaged_files, digest_file
from economizer_compression.records import Record, blob_path, parse_record, record_json, record_path, view_path
from economizer_compression.storage import BLOBS, VARIANTS, disk_full_is_told, refuse_without_room, storage_at
from economizer_compression.unused import Unused, find_unused, remove_unused
from economizer_compression.views import make_view, view_problems

T = TypeVar("T")

TRANSFERS_AT_ONCE = 8

_RESERVE_BYTES = 16 << 20  # for the records, the folders and the filesystem's own books beside the blobs


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What a publish left behind: the record, the folder that an engine loads, and how much of it was new."""

    record: Record
    view: Path | None
    written_bytes: int
    shared_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a store takes, what copies of its variants would take, and each variant's own size."""

    stored_bytes: int
    copies_bytes: int
    variant_bytes: Mapping[tuple[str, str], int]


class Store:
    """The published checkpoints below one URL or path."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._storage = storage_at(url)

    def publish(self, folder: Path, manifest: Manifest) -> Published:
        """Stores a checkpoint folder under its manifest's family and variant, in place of what was there.

        What is stored already is not written again, so a publish that was stopped goes on where it was. The record
        comes last: until then the former one holds, and the former view stays until it is removed as unused. Raises
        CompressionError for a folder that differs from its manifest, and for a full disk.
        """
        record_path(manifest.family, manifest.variant)
        record, contents = checkpoint(folder, manifest)
        with self._storage.lock():
            there = self._storage.sizes(BLOBS)
            missing = [content for content in contents if not self._holds(content, there)]
            written_bytes = sum(content.digest.size_bytes for content in missing)
            if self._storage.folder is not None:
                refuse_without_room(self._storage.folder, written_bytes + _RESERVE_BYTES)
            _each(lambda content: self._storage.write(content.blob, content.chunks()), missing)
            view = None if self._storage.folder is None else make_view(self._storage.folder, record)
            self._storage.write(record_path(*record.key), [record_json(record)], mode=0o644)
        return Published(
            record=record,
            view=view,
            written_bytes=written_bytes,
            shared_bytes=sum(content.digest.size_bytes for content in contents) - written_bytes,
        )

    def _holds(self, content: Content, there: Mapping[str, int]) -> bool:
        """Whether the blob is there. On this machine it is read too: a damaged one is written again."""
        if there.get(content.blob) != content.digest.size_bytes:
            return False
        return self._storage.folder is None or self._storage.digest(content.blob) == content.digest

    def fetch(self, family: str, variant: str, out: Path) -> Manifest:
        """Brings a checkpoint to the folder `out`, which appears whole or not at all; every byte is checked.

        A folder that holds it already is left as it is, so that a restarted machine may ask again. Raises
        CompressionError for one that holds anything else, and for blobs that are not what the record says.
        """
        record = self.record(family, variant)
        if out.exists():
            if damaged := damaged_files(out, replace(record.manifest, files=record.files)):
                raise CompressionError(
                    f"{out} exists and is not {record.id}; remove it first: {'; '.join(damaged[:3])}"
                )
            return record.manifest
        refuse_without_room(out.absolute().parent, record.size_bytes + _RESERVE_BYTES)
        try:
            with disk_full_is_told(out), whole_folder(out) as partial:
                self._download(record, partial)
        except BaseException:
            shutil.rmtree(out.with_name(f"{out.name}.partial"), ignore_errors=True)
            raise
        return record.manifest

    def _download(self, record: Record, folder: Path) -> None:
        def download(name: str) -> None:
            path, out = blob_path(name, record.files[name]), folder / name
            out.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._storage.copy(path, out)
            except FileNotFoundError:
                raise CompressionError(f"{self.url} lacks {path}, which is {name} of {record.id}") from None
            if digest_file(out) != record.files[name]:
                raise CompressionError(
                    f"{self.url}: {path}, {name} of {record.id}, has other content than its name says"
                )

        _each(download, sorted(record.files))

    def record(self, family: str, variant: str) -> Record:
        """One variant's record; raises CompressionError naming the variants there are."""
        path = record_path(family, variant)
        try:
            return self._read(path)
        except FileNotFoundError:
            there = ", ".join(path.removesuffix(".json") for path in self._records()) or "nothing"
            raise CompressionError(f"{self.url} does not hold {family}@{variant}; it holds {there}") from None

    def variants(self) -> list[Record]:
        """All records, by family and variant; raises CompressionError for one that cannot be read."""
        return [self._read(path) for path in self._records()]

    def _records(self) -> list[str]:
        return [path for path in self._storage.sizes(VARIANTS) if path.endswith(".json")]

    def _read(self, path: str) -> Record:
        return parse_record(self._storage.read(path), f"{self.url}/{path}")

    def view(self, record: Record) -> Path | None:
        """The folder that an engine loads, where the store is on this machine."""
        return None if self._storage.folder is None else self._storage.folder / view_path(record)

    def verify(self, family: str | None = None) -> list[str]:
        """What is wrong with the store's records, blobs and views, a line each; every byte is read once."""
        wrong: list[str] = []
        states: dict[str, str | None] = {}
        for path in self._records():
            if family not in (None, path.split("/")[1]):
                continue
            try:
                record = self._read(path)
            except CompressionError as error:
                wrong.append(str(error))
                continue
            for blob, file in sorted(record.blobs.items()):
                if blob not in states:
                    states[blob] = self._blob_problem(blob, file)
                if (problem := states[blob]) is not None:
                    wrong.append(f"{record.id}: {blob} {problem}")
            if self._storage.folder is not None:
                wrong += [f"{record.id}: {line}" for line in view_problems(self._storage.folder, record)]
        return wrong

    def _blob_problem(self, path: str, file: FileDigest) -> str | None:
        size = self._storage.size(path)
        if size is None:
            return "is missing"
        if size != file.size_bytes:
            return f"has {size} bytes instead of {file.size_bytes}"
        return None if self._storage.digest(path) == file else "has other content than its name says"

    def usage(self) -> Usage:
        """What the store takes against copies of the same checkpoints; content that is shared is stored once."""
        variant_bytes = {record.key: record.size_bytes for record in self.variants()}
        return Usage(
            stored_bytes=sum(self._storage.sizes(BLOBS).values()),
            copies_bytes=sum(variant_bytes.values()),
            variant_bytes=variant_bytes,
        )

    def unused(self, catalogued: Collection[tuple[str, str]], serving: Collection[Path] = ()) -> Unused:
        """What could be removed: all that no catalogued variant's record needs, and no view folder in `serving`."""
        return find_unused(self._storage, self.variants(), catalogued, serving)

    def remove(self, unused: Unused) -> None:
        """Removes what `unused` found, less what was published since."""
        with self._storage.lock():
            remove_unused(self._storage, self.variants(), unused)


def _each(transfer: Callable[[T], None], items: Iterable[T]) -> None:
    """Runs the transfers some at a time; the first failure is raised, and those not begun then are not."""
    pool = ThreadPoolExecutor(TRANSFERS_AT_ONCE)
    try:
        for _ in pool.map(transfer, items):
            pass
    finally:
        pool.shutdown(cancel_futures=True)

"""What a store holds that nothing needs any more, and its removal."""

import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from economizer_compression.records import Record, record_path, view_path
from economizer_compression.storage import BLOBS, PARTIAL, Storage
from economizer_compression.views import remove_view, unfinished_views, views

# What has not moved for so long belongs to no command that still runs.
STOPPED_AFTER_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Unused:
    """What could go, all as paths in the store, and the bytes that this would free."""

    records: tuple[Record, ...]
    views: tuple[str, ...]
    blobs: tuple[str, ...]
    leftovers: tuple[str, ...]
    size_bytes: int


def find_unused(
    storage: Storage, records: Sequence[Record], catalogued: Collection[tuple[str, str]], serving: Collection[Path]
) -> Unused:
    """What is needed neither by the records of the catalogued variants nor by the view folders in `serving`.

    Where no lock keeps a publish apart, a young blob may be one whose record is still to come: it is no part of this.
    """
    kept = [record for record in records if record.key in catalogued]
    blobs = storage.sizes(BLOBS)
    for path in _needed(kept):
        blobs.pop(path, None)
    leftovers = {path: size for path, size in storage.sizes(PARTIAL).items() if _stopped(storage, path)}
    folders: dict[str, int] = {}
    if storage.folder is None:
        blobs = {path: size for path, size in blobs.items() if _stopped(storage, path)}
    else:
        root, linked = storage.folder, _inodes(serving)
        blobs = {path: size for path, size in blobs.items() if (root / path).stat().st_ino not in linked}
        staying = {path.resolve() for path in (*serving, *(root / view_path(record) for record in kept))}
        folders = {
            str(view.relative_to(root)): _copied_bytes(view) for view in views(root) if view.resolve() not in staying
        }
        stopped = {str(view.relative_to(root)): _copied_bytes(view) for view in unfinished_views(root)}
        leftovers |= {path: size for path, size in stopped.items() if _stopped(storage, path)}
    return Unused(
        records=tuple(record for record in records if record.key not in catalogued),
        views=tuple(sorted(folders)),
        blobs=tuple(sorted(blobs)),
        leftovers=tuple(sorted(leftovers)),
        size_bytes=sum((*folders.values(), *blobs.values(), *leftovers.values())),
    )


def remove_unused(storage: Storage, records: Sequence[Record], unused: Unused) -> None:
    """Removes it, less what came into use since it was looked for: `records` are those of now.

    Records go first and blobs after views, so that a removal that is stopped leaves nothing that looks whole.
    """
    for record in unused.records:
        if record in records:
            storage.remove(record_path(*record.key))
    kept = [record for record in records if record not in unused.records]
    root = storage.folder
    for path in sorted(set(unused.views) - {view_path(record) for record in kept}):
        if root is not None and (root / path).is_dir():
            remove_view(root / path)
    for path in sorted(set(unused.blobs) - _needed(kept)):
        storage.remove(path)
    for path in unused.leftovers:
        if root is not None and (root / path).is_dir():
            shutil.rmtree(root / path)
        else:
            storage.remove(path)


def _needed(records: Iterable[Record]) -> set[str]:
    return {path for record in records for path in record.blobs}


def _inodes(folders: Iterable[Path]) -> set[int]:
    return {file.stat().st_ino for folder in folders for file in folder.rglob("*") if file.is_file()}


def _copied_bytes(folder: Path) -> int:
    """What a view takes by itself: its files that are links to no blob."""
    stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)


def _stopped(storage: Storage, path: str) -> bool:
    age_s = storage.age_s(path)
    return age_s is not None and age_s > STOPPED_AFTER_S

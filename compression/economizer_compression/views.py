"""Views: a local store's folders that an engine loads, made of hard links to blobs, so that they take no room."""

import errno
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from economizer.variants.manifest import FileDigest

from economizer_compression.folders import whole_folder
from economizer_compression.manifests import digest_file
from economizer_compression.records import Record, blob_path, view_path
from economizer_compression.storage import READ_ONLY, disk_full_is_told

CHECKPOINTS = "checkpoints"
PARTIAL_SUFFIX = ".partial"

# Another filesystem, one without hard links, one more link than it allows.
_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}


def make_view(root: Path, record: Record) -> Path:
    """The folder for a record below the store's root; one that is there already gets what it lacks."""
    view = root / view_path(record)
    with disk_full_is_told(root):
        if not view.exists():
            try:
                with whole_folder(view) as partial:
                    _place_all(root, record.files, partial)
            except OSError:
                shutil.rmtree(_partial(view), ignore_errors=True)
                raise
        else:
            _place_all(root, record.files, view)
    return view


def _place_all(root: Path, files: Mapping[str, FileDigest], folder: Path) -> None:
    for name, file in files.items():
        blob, place = root / blob_path(name, file), folder / name
        if not (place.exists() and place.samefile(blob)):
            place.parent.mkdir(parents=True, exist_ok=True)
            _place(blob, place)


def _place(blob: Path, place: Path) -> None:
    """Links the blob there, or copies it where no link is possible, in one step for whoever looks."""
    partial = place.with_name(f".{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        try:
            os.link(blob, partial)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            shutil.copyfile(blob, partial)
            partial.chmod(READ_ONLY)
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)


def remove_view(view: Path) -> None:
    """Removes a view so that no engine finds half of it; a file that an engine holds open lives on until it ends."""
    partial = _partial(view)
    shutil.rmtree(partial, ignore_errors=True)
    view.rename(partial)
    shutil.rmtree(partial)


def views(root: Path) -> list[Path]:
    """All views of a store."""
    return [path for path in _folders(root) if path.suffix != PARTIAL_SUFFIX]


def unfinished_views(root: Path) -> list[Path]:
    """What commands that were stopped left of views."""
    return [path for path in _folders(root) if path.suffix == PARTIAL_SUFFIX]


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in (root / CHECKPOINTS).glob("*/*") if path.is_dir())


def view_problems(root: Path, record: Record) -> list[str]:
    """What is wrong with a record's view, a line each. A link to a blob is as right as the blob."""
    view, wrong = root / view_path(record), []
    if not view.is_dir():
        return [f"{view.relative_to(root)} is missing"]
    for name, file in sorted(record.files.items()):
        place, blob = view / name, root / blob_path(name, file)
        if not place.is_file():
            wrong.append(f"{place.relative_to(root)} is missing")
        elif not (blob.exists() and place.samefile(blob)) and digest_file(place) != file:
            wrong.append(f"{place.relative_to(root)} has other content than its record says")
    return wrong


def _partial(view: Path) -> Path:
    return view.with_name(f"{view.name}{PARTIAL_SUFFIX}")

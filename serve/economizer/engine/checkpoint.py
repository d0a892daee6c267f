"""A checkpoint's files, held against its ``manifest.json`` before an engine loads them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from economizer.errors import CheckpointDamaged
from economizer.variants.manifest import FILE_NAME, FileDigest

_AT_ONCE = 4  # files; hashing takes a core each, and engines that serve need theirs
_NAMED_MAX = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """A file as it was when its content was right."""

    size_bytes: int
    changed_ns: int
    sha256: str


class Checkpoint:
    """The model folder of one engine. What was found right is not read again until it changes."""

    def __init__(self, model: str) -> None:
        self._folder = Path(model) if model else None
        self._right: dict[str, _Seen] = {}

    async def check(self, name: str) -> None:
        """Raise CheckpointDamaged where a file is not as the manifest says.

        A model that is no local folder, or whose folder has no manifest, passes.
        """
        if self._folder is None:
            return
        files = await asyncio.to_thread(_digests, self._folder, name)
        room = asyncio.Semaphore(_AT_ONCE)

        async def problem(file: str, digest: FileDigest) -> str | None:
            async with room:
                return await asyncio.to_thread(self._problem, file, digest)

        found = await asyncio.gather(*(problem(file, digest) for file, digest in sorted(files.items())))
        if wrong := [text for text in found if text is not None]:
            raise _damaged(self._folder, name, wrong)

    def _problem(self, file: str, digest: FileDigest) -> str | None:
        assert self._folder is not None
        path = self._folder / file
        try:
            now = path.stat()
            if now.st_size != digest.size_bytes:
                return f"{file} has {now.st_size} bytes and not the {digest.size_bytes} of its manifest"
            seen = _Seen(size_bytes=now.st_size, changed_ns=now.st_mtime_ns, sha256=digest.sha256)
            if self._right.get(file) != seen:
                with path.open("rb") as opened:
                    if hashlib.file_digest(opened, "sha256").hexdigest() != digest.sha256.lower():
                        return f"{file} has another content than its manifest says"
        except FileNotFoundError:
            return f"{file} is missing"
        except OSError as error:
            return f"{file} cannot be read ({error.strerror})"
        self._right[file] = seen
        return None


def _digests(folder: Path, name: str) -> Mapping[str, FileDigest]:
    """The files that the folder's manifest names; none where it has no manifest, or one of another make."""
    try:
        manifest: Any = json.loads((folder / FILE_NAME).read_bytes())
        if isinstance(manifest, dict) and "files" not in manifest:
            return {}
        files = manifest["files"].items()
        return {str(file): FileDigest(sha256=one["sha256"], size_bytes=one["size_bytes"]) for file, one in files}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise _damaged(folder, name, [f"{FILE_NAME} cannot be read ({error.strerror})"]) from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _damaged(folder, name, [f"{FILE_NAME} is no manifest that this release reads"]) from None


def _damaged(folder: Path, name: str, wrong: list[str]) -> CheckpointDamaged:
    more = [f"and {len(wrong) - _NAMED_MAX} files more"] if len(wrong) > _NAMED_MAX else []
    return CheckpointDamaged(
        f"The checkpoint of {name} in {folder} is damaged: {', '.join([*wrong[:_NAMED_MAX], *more])}. It is not "
        "served; `economizer-compress publish` it again."
    )

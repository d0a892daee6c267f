"""Reads and writes `manifest.json`, and checks a checkpoint's files against it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from economizer.variants.manifest import FILE_NAME, FileDigest, Manifest
from pydantic import TypeAdapter, ValidationError

from economizer_compression.errors import CompressionError

# Made from the manifest, or notes of the work: no part of what an engine loads.
NOT_SERVED = frozenset({FILE_NAME, "README.md", "family.png", "calibration.ngrams"})

_ADAPTER = TypeAdapter(Manifest)


def parse_manifest(text: str | bytes, source: str) -> Manifest:
    """The manifest in JSON; raises CompressionError with each mistake's place when it is none."""
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors()[:5])
        raise CompressionError(f"{source} is no manifest that this release reads: {mistakes}") from None


def manifest_json(manifest: Manifest) -> bytes:
    """The manifest as JSON for people."""
    return _ADAPTER.dump_json(manifest, indent=2) + b"\n"


def read_manifest(folder: Path) -> Manifest:
    """A checkpoint folder's manifest; raises CompressionError where there is none."""
    path = folder / FILE_NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise CompressionError(
            f"{folder} has no {FILE_NAME}: make it with `economizer-compress run` or `import`"
        ) from None
    return parse_manifest(text, str(path))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Puts the manifest in the folder in one step."""
    partial = folder / f"{FILE_NAME}.partial"
    partial.write_bytes(manifest_json(manifest))
    partial.replace(folder / FILE_NAME)


def digest_file(path: Path) -> FileDigest:
    """SHA-256 and size of one file."""
    with path.open("rb") as file:
        return FileDigest(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size_bytes=path.stat().st_size)


def digest_folder(folder: Path) -> dict[str, FileDigest]:
    """The digests of all files that an engine may load, by their path in the folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in NOT_SERVED)
    return {str(path.relative_to(folder)): digest_file(path) for path in files}


def digest_of(files: Mapping[str, FileDigest]) -> str:
    """One SHA-256 for a set of files, whatever the order they are given in."""
    lines = "".join(f"{name}\0{files[name].sha256}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def damaged_files(folder: Path, manifest: Manifest) -> list[str]:
    """What is wrong with the folder's files by its manifest, a line each; nothing where all is as it was written."""
    wrong = []
    for name, wanted in sorted(manifest.files.items()):
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != wanted.size_bytes:
            wrong.append(f"{name} has {path.stat().st_size} bytes instead of {wanted.size_bytes}")
        elif digest_file(path).sha256 != wanted.sha256:
            wrong.append(f"{name} has other content than its SHA-256 says")
    return wrong

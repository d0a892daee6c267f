"""A store's record of one variant: its manifest, and the blob behind each file of the checkpoint. Pure."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from economizer.variants.manifest import FileDigest, Manifest
from economizer.variants.types import require
from pydantic import TypeAdapter, ValidationError

from economizer_compression.errors import CompressionError

FORMAT = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What a store holds of one variant. ``files`` are the manifest's, the manifest itself, and the card."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads a plain dict

    format: int = FORMAT
    manifest: Manifest
    files: Mapping[str, FileDigest]

    def __post_init__(self) -> None:
        require(self.format == FORMAT, "format", self.format, f"must be {FORMAT}, the only one known here")
        for name in (self.manifest.family, self.manifest.variant):
            rule = "must be letters, digits, dots, dashes and underscores, a letter or digit first"
            require(_NAME.fullmatch(name) is not None, "family and variant", name, rule)
        outside = [name for name in self.files if _leads_out(name)]
        require(not outside, "files", outside, "must lie in the checkpoint's folder")
        unnamed = [file.sha256 for file in self.files.values() if not _SHA256.fullmatch(file.sha256)]
        require(not unnamed, "files", unnamed, "must have SHA-256 digests of 64 hexadecimal digits")
        missing = sorted(self.manifest.files.keys() - self.files.keys())
        require(not missing, "files", missing, "must be there too, since the manifest names them")

    @property
    def key(self) -> tuple[str, str]:
        """Family and variant."""
        return self.manifest.family, self.manifest.variant

    @property
    def id(self) -> str:
        """``family@variant``."""
        return "@".join(self.key)

    @property
    def digest(self) -> str:
        """The SHA-256 of the record as it is written."""
        return hashlib.sha256(record_json(self)).hexdigest()

    @property
    def blobs(self) -> dict[str, FileDigest]:
        """The blobs that it needs, by where they lie in the store."""
        return {blob_path(name, file): file for name, file in self.files.items()}

    @property
    def size_bytes(self) -> int:
        """The size of all files, those that are equal counted each time: what a copy of the checkpoint takes."""
        return sum(file.size_bytes for file in self.files.values())


_ADAPTER = TypeAdapter(Record)


def record_json(record: Record) -> bytes:
    """The record as JSON for people."""
    return _ADAPTER.dump_json(record, indent=2) + b"\n"


def parse_record(text: bytes, source: str) -> Record:
    """The record in JSON; raises CompressionError with each mistake's place when it is none."""
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors()[:5])
        raise CompressionError(f"{source} is no record that this release reads: {mistakes}") from None


def record_path(family: str, variant: str) -> str:
    """Where a record lies in a store; raises CompressionError for names that are none."""
    for name in (family, variant):
        if not _NAME.fullmatch(name):
            raise CompressionError(f"{name!r} is no name of a family or variant: letters, digits, '.', '-', '_' are")
    return f"variants/{family}/{variant}.json"


def blob_path(name: str, file: FileDigest) -> str:
    """Where the content of a file of that name lies in a store; weights keep the suffix that says what they are."""
    suffix = ".safetensors" if name.endswith(".safetensors") else ""
    return f"blobs/{file.sha256[:2]}/{file.sha256}{suffix}"


def view_path(record: Record) -> str:
    """Where the folder that an engine loads lies in a local store."""
    family, variant = record.key
    return f"checkpoints/{family}/{variant}-{record.digest[:12]}"


def _leads_out(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name

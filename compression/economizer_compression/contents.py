"""A checkpoint's content as a store keeps it: which files there are, their digests, and how to read them again."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

from economizer.variants.manifest import FILE_NAME, FileDigest, Manifest

from economizer_compression.errors import CompressionError
from economizer_compression.manifests import NOT_SERVED, damaged_files, manifest_json
from economizer_compression.records import Record, blob_path
from economizer_compression.safetensors_files import (
    INDEX,
    by_module,
    file_chunks,
    index_json,
    read_weights,
    weight_files,
)

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """One file of a checkpoint as it is stored: where its blob lies, and its bytes, which can be read again."""

    name: str
    digest: FileDigest
    read: Callable[[], Iterable[bytes]]

    @property
    def blob(self) -> str:
        """Where its blob lies in the store."""
        return blob_path(self.name, self.digest)

    def chunks(self) -> Iterator[bytes]:
        """Its bytes; raises CompressionError at their end where they are not those that the digest was taken of."""
        digest = sha256()
        for chunk in self.read():
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != self.digest.sha256:
            raise CompressionError(f"{self.name} changed while it was published; publish it again when it is at rest")


def checkpoint(folder: Path, manifest: Manifest) -> tuple[Record, list[Content]]:
    """A checkpoint's record and contents, the weights split by module; equal contents are given once.

    Files that neither the manifest names nor this package writes beside it are left out. Raises CompressionError for
    a folder that is not what its manifest says.
    """
    if damaged := damaged_files(folder, manifest):
        raise CompressionError(f"{folder} is not what its {FILE_NAME} says: {'; '.join(damaged[:5])}")
    weights = weight_files(folder)
    indexes = {INDEX} if (folder / INDEX).is_file() else set()
    if unnamed := sorted({*weights, *indexes} - manifest.files.keys()):
        raise CompressionError(f"{folder} has weights that its {FILE_NAME} does not name: {', '.join(unnamed[:3])}")
    notes = {name for name in NOT_SERVED - {FILE_NAME} if (folder / name).is_file()}
    others = (manifest.files.keys() - {INDEX, *weights} - NOT_SERVED) | notes
    contents = [_file(name, folder / name) for name in sorted(others)] + _modules(folder)
    digests = {content.name: content.digest for content in sorted(contents, key=lambda content: content.name)}
    if len(digests) < len(contents):
        raise CompressionError(f"{folder} has files beside its weights that are named as modules of these")
    served = {name: digest for name, digest in digests.items() if name not in NOT_SERVED}
    published = replace(manifest, files=served)
    contents.append(_text(FILE_NAME, manifest_json(published)))
    record = Record(manifest=published, files={**digests, FILE_NAME: contents[-1].digest})
    return record, list({content.blob: content for content in contents}.values())


def _modules(folder: Path) -> list[Content]:
    modules = by_module(read_weights(folder))
    if not modules:
        return []
    files = [_content(name, partial(file_chunks, tensors)) for name, tensors in modules.items()]
    return [*files, _text(INDEX, index_json(modules))]


def _file(name: str, path: Path) -> Content:
    def read() -> Iterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    return _content(name, read)


def _text(name: str, text: bytes) -> Content:
    return _content(name, lambda: [text])


def _content(name: str, read: Callable[[], Iterable[bytes]]) -> Content:
    digest, size = sha256(), 0
    for chunk in read():
        digest.update(chunk)
        size += len(chunk)
    return Content(name=name, digest=FileDigest(sha256=digest.hexdigest(), size_bytes=size), read=read)

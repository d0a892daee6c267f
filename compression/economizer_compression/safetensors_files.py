"""Safetensors files as bytes: their tensors read from the header, and one file per module made of them.

Nothing here knows what a dtype means beyond its width, so bfloat16 and float8 need no torch. The format: 8 bytes with
the header's length (little endian), a JSON header, the tensors' bytes; https://github.com/safetensors/safetensors.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from economizer_compression.errors import CompressionError

SUFFIX = ".safetensors"
SINGLE = f"model{SUFFIX}"
INDEX = f"{SINGLE}.index.json"

_CHUNK_BYTES = 4 << 20
_HEADER_BYTES_MAX = 100_000_000  # the format's own bound


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One tensor of a safetensors file: where its bytes lie, from `start` in the file at `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    size_bytes: int

    @property
    def module(self) -> str:
        """The tensor's name up to the last dot: a weight and its scales have the same one."""
        return self.name.rpartition(".")[0] or self.name

    def chunks(self) -> Iterator[bytes]:
        """The tensor's bytes, some megabytes at a time."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = self.size_bytes
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise CompressionError(f"{self.path} ends in the middle of {self.name}: {left} bytes are missing")
                left -= len(chunk)
                yield chunk


def read_tensors(path: Path) -> list[Tensor]:
    """The tensors of one file; raises CompressionError where its header does not describe its bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_BYTES_MAX):
            raise CompressionError(f"{path} is no safetensors file: its {size} bytes end before its header does")
        header = file.read(length)
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = [_tensor(path, 8 + length, name, entry) for name, entry in sorted(entries.items())]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CompressionError(f"{path} is no safetensors file: its header cannot be read: {error}") from None
    end = 8 + length
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.size_bytes)):
        if tensor.start != end or tensor.size_bytes < 0:
            raise CompressionError(f"{path}: {tensor.name} begins at byte {tensor.start} instead of {end}")
        end += tensor.size_bytes
    if end != size:
        raise CompressionError(f"{path} has {size} bytes, its header describes {end}")
    return tensors


def _tensor(path: Path, data: int, name: str, entry: Mapping[str, Any]) -> Tensor:
    begin, end = entry["data_offsets"]
    shape = tuple(int(length) for length in entry["shape"])
    return Tensor(
        name=name, dtype=str(entry["dtype"]), shape=shape, path=path, start=data + begin, size_bytes=end - begin
    )


def weight_files(folder: Path) -> list[str]:
    """The names of the files that hold the model's weights as a loader finds them: by the index, else the one file.

    Other safetensors files (an adapter's) are none of these.
    """
    if (folder / INDEX).is_file():
        return sorted(set(_weight_map(folder / INDEX).values()))
    return [SINGLE] if (folder / SINGLE).is_file() else []


def _weight_map(index: Path) -> dict[str, str]:
    try:
        names: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        if not all(isinstance(name, str) and Path(name).name == name for name in names.values()):
            raise TypeError("the weight map must name files beside it")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CompressionError(f"{index} is no safetensors index: {error!r}") from None
    return names


def read_weights(folder: Path) -> list[Tensor]:
    """All tensors of the model's weights; raises CompressionError where the index and the files disagree."""
    files = weight_files(folder)
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise CompressionError(f"{folder / INDEX} names files that are not there: {', '.join(missing)}")
    tensors = [tensor for name in files for tensor in read_tensors(folder / name)]
    found = [tensor.name for tensor in tensors]
    if twice := sorted({name for name in found if found.count(name) > 1} if len(set(found)) < len(found) else ()):
        raise CompressionError(f"{folder} holds tensors in more than one file: {', '.join(twice[:3])}")
    indexed = set(_weight_map(folder / INDEX)) if (folder / INDEX).is_file() else set(found)
    if differing := sorted(indexed ^ set(found)):
        raise CompressionError(f"{folder / INDEX} and the files beside it differ in {', '.join(differing[:3])}")
    return tensors


def by_module(tensors: Iterable[Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """The tensors by the name of the file that holds their module alone."""
    files = sorted((module_file(tensor.module), tensor.name, tensor) for tensor in tensors)
    return {name: tuple(tensor for _, _, tensor in group) for name, group in groupby(files, key=lambda row: row[0])}


def module_file(module: str) -> str:
    """The file's name for one module; raises CompressionError for a module that no file can be named after."""
    # A loader that finds `model.safetensors` takes it for the whole model and reads no index.
    name = f"{module}{SUFFIX}" if f"{module}{SUFFIX}" != SINGLE else f"model.itself{SUFFIX}"
    if "/" in name or "\0" in name or name.startswith(".") or len(name.encode()) > 200:
        raise CompressionError(f"the module {module[:100]!r} cannot name a file: 1 to 180 bytes without a slash can")
    return name


def file_chunks(tensors: Sequence[Tensor]) -> Iterator[bytes]:
    """A safetensors file of these tensors, some megabytes at a time; the same tensors give the same bytes.

    As in the library's own files, wide dtypes come first, so that every tensor lies where its dtype can be mapped.
    """
    ordered = sorted(tensors, key=lambda tensor: (-_width(tensor), tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        offsets = [end, end + tensor.size_bytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        end += tensor.size_bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in ordered:
        yield from tensor.chunks()


def _width(tensor: Tensor) -> int:
    """Bytes per element by the dtype's name (F32, BF16, F8_E4M3, BOOL); less than a byte counts as one."""
    digits = tensor.dtype.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ").partition("_")[0]
    return max(1, int(digits) // 8) if digits.isdecimal() else 1


def index_json(modules: Mapping[str, Sequence[Tensor]]) -> bytes:
    """The index that leads a loader from a tensor's name to its file."""
    weight_map = {tensor.name: file for file, tensors in modules.items() for tensor in tensors}
    total = sum(tensor.size_bytes for tensors in modules.values() for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"

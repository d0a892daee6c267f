"""Files to examples: text, JSON lines and Parquet, of this machine or behind any URL that fsspec knows.

A file that is empty, binary or in mixed encodings stops the run with its name and the place: nobody misses text that is
skipped without a word until the model is bad.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec  # type: ignore[import-untyped]
from economizer_compression.family import located
from economizer_compression.texts import DOCUMENTS, PROMPTS, chats, documents

from economizer_training.data.config import Source
from economizer_training.data.examples import Example, example_of
from economizer_training.errors import TrainingError

_BATCH_ROWS = 256
_WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_FORMATS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def urls(patterns: tuple[str, ...], data: Path | None, where: str) -> list[str]:
    """The files that the patterns name, each once, in order; raises TrainingError for a pattern that names none."""
    found: dict[str, None] = {}
    for pattern in patterns:
        if pattern in (DOCUMENTS, PROMPTS):
            found[pattern] = None
            continue
        names = _glob(_placed(pattern, data, where), where)
        if not names:
            raise TrainingError(f"{where}: there is no file {_placed(pattern, data, where)}")
        found.update(dict.fromkeys(names))
    return list(found)


def _placed(pattern: str, data: Path | None, where: str) -> str:
    if "://" in pattern or Path(pattern).is_absolute():
        return pattern
    if pattern.startswith("./"):
        return str(located(pattern))
    if data is None:
        raise TrainingError(f"{where}: {pattern}: name the folder that it is in with --data DIR or ECONOMIZER_DATA")
    return str(data / pattern)


def _glob(url: str, where: str) -> list[str]:
    try:
        filesystem, path = fsspec.url_to_fs(url)
        if not any(c in url for c in "*?["):
            return [url] if filesystem.isfile(path) else []
        return [filesystem.unstrip_protocol(name) for name in sorted(filesystem.glob(path)) if filesystem.isfile(name)]
    except (ImportError, ValueError) as error:
        raise TrainingError(f"{where}: {url}: {' '.join(str(error).split())}") from None


def read(source: Source, number: int, url: str) -> Iterator[Example]:
    """The examples of a source's file, its ``number``th; raises TrainingError naming the file and the place."""
    if url == DOCUMENTS:
        rows: Iterator[tuple[str, Any]] = (
            (f"{url} document {index}", {source.text: text})
            for index, text in enumerate(documents(DOCUMENTS, None, part="calibration"))
        )
    elif url == PROMPTS:
        rows = (
            (f"{url} prompt {index}", {"messages": chat})
            for index, chat in enumerate(chats(PROMPTS, None, part="calibration"))
        )
    elif _format(source, url) == "parquet":
        rows = _parquet_rows(url)
    elif _format(source, url) == "jsonl":
        rows = _json_rows(url, source.encoding)
    else:
        rows = ((where, {source.text: text}) for where, text in _texts(url, source))
    for index, (where, row) in enumerate(rows):
        yield example_of(row, source, f"{source.name}:{number:05d}:{index:09d}", where)


def strings(url: str) -> Iterator[str]:
    """Every text of an evaluation file, in whichever field it is: a text file whole, JSON and Parquet by row."""
    source = Source(name="evaluation", files=(url,))
    if url == DOCUMENTS:
        yield from documents(DOCUMENTS, None, part="evaluation")
    elif url == PROMPTS:
        yield from (chat[-1]["content"] for chat in chats(PROMPTS, None, part="evaluation"))
    elif url.endswith(".json"):
        yield from _strings_in(_json("".join(text for _, text in _lines(url, source.encoding)), url))
    elif url.endswith(".csv") or _format(source, url) == "text":
        yield from (text for _, text in _texts(url, source))
    else:
        rows = _parquet_rows(url) if _format(source, url) == "parquet" else _json_rows(url, source.encoding)
        for _, row in rows:
            yield from _strings_in(row)


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings_in(inner)


def _format(source: Source, url: str) -> str:
    if source.format != "auto":
        return source.format
    suffixes = [suffix.lower() for suffix in Path(url.split("?")[0]).suffixes]
    found = next((_FORMATS[suffix] for suffix in reversed(suffixes) if suffix in _FORMATS), None)
    if found is None and source.name != "evaluation":
        raise TrainingError(f"{url}: its name does not say its format: set the source's `format`")
    return found or "text"


def _texts(url: str, source: Source) -> Iterator[tuple[str, str]]:
    """A text file's documents: all of it, its lines, or what stands between empty lines."""
    gathered: list[str] = []
    first = 1
    for number, line in _lines(url, source.encoding):
        if source.split == "line" or (source.split == "paragraph" and not line.strip()):
            if source.split == "line":
                gathered = [line]
            if "".join(gathered).strip():
                yield f"{url} line {first}", "".join(gathered)
            gathered, first = [], number + 1
        else:
            gathered.append(line)
    if "".join(gathered).strip():
        yield f"{url} line {first}", "".join(gathered)


def _json_rows(url: str, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in _lines(url, encoding):
        if not line.strip():
            continue
        where = f"{url} line {number}"
        row = _json(line, where)
        if not isinstance(row, dict):
            raise TrainingError(f"{where}: {line.strip()[:60]!r}: must be a JSON object")
        yield where, row


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise TrainingError(f"{where}: is not JSON: {error}") from None


def _parquet_rows(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with _opened(url) as file:
        _refuse_empty(file.read(1), url)
        file.seek(0)
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            number = 0
            for batch in ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield f"{url} row {number}", row
                    number += 1
        except ArrowException as error:
            raise TrainingError(f"{url}: is no Parquet file that can be read: {error}") from None
    if number == 0:
        raise TrainingError(f"{url}: has no rows")


def _lines(url: str, encoding: str) -> Iterator[tuple[int, str]]:
    """A file's lines with their numbers from 1; it is read line by line, compressed files too."""
    offset, something = 0, False
    with _opened(url, compression="infer") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = _without_mark(raw, url)
            text = _decoded(raw, encoding, url, number, offset)
            offset += len(raw)
            something = something or not text.isspace()
            yield number, text
    if not something:
        _refuse_empty(b"", url)


def _without_mark(raw: bytes, url: str) -> bytes:
    for mark, name in _WIDE.items():
        if raw.startswith(mark):
            raise TrainingError(f"{url}: is {name} by its first bytes: convert it to UTF-8")
    return raw.removeprefix(codecs.BOM_UTF8)


def _decoded(raw: bytes, encoding: str, url: str, number: int, offset: int) -> str:
    zero = raw.find(0)
    if zero >= 0:
        raise TrainingError(f"{url} line {number}: is binary: it has a zero at byte {offset + zero}")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        before = f"the {number - 1} lines before it are: the file mixes encodings" if number > 1 else "set `encoding`"
        raise TrainingError(
            f"{url} line {number}: byte 0x{raw[error.start]:02x} at {offset + error.start} is not {encoding}; {before}"
        ) from None
    except LookupError:
        raise TrainingError(f"{url}: there is no encoding {encoding}") from None


def _refuse_empty(raw: bytes, url: str) -> None:
    if not raw:
        raise TrainingError(f"{url}: is empty")


@contextmanager
def _opened(url: str, **options: Any) -> Iterator[IO[bytes]]:
    """The file, open to read bytes; what cannot be opened or read on is a TrainingError."""
    try:
        with fsspec.open(url, "rb", **options) as file:
            yield file
    except (OSError, EOFError, ImportError) as error:  # EOFError: of a compressed file that was cut off
        raise TrainingError(f"{url}: cannot be read: {' '.join(str(error).split())}") from None

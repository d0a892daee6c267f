"""Where text comes from: files of the user's, and what needs no file at all. No torch here.

The built-in documents are the language reference that CPython carries for its own help, one document a topic; the
built-in prompts lie beside this module. Half of each calibrates, the other half is scored.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from economizer_compression.errors import CompressionError
from economizer_compression.overlap import ngrams

DOCUMENTS = "builtin:documents"
PROMPTS = "builtin:prompts"
_DOCUMENT_CHARACTERS_MIN = 400  # shorter topics are references to others

Part = Literal["calibration", "evaluation"]
Chat = list[dict[str, str]]


def documents(
    source: str, data: Path | None, *, part: Part, field: str | None = None, where: str = "text"
) -> list[str]:
    """The documents of a source; raises CompressionError for a file that is missing or has no such field.

    ``where`` is the place in the suite that errors name.
    """
    if source == DOCUMENTS:
        return [text for name, text in sorted(_reference().items()) if _part_of(name) == part]
    path = located(source, data, where)
    if path.suffix == ".txt":
        return [path.read_text(encoding="utf-8")]
    texts = [_field(row, field or "text", f"{path} row {index}") for index, row in enumerate(_rows(path))]
    if wrong := next((text for text in texts if not isinstance(text, str)), None):
        raise CompressionError(f"{path}: field {field or 'text'}: {str(wrong)[:60]!r}: must be text")
    return texts


def chats(
    source: str, data: Path | None, *, part: Part, field: str | None = None, where: str = "answers"
) -> list[Chat]:
    """Chats that end with the user's turn: a prompt, the first of a list of prompts, or messages of OpenAI's form."""
    if source == PROMPTS:
        content = yaml.safe_load((files("economizer_compression") / "prompts.yaml").read_text(encoding="utf-8"))
        kinds = [prompts for _, prompts in sorted(content.items())]
        first = 0 if part == "calibration" else 1
        return [[{"role": "user", "content": text}] for prompts in kinds for text in prompts[first::2]]
    path = located(source, data, where)
    rows = list(_rows(path))
    return [_chat(_field(row, field or "prompt", f"{path} row {i}"), f"{path} row {i}") for i, row in enumerate(rows)]


def _chat(value: Any, where: str) -> Chat:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        last = max((i for i, message in enumerate(value) if message.get("role") == "user"), default=-1)
        if last < 0:
            raise CompressionError(f"{where}: must have a message of the user")
        return [{"role": str(m["role"]), "content": str(m["content"])} for m in value[: last + 1]]
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, str):
        raise CompressionError(f"{where}: {str(value)[:60]!r}: must be a prompt, a list of prompts or messages")
    return [{"role": "user", "content": first}]


def _reference() -> dict[str, str]:
    """CPython's topics by name, but none that repeats what a longer one says: the two halves share no text."""
    from pydoc_data.topics import topics  # half a megabyte that few need

    kept: dict[str, str] = {}
    seen: set[int] = set()
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        said = set(ngrams([topics[name]]).tolist())
        if len(topics[name]) >= _DOCUMENT_CHARACTERS_MIN and not said & seen:
            kept[name] = topics[name]
            seen |= said
    return kept


def _part_of(name: str) -> Part:
    return "calibration" if hashlib.sha256(name.encode()).digest()[0] % 2 == 0 else "evaluation"


def located(source: str, data: Path | None, where: str) -> Path:
    """A file by its path or, where that is relative, by its path in the folder ``data``; raises CompressionError."""
    path = Path(source)
    if not path.is_absolute() and data is None:
        raise CompressionError(f"{where}: {source}: name the folder that it is in with --data DIR or ECONOMIZER_DATA")
    path = path if data is None else data / path
    if not path.is_file():
        raise CompressionError(f"{where}: there is no file {path}: --data DIR must name the folder that it is in")
    return path


def _rows(path: Path) -> Iterator[Any]:
    """The rows of a JSONL, JSON or CSV file; a .json file may hold a list or a row a line."""
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
            return
        text = file.read()
    if path.suffix == ".json" and text.lstrip().startswith("["):
        yield from json.loads(text)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise CompressionError(f"{path} line {number} is not JSON: {error}") from None


def _field(row: Any, field: str, where: str) -> Any:
    """A row's field; a dot leads into an inner one."""
    value = row
    for key in field.split("."):
        if not isinstance(value, dict) or key not in value:
            there = ", ".join(value) if isinstance(value, dict) else type(value).__name__
            raise CompressionError(f"{where}: there is no field {field}; it has {there}")
        value = value[key]
    return value

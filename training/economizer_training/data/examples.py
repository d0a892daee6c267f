"""An example: a document, a chat, or the fields of a row that templates make a chat of. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any, Literal

from economizer_training.data.config import Source, Template
from economizer_training.errors import TrainingError

Kind = Literal["text", "chat", "fields"]
Message = dict[str, str]

_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """``parts`` are pairs of a label and its text: the document, a message's role, or a field's name.

    ``id`` is the source's name, the file's number and the row's, so that ids order as examples were read. ``slice`` is
    the kind of text that it counts for.
    """

    id: str
    source: str
    slice: str
    kind: Kind
    parts: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """All of its text, one part after the other."""
        return "\n\n".join(text for _, text in self.parts)

    @property
    def size_bytes(self) -> int:
        """The bytes of all parts in UTF-8."""
        return sum(len(text.encode("utf-8", "surrogatepass")) for _, text in self.parts)

    def mapped(self, change: Callable[[str], str]) -> Example:
        """The same with every part's text changed."""
        return replace(self, parts=tuple((label, change(text)) for label, text in self.parts))

    def chat(self, templates: Sequence[Template] = (), turn: int = 0) -> list[Message]:
        """Its messages; of fields those by the template whose turn it is. A document has none."""
        if self.kind == "chat":
            return [{"role": label, "content": text} for label, text in self.parts]
        if self.kind == "text":
            return []
        template = templates[turn % len(templates)]
        fields = dict(self.parts)
        turns = (("system", template.system), ("user", template.user), ("assistant", template.assistant))
        return [{"role": role, "content": _filled(text, fields)} for role, text in turns if text is not None]

    def to_json(self) -> str:
        return json.dumps([self.id, self.source, self.slice, self.kind, self.parts])

    @classmethod
    def from_json(cls, told: str) -> Example:
        id_, source, slice_, kind, parts = json.loads(told)
        return cls(id=id_, source=source, slice=slice_, kind=kind, parts=tuple((a, b) for a, b in parts))


def example_of(row: Mapping[str, Any], source: Source, id_: str, where: str) -> Example:
    """The example in a row of a source; raises TrainingError naming ``where`` and what is wrong there."""
    parts: tuple[tuple[str, str], ...]
    if source.messages is not None:
        parts = tuple(_messages(value_at(row, source.messages, where), where))
    elif source.templates:
        parts = tuple((name, _text(value_at(row, name, where), name, where)) for name in source.fields)
    else:
        parts = (("text", _text(value_at(row, source.text, where), source.text, where)),)
    label = source.name if source.slice is None else f"{source.name}/{value_at(row, source.slice, where)}"
    label = label.encode("utf-8", "replace").decode()  # JSON may escape half a character
    return Example(id=id_, source=source.name, slice=label, kind=source.kind, parts=parts)


def value_at(row: Any, field: str, where: str) -> Any:
    """A row's field; a dot leads into an inner one, or to an item of a list by its number."""
    value = row
    for key in field.split("."):
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, Sequence) and not isinstance(value, str) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            there = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise TrainingError(f"{where}: there is no field {field}; it has {there}")
    return value


def _text(value: Any, field: str, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise TrainingError(f"{where}: field {field}: {str(value)[:60]!r}: must be text")
    return value


def _messages(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Messages of OpenAI's form: a role, and a text or a list of parts of which those of text count."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise TrainingError(f"{where}: {str(value)[:60]!r}: must be a list of messages with role and content")
    for number, message in enumerate(value):
        here = f"{where}: message {number}"
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise TrainingError(f"{here}: {str(message)[:60]!r}: must have a role, one of {', '.join(_ROLES)}")
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
            if len(texts) != len(content) or not all(isinstance(text, str) for text in texts):
                raise TrainingError(f"{here}: has content that is not text, which no model here learns from")
            content = "\n".join(map(str, texts))
        role = "system" if message["role"] == "developer" else str(message["role"])
        yield role, _text(content, "content", here)


def _filled(template: str, fields: Mapping[str, str]) -> str:
    """The template with each field in its place; a field's own braces stay as they are."""
    pieces = []
    for text, name, _, _ in Formatter().parse(template):
        pieces += [text, fields[name] if name else ""]
    return "".join(pieces)

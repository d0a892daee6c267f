"""JSON read once and edited in place: values are found with their places in the text, so that all else stays as it was.

Parsing and writing JSON anew would change numbers, spacing, escapes and the order of keys. Here the standard
library's C scanner reads the values, and edits replace only the characters of the values they name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from economizer.errors import InvalidRequest

_space = re.compile(r"[ \t\n\r]*").match
_scan_value = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # not in the stubs, there since 2.6
_scan_string = json.decoder.scanstring  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Member:
    """One ``"key": value`` of an object: the value, and where key and value stand in the text."""

    key: str
    value: Any
    start: int
    value_start: int
    end: int


def scan_object(text: str, start: int = 0) -> tuple[Member, ...]:
    """The members of the JSON object whose text begins at ``start``; raises ValueError when there is none.

    At ``start`` 0 the object must be the whole text.
    """
    at = _end_of_space(text, start)
    if text[at : at + 1] != "{":
        raise ValueError("must be a JSON object")
    members: list[Member] = []
    at = _end_of_space(text, at + 1)
    if text[at : at + 1] == "}":
        return _whole(text, at + 1, start, members)
    while True:
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("Expecting a key in double quotes", text, at)
        key, after_key = _scan_string(text, at + 1, True)
        colon = _end_of_space(text, after_key)
        if text[colon : colon + 1] != ":":
            raise json.JSONDecodeError("Expecting ':'", text, colon)
        value_start = _end_of_space(text, colon + 1)
        try:
            value, end = _scan_value(text, value_start)
        except StopIteration as stop:
            raise json.JSONDecodeError("Expecting a value", text, stop.value) from None
        members.append(Member(key, value, at, value_start, end))
        at = _end_of_space(text, end)
        separator = text[at : at + 1]
        if separator == "}":
            return _whole(text, at + 1, start, members)
        if separator != ",":
            raise json.JSONDecodeError("Expecting ',' or '}'", text, at)
        at = _end_of_space(text, at + 1)


def _whole(text: str, end: int, start: int, members: list[Member]) -> tuple[Member, ...]:
    if start == 0 and _end_of_space(text, end) != len(text):
        raise json.JSONDecodeError("Extra data after the object", text, end)
    return tuple(members)


def _end_of_space(text: str, at: int) -> int:
    found = _space(text, at)
    return found.end() if found else at


@dataclass(frozen=True, slots=True)
class Body:
    """A request's JSON object: its text, its members, and its values by key (of a key given twice, the last)."""

    text: str
    members: tuple[Member, ...]
    values: dict[str, Any]

    @classmethod
    def read(cls, raw: bytes) -> Body:
        """Parse a request body; raises InvalidRequest saying where it stops being JSON."""
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"The body must be UTF-8: byte {error.start} is not.", param="body") from None
        try:
            members = scan_object(text)
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}, column {error.colno}"
            raise InvalidRequest(f"The body must be JSON: {error.msg} at {place}.", param="body") from None
        except ValueError as error:
            rule = "must be JSON with numbers of fewer digits" if "digits" in str(error) else str(error)
            raise InvalidRequest(f"The body {rule}.", param="body") from None
        except RecursionError:
            raise InvalidRequest("The body must be JSON nested less deeply.", param="body") from None
        return cls(text, members, {member.key: member.value for member in members})

    def for_engine(self, model: str) -> bytes:
        """The body with ``model`` set and ``economizer`` taken out; every other character as the caller wrote it."""
        text = self.text
        parts: list[str] = []
        kept = 0
        for index, member in enumerate(self.members):
            if member.key == "model":
                parts += (text[kept : member.value_start], json.dumps(model))
                kept = member.end
            elif member.key == "economizer":
                start, end = self._with_comma(index)
                parts.append(text[kept : max(kept, start)])
                kept = end
        parts.append(text[kept:])
        return "".join(parts).encode("utf-8")

    def _with_comma(self, index: int) -> tuple[int, int]:
        """The span to cut so that a member goes together with the one comma that belonged to it."""
        member = self.members[index]
        if any(other.key != "economizer" for other in self.members[index + 1 :]):
            return member.start, self.members[index + 1].start
        return self.members[index - 1].end if index else member.start, member.end


def add_to_usage(raw: bytes, addition: Callable[[dict[str, Any]], str | None]) -> bytes:
    """An answer, or one event of a streamed answer, with ``economizer`` added at the end of its ``usage`` object.

    ``usage`` is looked for at the top and in ``response`` (where the Responses API's events have it). ``addition`` is
    given the answer's values and says what to add, as JSON, or None. What is not such an answer stays as it is: an
    addition is never worth breaking an answer for.
    """
    try:
        text = raw.decode("utf-8")
        members = scan_object(text)
        usage = _member(members, "usage")
        if usage is None and (response := _member(members, "response")) is not None:
            usage = _member(scan_object(text, response.value_start), "usage")
    except (ValueError, RecursionError):
        return raw
    if usage is None:
        return raw
    added = addition({member.key: member.value for member in members})
    if added is None:
        return raw
    at = usage.end - 1
    comma = "," if usage.value else ""
    return f'{text[:at]}{comma}"economizer":{added}{text[at:]}'.encode()


def _member(members: tuple[Member, ...], key: str) -> Member | None:
    return next((member for member in members if member.key == key and isinstance(member.value, dict)), None)

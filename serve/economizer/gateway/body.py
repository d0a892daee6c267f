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


# What may stand behind ``usage`` at the end of an answer for it to be the answer's own: members without nesting.
_rest_of_answer = re.compile(r'(?:\s*,\s*"\w+"\s*:\s*(?:null|true|false|-?[\d.eE+-]+|"[^"\\]*"))*\s*}\s*\Z').match


@dataclass(frozen=True, slots=True)
class Body:
    """A request's JSON object: its text, and its values by key (of a key given twice, the last)."""

    text: str
    values: dict[str, Any]

    @classmethod
    def read(cls, raw: bytes) -> Body:
        """Parse a request body; raises InvalidRequest saying where it stops being JSON."""
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"The body must be UTF-8: byte {error.start} is not.", param="body") from None
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}, column {error.colno}"
            raise InvalidRequest(f"The body must be JSON: {error.msg} at {place}.", param="body") from None
        except ValueError as error:
            rule = "must be JSON with numbers of fewer digits" if "digits" in str(error) else str(error)
            raise InvalidRequest(f"The body {rule}.", param="body") from None
        except RecursionError:
            raise InvalidRequest("The body must be JSON nested less deeply.", param="body") from None
        if not isinstance(values, dict):
            raise InvalidRequest("The body must be a JSON object.", param="body")
        return cls(text, values)

    def for_engine(self, model: str) -> bytes:
        """The body with ``model`` set and ``economizer`` taken out; every other character as the caller wrote it."""
        text = self.text
        if "economizer" not in self.values and (place := self._only_model()) is not None:
            return f"{text[: place[0]]}{json.dumps(model)}{text[place[1] :]}".encode()
        members = scan_object(text)
        parts: list[str] = []
        kept = 0
        for index, member in enumerate(members):
            if member.key == "model":
                parts += (text[kept : member.value_start], json.dumps(model))
                kept = member.end
            elif member.key == "economizer":
                start, end = _with_comma(members, index)
                parts.append(text[kept : max(kept, start)])
                kept = end
        parts.append(text[kept:])
        return "".join(parts).encode()

    def _only_model(self) -> tuple[int, int] | None:
        """Where the value of ``model`` stands, if its key stands in the text once and no escape could hide another."""
        text = self.text
        at = text.find('"model"')
        if at < 0 or text.find('"model"', at + 1) >= 0 or "\\u00" in text:
            return None
        colon = _end_of_space(text, at + 7)
        start = _end_of_space(text, colon + 1)
        value, end = _scan_value(text, start) if text[colon : colon + 1] == ":" else (None, 0)
        return (start, end) if value == self.values.get("model") else None


def _with_comma(members: tuple[Member, ...], index: int) -> tuple[int, int]:
    """The span to cut so that a member goes together with the one comma that belonged to it."""
    member = members[index]
    if any(other.key != "economizer" for other in members[index + 1 :]):
        return member.start, members[index + 1].start
    return members[index - 1].end if index else member.start, member.end


def add_to_usage(raw: bytes, addition: Callable[[dict[str, Any]], str | None]) -> bytes:
    """An answer, or one event of a streamed answer, with ``economizer`` added at the end of its ``usage`` object.

    ``usage`` is looked for at the top and in ``response`` (where the Responses API's events have it). ``addition`` is
    given the usage and says what to add, as JSON, or None. What is not such an answer stays as it is: an addition is
    never worth breaking an answer for.
    """
    try:
        text = raw.decode("utf-8")
        usage, end = _last_usage(text) or _any_usage(text)
    except (ValueError, RecursionError, StopIteration):
        return raw
    added = addition(usage) if usage is not None else None
    if added is None:
        return raw
    comma = "," if usage else ""
    return f'{text[: end - 1]}{comma}"economizer":{added}{text[end - 1 :]}'.encode()


def _last_usage(text: str) -> tuple[dict[str, Any], int] | None:
    """The answer's usage and where it ends, if it stands where engines write it: at the end, with little behind it."""
    at = text.rfind('"usage"')
    if at <= 0 or text[at - 1] == "\\":
        return None
    colon = _end_of_space(text, at + 7)
    start = _end_of_space(text, colon + 1)
    if text[colon : colon + 1] != ":" or text[start : start + 1] != "{":
        return None
    usage, end = _scan_value(text, start)
    return (usage, end) if _rest_of_answer(text, end) else None


def _any_usage(text: str) -> tuple[dict[str, Any] | None, int]:
    """The answer's usage and where it ends, wherever it stands; raises ValueError for what is no JSON object."""
    members = scan_object(text)
    usage = _member(members, "usage")
    if usage is None and (response := _member(members, "response")) is not None:
        usage = _member(scan_object(text, response.value_start), "usage")
    return (usage.value, usage.end) if usage is not None else (None, 0)


def _member(members: tuple[Member, ...], key: str) -> Member | None:
    return next((member for member in members if member.key == key and isinstance(member.value, dict)), None)

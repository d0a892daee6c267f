"""What is private in a text, and masks for it. Pure.

What is taken for private is what has the form: a number with an owner cannot be told from one without. Masks are words
that a tokenizer keeps and that no example needs otherwise.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, get_args

Kind = Literal["email", "card", "ip", "phone"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}(?![\w-])")
# As cards are printed: all digits in a row, four by four, or American Express's four, six and five.
_CARD = re.compile(
    r"(?<![\w.,-])(?=[2-6])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{5})(?![\w-])"
)
_IP = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?![\w:]|\.\d)")
# With a country's code, or three groups of a North American number with something between them.
_PHONE = re.compile(
    r"(?<![\w+.])(?:\+\d{1,3}[ .\-/]?(?:\(\d{1,5}\)[ .\-/]?)?\d(?:[ .\-/]?\d){5,12}"
    r"|(?:1[ .\-])?(?:\(\d{3}\) ?|\d{3}[.\-])\d{3}[.\-]\d{4})(?![\w]|[.\-]\d)"
)


def mask(text: str, kinds: Iterable[Kind]) -> tuple[str, Counter[str]]:
    """The text with ``<EMAIL>``, ``<CARD>``, ``<IP>`` or ``<PHONE>`` for each, and how often each was found."""
    found: Counter[str] = Counter()
    wanted = frozenset(kinds)
    for kind in KINDS:  # in this order: a card's digits would pass for a phone number
        if kind in wanted:
            text = _masked(text, kind, found)
    return text, found


def _masked(text: str, kind: Kind, found: Counter[str]) -> str:
    pattern, valid = _FORMS[kind]

    def replaced(match: re.Match[str]) -> str:
        if not valid(match.group()):
            return match.group()
        found[kind] += 1
        return f"<{kind.upper()}>"

    return pattern.sub(replaced, text)


def is_card(digits: str) -> bool:
    """13 to 19 digits of which the last is the check digit of Luhn's formula (ISO/IEC 7812-1), not all the same."""
    numbers = [int(digit) for digit in digits if digit.isdecimal()]
    doubled = [sum(divmod(2 * number, 10)) for number in numbers[-2::-2]]
    right = (sum(numbers[-1::-2]) + sum(doubled)) % 10 == 0
    return 13 <= len(numbers) <= 19 and right and len(set(numbers)) > 1


def _is_public_address(address: str) -> bool:
    """Whether someone may own it: 127.0.0.1, 10.0.0.1 or ::1 are everyone's, and 1.2.3.999 is none."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _always(_: str) -> bool:
    return True


_FORMS: Mapping[Kind, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "email": (_EMAIL, _always),
    "card": (_CARD, is_card),
    "ip": (_IP, _is_public_address),
    "phone": (_PHONE, _always),
}

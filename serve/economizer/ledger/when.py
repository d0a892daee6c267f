"""The time that a read-out is of, as people write it. Pure: the present is an argument.

Accounts are kept by the hour, so that a time begins and ends with whole hours.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from economizer.errors import InvalidRequest

HOUR_S = 3600
RULE = (
    "must be an ISO date or time (UTC where it names no zone), today, yesterday, this-month or last-month (which stand "
    "for their beginnings), or an age such as 15m, 24h or 7d"
)
_LENGTH = re.compile(r"([0-9]{1,9})([mhd])")
_UNIT_S = {"m": 60, "h": HOUR_S, "d": 24 * HOUR_S}


def span(since: str, until: str | None, now_s: float) -> tuple[int, int]:
    """From the beginning of the hour of ``since`` to the end of that of ``until`` (None: now), in epoch seconds.

    Raises:
        InvalidRequest: naming ``since`` or ``until``, its value and the rule.
    """
    began_s = moment_s("since", since, now_s)
    ended_s = now_s if until is None else moment_s("until", until, now_s)
    hours = int(began_s // HOUR_S), int(-(-ended_s // HOUR_S))
    if hours[0] >= hours[1]:
        raise InvalidRequest(f"until is {until or 'now'!r}: must be after since ({since!r})", param="until")
    return hours[0] * HOUR_S, hours[1] * HOUR_S


def moment_s(name: str, text: str, now_s: float) -> float:
    """The moment that a text stands for, in seconds since the epoch. Raises InvalidRequest, as ``span`` does."""
    today = datetime.fromtimestamp(now_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    month = today.replace(day=1)
    words = {
        "today": today,
        "yesterday": today - timedelta(days=1),
        "this-month": month,
        "last-month": (month - timedelta(days=1)).replace(day=1),
    }
    if text in words:
        return words[text].timestamp()
    if _LENGTH.fullmatch(text):
        found_s = now_s - length_s(name, text)
    else:
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            raise InvalidRequest(f"{name} is {text[:100]!r}: {RULE}", param=name) from None
        found_s = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    if found_s < 0:
        raise InvalidRequest(f"{name} is {text!r}: must not be before 1970", param=name)
    return found_s


def length_s(name: str, text: str) -> float:
    """The seconds of ``15m``, ``24h`` or ``7d``. Raises InvalidRequest, naming ``name``."""
    found = _LENGTH.fullmatch(text)
    if found is None:
        raise InvalidRequest(f"{name} is {text[:100]!r}: must be a length of time such as 15m, 24h or 7d", param=name)
    return float(int(found[1]) * _UNIT_S[found[2]])

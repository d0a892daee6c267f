"""The grid's carbon intensity in grams of CO2 equivalent per kWh: a constant, a table by the hour, or a provider's.

A table is a CSV file with a column ``g_per_kwh`` and either ``time`` (an hour's beginning in UTC, such as
``2025-01-31T13:00Z``) or ``hour`` (of the day in UTC, 0 to 23); other columns are left alone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from math import inf
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

from economizer.errors import require

_TIMEOUT_S = 10.0
_RETRY_S = 60.0
_ANSWER_BYTES_MAX = 65_536


class GridIntensity(Protocol):
    """What a kWh from the grid emits."""

    def at(self, wall_s: float) -> float | None:
        """g/kWh at a time in seconds since the epoch; None is unknown. Waits for nothing."""

    def refresh(self, now_s: float) -> str | None:
        """Ask where there is somebody to ask and the time has come; may take seconds. Returns what went wrong."""


@dataclass(frozen=True, slots=True)
class ConstantIntensity:
    """The same at all times; None is unknown."""

    g_per_kwh: float | None

    def at(self, wall_s: float) -> float | None:
        """The constant."""
        return self.g_per_kwh

    def refresh(self, now_s: float) -> str | None:
        """Nobody is asked."""
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class HourlyTable:
    """Intensities by the hour.

    An hour that the table does not have is taken from the same date and hour of its latest year, so that last year's
    table serves until this year's is out. Keys are (year, month, day, hour), (month, day, hour) and (hour of the day,).
    """

    g_per_kwh: Mapping[tuple[int, ...], float]

    @classmethod
    def read(cls, path: Path) -> HourlyTable:
        """The table in a CSV file.

        Raises OSError where it cannot be read, and ValueError naming the line, the column, the value and the rule.
        """
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = list(rows.fieldnames or ())
            fits = "g_per_kwh" in columns and ("time" in columns) != ("hour" in columns)
            rule = "must have the column g_per_kwh, and either time or hour"
            require(fits, f"{path.name} line 1", ",".join(columns), rule)
            column, read = ("time", _time) if "time" in columns else ("hour", _hour_of_day)
            found: dict[tuple[int, ...], float | None] = {}
            try:
                for row in rows:
                    where = f"{path.name} line {rows.line_num}: "
                    key = read(row[column], where)
                    require(key not in found, where + column, row[column], "is given twice")
                    found[key] = _intensity(row["g_per_kwh"], where)
            except csv.Error as error:
                raise ValueError(f"{path.name} line {rows.line_num}: is no CSV: {error}") from None
        known = {key: value for key, value in sorted(found.items()) if value is not None}
        require(bool(known), path.name, len(known), "must have at least one hour")
        return cls(g_per_kwh={**{key[1:]: value for key, value in known.items() if len(key) > 1}, **known})

    def at(self, wall_s: float) -> float | None:
        """The hour's intensity; None where the table has neither the hour nor its date in another year."""
        keys = _keys(datetime.fromtimestamp(wall_s, UTC))
        return next((self.g_per_kwh[key] for key in keys if key in self.g_per_kwh), None)

    def refresh(self, now_s: float) -> str | None:
        """Nobody is asked."""
        return None


def _keys(when: datetime) -> Iterator[tuple[int, ...]]:
    """What an hour is looked up by, the most exact first; a leap day takes the day before it in common years."""
    yield when.year, when.month, when.day, when.hour
    yield when.month, when.day, when.hour
    if (when.month, when.day) == (2, 29):
        yield 2, 28, when.hour
    yield (when.hour,)


def _time(text: str | None, where: str) -> tuple[int, ...]:
    rule = "must be the beginning of an hour, such as 2025-01-31T13:00Z"
    try:
        read = datetime.fromisoformat((text or "").strip())
    except ValueError:
        raise ValueError(f"{where}time is {text!r}: {rule}") from None
    when = read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    require((when.minute, when.second, when.microsecond) == (0, 0, 0), where + "time", text, rule)
    return when.year, when.month, when.day, when.hour


def _hour_of_day(text: str | None, where: str) -> tuple[int, ...]:
    digits = (text or "").strip()
    fits = digits.isascii() and digits.isdigit() and int(digits) < 24
    require(fits, where + "hour", text, "must be a whole number from 0 to 23")
    return (int(digits),)


def _intensity(text: str | None, where: str) -> float | None:
    if not (text or "").strip():
        return None
    try:
        value = float(text or "")
    except ValueError:
        value = -1.0
    rule = "must be a number of 0 or more and finite, or empty where it is unknown"
    require(0 <= value < inf, where + "g_per_kwh", text, rule)
    return value


class ProviderSettings(Protocol):
    """A provider as configurations name it, see ``variants.price.CarbonProviderSettings``."""

    @property
    def url(self) -> str: ...
    @property
    def zone(self) -> str: ...
    @property
    def header(self) -> str: ...
    @property
    def token_env(self) -> str | None: ...
    @property
    def value_path(self) -> str: ...
    @property
    def refresh_s(self) -> float: ...
    @property
    def stale_s(self) -> float: ...


class ProviderIntensity:
    """What a web service says of now. A failure never raises: the last answer holds for ``stale_s``, then None.

    ``refresh`` may run in one thread while ``at`` is called in another.
    """

    def __init__(
        self,
        *,
        url: str,
        zone: str,
        header: str,
        token: str | None,
        value_path: str,
        refresh_s: float,
        stale_s: float,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._request = Request(url.replace("{zone}", quote(zone, safe="")), headers={"Accept": "application/json"})
        if token is not None:
            # Not sent to wherever the service may redirect to.
            self._request.add_unredirected_header(header, token)
        self._name = zone or self._request.host
        self._value_path = value_path
        self._refresh_s = refresh_s
        self._stale_s = stale_s
        self._timeout_s = timeout_s
        self._asked_s = -inf
        self._wait_s = 0.0
        self._last: tuple[float, float] | None = None  # when, g/kWh

    @classmethod
    def of(cls, settings: ProviderSettings, environment: Mapping[str, str]) -> ProviderIntensity:
        """A provider as it is set up; its token is in ``environment``."""
        return cls(
            url=settings.url,
            zone=settings.zone,
            header=settings.header,
            token=environment.get(settings.token_env) if settings.token_env is not None else None,
            value_path=settings.value_path,
            refresh_s=settings.refresh_s,
            stale_s=settings.stale_s,
        )

    def at(self, wall_s: float) -> float | None:
        """The last answer, unless it came more than ``stale_s`` before or after."""
        last = self._last
        return None if last is None or abs(wall_s - last[0]) > self._stale_s else last[1]

    def refresh(self, now_s: float) -> str | None:
        """Ask if the last answer is ``refresh_s`` old, or the last failure a minute; returns what went wrong."""
        if 0 <= now_s - self._asked_s < self._wait_s:
            return None
        self._asked_s = now_s
        self._wait_s = min(_RETRY_S, self._refresh_s)
        try:
            with urlopen(self._request, timeout=self._timeout_s) as answer:
                content = json.loads(answer.read(_ANSWER_BYTES_MAX))
            value = _number(content, self._value_path)
        except HTTPError as error:
            error.close()
            hint = ": is the token right?" if error.code in (401, 403) else ""
            return self._trouble(f"HTTP {error.code}{hint}")
        except OSError as error:
            return self._trouble(str(error) or type(error).__name__)
        except (HTTPException, ValueError, RecursionError) as error:
            # Only its name: such an error's text may quote the request's headers, and so the token.
            return self._trouble(f"no JSON answer ({type(error).__name__})")
        if value is None:
            return self._trouble(f"no number of 0 or more at {self._value_path!r} in the answer")
        self._last = (now_s, value)
        self._wait_s = self._refresh_s
        return None

    def _trouble(self, what: str) -> str:
        return f"the carbon intensity of {self._name} cannot be read: {what}"


def _number(content: Any, value_path: str) -> float | None:
    """The number that a path of keys and list indices leads to; None where there is none that can be an intensity."""
    for step in value_path.split("."):
        if isinstance(content, list) and step.isascii() and step.isdigit() and int(step) < len(content):
            content = content[int(step)]
        elif isinstance(content, dict):
            content = content.get(step)
        else:
            return None
    if isinstance(content, bool) or not isinstance(content, int | float) or not 0 <= content < inf:
        return None
    try:
        return float(content)
    except OverflowError:
        return None

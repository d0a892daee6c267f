"""Which requests of a trace are sent, and arrivals drawn from a curve of rates. Everything random comes from a seed."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import msgspec

_DRAWN_MAX = 2_000_000


class TraceError(ValueError):
    """A file that is no trace, or a wish that a trace cannot fulfil; the message says what would be right."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A request of a trace; ``at_s`` counts from the trace's start, or from its window's.

    ``blocks`` are ids of the prompt's leading blocks: prompts share their beginnings as far as they share these ids.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    tenant: str | None = None
    session: str | None = None
    blocks: tuple[int, ...] = ()


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a trace is meant, in the trace's own time: at full speed, before any speed-up.

    ``requests_per_s`` thins a recorded trace at random to that mean (whole sessions stay or go), and scales a rate
    curve. None leaves things as they are.
    """

    start_s: float = 0.0
    seconds: float | None = None
    requests_per_s: float | None = None
    requests_max: int | None = None

    def __post_init__(self) -> None:
        if not self.start_s >= 0:
            raise TraceError(f"start_s is {self.start_s!r}: must be 0 or more")
        for name in ("seconds", "requests_per_s", "requests_max"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TraceError(f"{name} is {value!r}: must be above 0")


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Requests per second from ``at_s`` on, and the coefficient of variation of the time between two (1 is Poisson)."""

    at_s: float
    per_s: float
    cv: float = 1.0


def within(rows: Sequence[Row], window: Window, seed: int) -> tuple[list[Row], float]:
    """The rows of a window, timed from its start, and the share of them that was kept; raises TraceError for none."""
    end_s = float("inf") if window.seconds is None else window.start_s + window.seconds
    inside = [row for row in rows if window.start_s <= row.at_s < end_s]
    if not inside:
        last_s = max((row.at_s for row in rows), default=0.0)
        raise TraceError(f"no request from {window.start_s:g} s to {end_s:g} s: the trace ends at {last_s:.0f} s")
    share = 1.0
    if window.requests_per_s is not None:
        seconds = window.seconds or max(row.at_s for row in inside) - window.start_s
        share = window.requests_per_s * seconds / len(inside)
        if share > 1:
            raise TraceError(
                f"requests_per_s is {window.requests_per_s:g}: the trace has {len(inside) / seconds:.3g} there, in its "
                "own time; ask for at most as many, or for more speed"
            )
    kept = [row for place, row in enumerate(inside) if share == 1 or _fate(row, place, seed) < share]
    moved = (msgspec.structs.replace(row, at_s=row.at_s - window.start_s) for row in kept[: window.requests_max])
    return list(moved), share


def _fate(row: Row, place: int, seed: int) -> float:
    """In [0, 1), the same for all requests of a session."""
    return random.Random(f"{seed} kept {place if row.session is None else row.session}").random()


def read_rates(path: Path) -> list[Rate]:
    """A table ``t_s,rate_rps`` and, where known, ``rate_weighted_cv``; raises TraceError for what is none."""
    rates = [
        Rate(
            at_s=_number(path, number, line, "t_s"),
            per_s=_number(path, number, line, "rate_rps"),
            cv=_number(path, number, line, "rate_weighted_cv") if line.get("rate_weighted_cv") else 1.0,
        )
        for number, line in _table(path)
    ]
    if len(rates) < 2 or any(after.at_s <= before.at_s for before, after in pairwise(rates)):
        raise TraceError(f"{path}: t_s must rise from row to row, over two rows at least")
    if wrong := next((rate for rate in rates if rate.per_s < 0 or not rate.cv > 0), None):
        raise TraceError(f"{path}: at {wrong.at_s:g} s: rate_rps must be 0 or more, rate_weighted_cv above 0")
    return rates


def read_clients(path: Path) -> dict[str, float]:
    """Requests per second by client, from a table ``client,mean_rate_rps,...``."""
    return {
        f"client-{line.get('client')}": _number(path, number, line, "mean_rate_rps") for number, line in _table(path)
    }


def arrivals(
    rates: Sequence[Rate],
    lengths: Sequence[tuple[int, int]],
    *,
    window: Window,
    seed: int,
    clients: Mapping[str, float],
    bursty: bool,
) -> list[Row]:
    """Requests drawn from a curve of rates, timed from the window's start; raises TraceError for a window without any.

    The time from a request to the next, measured in expected requests, is gamma distributed with mean 1 and the curve's
    coefficient of variation: an inhomogeneous renewal process, Poisson where that is 1 or not ``bursty``. Lengths are
    drawn in pairs, tenants in proportion to what each client sends.
    """
    pieces = list(_pieces(rates, window))
    expected = sum((end_s - begin_s) * rate.per_s for begin_s, end_s, rate in pieces)
    if not expected or not lengths:
        raise TraceError(
            f"no request from {window.start_s:g} s on: the curve is 0 there or has ended, or lengths has none"
        )
    scale = 1.0
    if window.requests_per_s is not None:
        scale = window.requests_per_s * sum(end_s - begin_s for begin_s, end_s, _ in pieces) / expected
    wanted = min(expected * scale, window.requests_max or float("inf"))
    if wanted > _DRAWN_MAX:
        raise TraceError(f"{wanted:.3g} requests are in that window: ask for fewer seconds, per second, or in all")
    times, lengths_of, clients_of = (random.Random(f"{seed} {what}") for what in ("arrivals", "lengths", "clients"))
    names, weights = list(clients), list(accumulate(clients.values()))
    rows: list[Row] = []
    for at_s in _times(pieces, scale, times, bursty=bursty):
        if window.requests_max is not None and len(rows) >= window.requests_max:
            break
        prompt_tokens, output_tokens = lengths_of.choice(lengths)
        tenant = clients_of.choices(names, cum_weights=weights)[0] if names else None
        rows.append(
            Row(
                at_s=at_s - window.start_s,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                tenant=tenant,
            )
        )
    return rows


def _pieces(rates: Sequence[Rate], window: Window) -> Iterator[tuple[float, float, Rate]]:
    """Begin, end and rate of each piece of the curve that lies in the window; the last is as long as the one before."""
    last_s = rates[-1].at_s + (rates[-1].at_s - rates[-2].at_s)
    end_s = last_s if window.seconds is None else window.start_s + window.seconds
    for rate, until_s in zip(rates, [*(rate.at_s for rate in rates[1:]), last_s], strict=True):
        begin_s = max(rate.at_s, window.start_s)
        if begin_s < min(until_s, end_s):
            yield begin_s, min(until_s, end_s), rate


def _times(
    pieces: Sequence[tuple[float, float, Rate]], scale: float, draw: random.Random, *, bursty: bool
) -> Iterator[float]:
    left = _gap(draw, pieces[0][2], bursty=bursty)  # expected requests until the next one
    for begin_s, end_s, rate in pieces:
        now_s, per_s = begin_s, rate.per_s * scale
        while (end_s - now_s) * per_s > left:
            now_s += left / per_s
            yield now_s
            left = _gap(draw, rate, bursty=bursty)
        left -= (end_s - now_s) * per_s


def _gap(draw: random.Random, rate: Rate, *, bursty: bool) -> float:
    shape = 1.0 / rate.cv**2 if bursty else 1.0
    return draw.gammavariate(shape, 1.0 / shape)


def _table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from enumerate(csv.DictReader(file), start=2)


def _number(path: Path, number: int, line: Mapping[str, str], column: str) -> float:
    try:
        return float(line[column])
    except (KeyError, TypeError, ValueError):
        raise TraceError(f"{path} line {number}: {column} is {line.get(column)!r}: must be a number") from None

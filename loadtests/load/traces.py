"""Traces of real traffic: when requests came, and how long they and their answers were. No text is in any of them.

=====================  =================================================================================================
Azure LLM inference    CSV ``TIMESTAMP,ContextTokens,GeneratedTokens``
BurstGPT               CSV ``Timestamp,Model,Request tokens,Response tokens,...``; times are whole seconds
arrivals and lengths   CSV ``arrival_time_s,input_tokens,output_tokens``
Mooncake               JSONL ``timestamp`` in ms, ``input_length``, ``output_length``, ``hash_ids``: ids of the prompt's
                       blocks of 512 tokens, so that requests with the same first ids have the same beginning
ServeGen               CSV ``t_s,rate_rps[,rate_weighted_cv]``: a rate curve, which arrivals are drawn from
our own                JSONL ``at_s, prompt_tokens, output_tokens`` and, where wanted, ``tenant`` and ``session``
=====================  =================================================================================================

A file's format is told by its first line. Rows of no tokens are failed requests: they are left out, and counted.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TypeVar

import msgspec

from load.arrivals import Row, TraceError, Window, arrivals, read_clients, read_rates, within

MOONCAKE_BLOCK_TOKENS = 512
_Line = TypeVar("_Line")


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of a window of a trace, by time from the window's start. ``failed`` rows of the file have no tokens.

    ``share`` of the window's requests were kept, None where arrivals were drawn from a rate curve.
    """

    format: str
    rows: tuple[Row, ...]
    failed: int = 0
    share: float | None = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Columns:
    """Which columns of a CSV hold what. ``whole_s``: times are cut to whole seconds."""

    format: str
    prompt: str
    output: str
    at: str | None = None
    seconds: Callable[[str], float] = float
    session: str | None = None
    whole_s: bool = False


_CSV = (
    _Columns(
        format="Azure LLM inference",
        at="TIMESTAMP",
        prompt="ContextTokens",
        output="GeneratedTokens",
        seconds=lambda text: datetime.fromisoformat(text).timestamp(),
    ),
    _Columns(
        format="BurstGPT",
        at="Timestamp",
        prompt="Request tokens",
        output="Response tokens",
        session="Session ID",
        whole_s=True,
    ),
    _Columns(format="arrivals and lengths", at="arrival_time_s", prompt="input_tokens", output="output_tokens"),
    _Columns(format="lengths", prompt="num_prefill_tokens", output="num_decode_tokens"),
)
_RATES = {"t_s", "rate_rps"}


class _Mooncake(msgspec.Struct, frozen=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


class _Own(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    at_s: float
    prompt_tokens: int
    output_tokens: int
    tenant: str | None = None
    session: str | None = None


def read(
    path: Path,
    *,
    window: Window | None = None,
    seed: int = 0,
    lengths: Path | None = None,
    clients: Path | None = None,
    bursty: bool = True,
) -> Trace:
    """The requests in a window of a trace.

    A rate curve needs ``lengths``, a file with lengths of requests, which are drawn from it; its tenants are drawn from
    ``clients``, by default the file of that name beside it (``X_clients.csv`` of ``X_rate_10min.csv``). Its arrivals
    are a gamma process of the table's coefficient of variation, or Poisson where not ``bursty``. Raises TraceError.
    """
    window = window or Window()
    first = _first_line(path)
    if first.startswith("{"):
        format_name, rows = _read_jsonl(path, first, seed)
    elif set(first.split(",")) >= _RATES:
        drawn = _draw(path, window=window, seed=seed, lengths=lengths, clients=clients, bursty=bursty)
        return Trace(format="ServeGen", rows=tuple(drawn), share=None)
    else:
        columns = _columns(path, first)
        if columns.at is None:
            raise TraceError(f"{path} has lengths and no times: must be a trace, or name it by --lengths beside one")
        format_name, rows = columns.format, _read_csv(path, columns, seed)
    lived = [row for row in rows if row.prompt_tokens > 0 and row.output_tokens > 0]
    kept, share = within(lived, window, seed)
    return Trace(format=format_name, rows=tuple(kept), failed=len(rows) - len(lived), share=share)


def read_lengths(path: Path) -> list[tuple[int, int]]:
    """Prompt and output tokens of each request in a trace, or in a table of lengths alone; raises TraceError."""
    first = _first_line(path)
    rows = _read_jsonl(path, first, 0)[1] if first.startswith("{") else _read_csv(path, _columns(path, first), 0)
    return [(row.prompt_tokens, row.output_tokens) for row in rows if row.prompt_tokens > 0 and row.output_tokens > 0]


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.readline().strip()
    except UnicodeDecodeError:
        raise TraceError(f"{path} is not text: must be a trace as CSV or JSONL, not compressed") from None


def _columns(path: Path, first: str) -> _Columns:
    names = set(first.split(","))
    for columns in _CSV:
        if names >= {columns.prompt, columns.output} and (columns.at is None or columns.at in names):
            return columns
    known = "; ".join(",".join(n for n in (c.at, c.prompt, c.output) if n) for c in _CSV)
    raise TraceError(
        f"{path} begins with {first[:80]!r}: must be a CSV header with {known}; {','.join(sorted(_RATES))}; or JSONL "
        "with timestamp, input_length, output_length, or with at_s, prompt_tokens, output_tokens"
    )


def _read_csv(path: Path, columns: _Columns, seed: int) -> list[Row]:
    """By time; the first request is at 0 s."""
    rows: list[Row] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, line in enumerate(csv.DictReader(file), start=2):
            value = _Values(path, number, line)
            rows.append(
                Row(
                    at_s=value(columns.at, columns.seconds) if columns.at else 0.0,
                    prompt_tokens=int(value(columns.prompt, float)),
                    output_tokens=int(value(columns.output, float)),
                    session=(line.get(columns.session) or None) if columns.session else None,
                )
            )
    rows = _from_zero(rows)
    whole = columns.whole_s and all(row.at_s.is_integer() for row in rows)
    return _spread(rows, 1.0, seed) if whole else rows


class _Values:
    """The values of a line of CSV; raises TraceError where one is missing or cannot be read."""

    def __init__(self, path: Path, number: int, line: Mapping[str, str | None]) -> None:
        self._where = f"{path} line {number}"
        self._line = line

    def __call__(self, column: str, convert: Callable[[str], float]) -> float:
        text = self._line.get(column)
        try:
            return convert(text or "")
        except ValueError:
            raise TraceError(f"{self._where}: {column} is {text!r}: must be a number or a time") from None


def _read_jsonl(path: Path, first: str, seed: int) -> tuple[str, list[Row]]:
    try:
        keys = set(msgspec.json.decode(first, type=dict[str, object]))
    except msgspec.DecodeError as error:
        raise TraceError(f"{path} line 1 is not JSON: {error}") from None
    if keys >= {"timestamp", "input_length", "output_length"}:
        blocked = [
            Row(
                at_s=one.timestamp / 1e3,
                prompt_tokens=one.input_length,
                output_tokens=one.output_length,
                blocks=one.hash_ids,
            )
            for one in _lines(path, _Mooncake)
        ]
        rows = _from_zero(blocked)
        return "Mooncake", _spread(rows, _tick_s(rows), seed)
    if keys >= {"at_s", "prompt_tokens", "output_tokens"}:
        own = [msgspec.convert(msgspec.to_builtins(one), Row) for one in _lines(path, _Own)]
        return "our own", sorted(own, key=lambda row: row.at_s)
    raise TraceError(
        f"{path} has {', '.join(sorted(keys))} in its first line: must have timestamp, input_length and output_length "
        "(Mooncake) or at_s, prompt_tokens and output_tokens"
    )


def _lines(path: Path, kind: type[_Line]) -> Iterator[_Line]:
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield decoder.decode(line)
                except msgspec.DecodeError as error:
                    raise TraceError(f"{path} line {number}: {error}") from None


def _from_zero(rows: list[Row]) -> list[Row]:
    """By time, the first at 0 s; rows of the same time keep their order."""
    ordered = sorted(rows, key=lambda row: row.at_s)
    start_s = ordered[0].at_s if ordered else 0.0
    return [msgspec.structs.replace(row, at_s=row.at_s - start_s) for row in ordered]


def _tick_s(rows: list[Row]) -> float:
    """The grid that times are cut to: the usual distance from one time in use to the next."""
    times_s = sorted({row.at_s for row in rows})
    return median(after - before for before, after in pairwise(times_s)) if len(times_s) > 1 else 0.0


def _spread(rows: list[Row], tick_s: float, seed: int) -> list[Row]:
    """Rows that came within a tick, spread over it at random: a tick's requests did not all come at its beginning.

    Those of one tick keep their order.
    """
    draw = random.Random(f"{seed} ticks")
    ticks: dict[float, list[Row]] = {}
    for row in rows:
        ticks.setdefault(row.at_s, []).append(row)
    return [
        msgspec.structs.replace(row, at_s=at_s + offset_s)
        for at_s, together in ticks.items()
        for offset_s, row in zip(sorted(draw.uniform(0, tick_s) for _ in together), together, strict=True)
    ]


def _draw(
    path: Path, *, window: Window, seed: int, lengths: Path | None, clients: Path | None, bursty: bool
) -> list[Row]:
    if lengths is None:
        raise TraceError(f"{path} is a rate curve and says nothing of lengths: name a file that does by --lengths")
    beside = path.with_name(path.name.replace("_rate_10min", "_clients"))
    if clients is None and beside != path and beside.exists():
        clients = beside
    return arrivals(
        read_rates(path),
        read_lengths(lengths),
        window=window,
        seed=seed,
        clients=read_clients(clients) if clients is not None else {},
        bursty=bursty,
    )

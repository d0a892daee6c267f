"""The tables of the gateway's benchmark: medians over the rounds, their spread, and ours over the bare pass-through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import decide_cost

_REQUEST_RATIO_MAX = 1.3
_CHUNK_RATIO_MAX = 1.2
_BOOKING_RATIO_MAX = 1.05
_DECIDE_US_MAX = 200.0
STORES_FULL = 20_000  # requests, each of another user and session, after which all bounded stores are full


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One phase of one round on one target. CPU seconds are net of what the same processes burn when idle.
    ``books_s`` is the bookkeeper's.

    ``ray_s`` is everything below ``economizer up`` but the engines: HAProxy, all replicas, Serve's controller, Ray.
    """

    target: str
    phase: str
    requests: int
    chunks: int
    reads: int
    wall_s: float
    latency_s: tuple[float, ...]
    haproxy_s: float
    ingress_s: float
    books_s: float
    ray_s: float

    @property
    def cpu_us_per_request(self) -> float:
        return (self.haproxy_s + self.ingress_s) / self.requests * 1e6

    @property
    def ingress_us_per_request(self) -> float:
        return self.ingress_s / self.requests * 1e6

    @property
    def books_us_per_request(self) -> float:
        return self.books_s / self.requests * 1e6

    @property
    def ray_us_per_request(self) -> float:
        return self.ray_s / self.requests * 1e6

    @property
    def cpu_us_per_chunk(self) -> float:
        return (self.haproxy_s + self.ingress_s) / self.chunks * 1e6

    @property
    def ingress_us_per_chunk(self) -> float:
        return self.ingress_s / self.chunks * 1e6

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.wall_s

    @property
    def chunks_per_s(self) -> float:
        return self.chunks / self.wall_s

    @property
    def chunks_per_read(self) -> float:
        return self.chunks / self.reads

    @property
    def p50_ms(self) -> float:
        return self.latency_s[len(self.latency_s) // 2] * 1e3

    @property
    def p99_ms(self) -> float:
        return self.latency_s[int(0.99 * (len(self.latency_s) - 1))] * 1e3


Rounds = Sequence[Sequence[Measured]]
Value = Callable[[Measured], float]

_TARGETS = ("ours", "unbooked", "bare", "straight")
_REQUEST = "CPU us/request, c=32"
_CHUNK = "CPU us/chunk, one each 10 ms, c=32"


@dataclass(frozen=True, slots=True)
class _Row:
    label: str
    key: str
    phase: str
    value: Value
    digits: int = 0


_ROWS = (
    _Row("CPU us/request, c=1", "cpu_us_request_c1", "whole-c1", lambda m: m.cpu_us_per_request),
    _Row(_REQUEST, "cpu_us_request", "whole-c32", lambda m: m.cpu_us_per_request),
    _Row("  of that the ingress replica", "ingress_us_request", "whole-c32", lambda m: m.ingress_us_per_request),
    _Row("  and the bookkeeper", "books_us_request", "whole-c32", lambda m: m.books_us_per_request),
    _Row("  all of Ray, without engines", "ray_us_request", "whole-c32", lambda m: m.ray_us_per_request),
    _Row(_CHUNK, "cpu_us_chunk", "paced-c32", lambda m: m.cpu_us_per_chunk, 1),
    _Row("  of that the ingress replica", "ingress_us_chunk", "paced-c32", lambda m: m.ingress_us_per_chunk, 1),
    _Row("  chunks that came in one read", "chunks_per_read", "paced-c32", lambda m: m.chunks_per_read, 1),
    _Row("CPU us/chunk, burst, c=32", "cpu_us_chunk_burst", "burst-c32", lambda m: m.cpu_us_per_chunk, 1),
    _Row("  chunks that came in one read", "chunks_per_read_burst", "burst-c32", lambda m: m.chunks_per_read, 1),
    _Row("chunks/s, burst, c=1", "chunks_per_s_c1", "burst-c1", lambda m: m.chunks_per_s),
    _Row("chunks/s, burst, c=32", "chunks_per_s", "burst-c32", lambda m: m.chunks_per_s),
    _Row("requests/s, c=32", "requests_per_s", "whole-c32", lambda m: m.requests_per_s),
    _Row("p50 ms, c=1", "p50_ms_c1", "whole-c1", lambda m: m.p50_ms, 2),
    _Row("p99 ms, c=1", "p99_ms_c1", "whole-c1", lambda m: m.p99_ms, 2),
    _Row("p50 ms, c=32", "p50_ms_c32", "whole-c32", lambda m: m.p50_ms, 1),
    _Row("p99 ms, c=32", "p99_ms_c32", "whole-c32", lambda m: m.p99_ms, 1),
)
_ADDED = tuple(row for row in _ROWS if row.key.startswith("p"))


def write(
    rounds: Rounds,
    *,
    idle: Mapping[str, float],
    curve: Sequence[tuple[int, float]],
    decide_us: Mapping[tuple[int, int], float],
) -> dict[str, object]:
    """Print the tables; returns the figures that the last line carries."""
    last: dict[str, object] = {}
    for key, label, control, limit in (
        ("request", _REQUEST, "bare", _REQUEST_RATIO_MAX),
        ("chunk", _CHUNK, "bare", _CHUNK_RATIO_MAX),
        ("booking", _REQUEST, "unbooked", _BOOKING_RATIO_MAX),
    ):
        row = next(row for row in _ROWS if row.label == label)
        ratios = [ours / other for ours, other in zip(_of(rounds, "ours", row), _of(rounds, control, row), strict=True)]
        last[f"cpu_ratio_{key}"] = round(median(ratios), 3)
        last[f"cpu_ratio_{key}_rounds"] = [round(ratio, 3) for ratio in ratios]
        print(f"{label}: ours over {control} {_cell(ratios, 3)}, wanted {limit:g} at most")
    last |= _write_decide(decide_us)
    last |= _write_curve(curve)
    last |= _write_table(rounds, idle)
    return last


def _write_decide(decide_us: Mapping[tuple[int, int], float]) -> dict[str, object]:
    stated_us = decide_us[decide_cost.STATED]
    print(f"decide, 10 variants x 32 replicas: {stated_us:.0f} us of CPU, wanted below {_DECIDE_US_MAX:g}")
    for (variants, replicas), took_us in decide_us.items():
        per = f"{took_us / variants:.1f} us a variant"
        print(f"  {variants:3} variants x {replicas:3} replicas {took_us:8.1f} us   {per}")
    return {"decide_us": round(stated_us, 1)}


def _write_curve(curve: Sequence[tuple[int, float]]) -> dict[str, object]:
    """``curve``: requests sent so far, and what the ingress replica then held in MB."""
    full, full_mb = next((point for point in curve if point[0] >= STORES_FULL), curve[0])
    last, last_mb = curve[-1]
    print(f"memory of the ingress replica: {last_mb - full_mb:+.1f} MB from request {full} to request {last}")
    print("  " + "  ".join(f"{requests}: {rss_mb:.0f}" for requests, rss_mb in curve))
    return {
        "rss_growth_mb": round(last_mb - full_mb, 1),
        "rss_mb": [[requests, round(rss_mb, 1)] for requests, rss_mb in curve],
    }


def _write_table(rounds: Rounds, idle: Mapping[str, float]) -> dict[str, object]:
    print(f"\nmedian (least-most) of {len(rounds)} rounds; CPU time is HAProxy's and the ingress replica's, less idle")
    print(f"{'':36}{'ours':>24}{'without books':>24}{'bare':>24}{'engine alone':>24}{'ours/bare':>20}")
    last: dict[str, object] = {}
    for row in _ROWS:
        found = [_of(rounds, target, row) for target in _TARGETS]
        cells = [_cell(values, row.digits) if any(values) else "" for values in found]
        ratios = [ours / bare for ours, bare in zip(found[0], found[2], strict=True) if bare]
        print(
            f"{row.label:36}" + "".join(f"{cell:>24}" for cell in cells) + f"{_cell(ratios, 2) if ratios else '':>20}"
        )
        last[row.key] = {
            target: round(median(values), 3) for target, values in zip(_TARGETS, found, strict=True) if any(values)
        }
    for row in _ADDED:
        alone = _of(rounds, "straight", row)
        added = [[of - base for of, base in zip(_of(rounds, t, row), alone, strict=True)] for t in _TARGETS[:3]]
        print(f"{'added ' + row.label:36}" + "".join(f"{_cell(values, row.digits):>24}" for values in added))
        last[f"added_{row.key}"] = {t: round(median(values), 3) for t, values in zip(_TARGETS, added, strict=False)}
    print(f"{'idle CPU of the ingress, ms/s':36}" + "".join(f"{idle[t] * 1e3:>24.1f}" for t in _TARGETS[:3]))
    return last


def _of(rounds: Rounds, target: str, row: _Row) -> list[float]:
    """The row's figure of each round; empty where the target was not measured so."""
    return [row.value(m) for measured in rounds for m in measured if (m.target, m.phase) == (target, row.phase)]


def _cell(values: Sequence[float], digits: int) -> str:
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"

"""What one server did with one replay, and tables over several: medians and spreads, and each over the bare engines.

``paced`` requests come when the plan says; they tell latency and joules. ``burst`` requests come all at once; they tell
throughput. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from msgspec.structs import replace

from load.statistics import percentile
from load.types import Message, Outcome, Planned

BARE = "bare"
PACED, BURST = "paced", "burst"
_UJ_PER_J = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Took:
    """What work took in a span: microjoules above idle and CPU seconds, of the server's own processes and the engines'.

    ``idle_uj`` is what the server's processes would have taken without a request. None is not known.
    """

    seconds: float
    own_uj: int | None
    idle_uj: float | None = None
    own_cpu_s: float | None
    engines_uj: int | None
    method: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One replay through one server."""

    round: int
    server: str
    phase: str
    planned: Sequence[Planned]
    outcomes: Sequence[Outcome]
    took: Took

    @property
    def answered(self) -> list[Outcome]:
        """Those that were answered whole."""
        return [one for one in self.outcomes if one.answered]

    @property
    def exact(self) -> int:
        """How many answers have just the wanted number of tokens, so that all servers' engines did the same work."""
        wanted = {one.number: one.output_tokens for one in self.planned}
        return sum(one.output_tokens == wanted[one.number] for one in self.answered)

    @property
    def wall_s(self) -> float:
        """From the first request's due time to the last one's end."""
        return max(one.ended_s for one in self.outcomes) - min(one.due_s for one in self.outcomes)

    def per_answer(self, amount: float | None) -> float | None:
        """An amount of the whole pass, for each answer."""
        return None if amount is None or not self.answered else amount / len(self.answered)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: what it is called there and in JSON, of which phase, and how it comes of a pass."""

    label: str
    key: str
    phase: str
    of: Callable[[Pass], float | None]
    digits: int


def _latency(value: Callable[[Outcome], float | None], rank: float) -> Callable[[Pass], float | None]:
    def of(one: Pass) -> float | None:
        known = [found for outcome in one.answered if (found := value(outcome)) is not None]
        at = percentile(known, rank)
        return None if at is None else at * 1e3

    return of


ROWS = (
    Row("TTFT p50, ms", "ttft_ms_p50", PACED, _latency(lambda one: one.ttft_s, 50), 0),
    Row("TTFT p95, ms", "ttft_ms_p95", PACED, _latency(lambda one: one.ttft_s, 95), 0),
    Row("TPOT p50, ms", "tpot_ms_p50", PACED, _latency(lambda one: one.tpot_s, 50), 1),
    Row("TPOT p95, ms", "tpot_ms_p95", PACED, _latency(lambda one: one.tpot_s, 95), 1),
    Row("end to end p50, ms", "e2e_ms_p50", PACED, _latency(lambda one: one.e2e_s, 50), 0),
    Row("end to end p95, ms", "e2e_ms_p95", PACED, _latency(lambda one: one.e2e_s, 95), 0),
    Row("J/request, engines", "engines_j", PACED, lambda p: p.per_answer(_joules(p.took.engines_uj)), 3),
    Row("J/request, server", "own_j", PACED, lambda p: p.per_answer(_joules(p.took.own_uj)), 4),
    Row("J/request, server, less idle", "added_j", PACED, lambda p: p.per_answer(_joules(_added_uj(p.took))), 4),
    Row("J/request, both", "both_j", PACED, lambda p: p.per_answer(_both_j(p.took)), 3),
    Row("CPU ms/request, server", "own_cpu_ms", PACED, lambda p: p.per_answer(_ms(p.took.own_cpu_s)), 2),
    Row("requests/s, burst", "requests_per_s", BURST, lambda p: len(p.answered) / p.wall_s, 2),
    Row("output tokens/s, burst", "tokens_per_s", BURST, lambda p: _tokens(p) / p.wall_s, 0),
    Row("CPU ms/request, server, burst", "own_cpu_ms_burst", BURST, lambda p: p.per_answer(_ms(p.took.own_cpu_s)), 2),
)


def _added_uj(took: Took) -> float | None:
    return None if took.own_uj is None or took.idle_uj is None else max(0.0, took.own_uj - took.idle_uj)


def _joules(uj: float | None) -> float | None:
    return None if uj is None else uj / _UJ_PER_J


def _both_j(took: Took) -> float | None:
    return None if took.own_uj is None or took.engines_uj is None else (took.own_uj + took.engines_uj) / _UJ_PER_J


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _tokens(one: Pass) -> int:
    return sum(outcome.output_tokens or 0 for outcome in one.answered)


def marked(plan: Sequence[Planned], mark: str) -> list[Planned]:
    """The same requests with ``mark`` before each first message, so that no engine has them in its prefix cache."""
    found = []
    for one in plan:
        first, *others = one.messages
        beginning = Message(role=first.role, content=f"[{mark}] {first.content}")
        found.append(replace(one, messages=(beginning, *others)))
    return found


def table(passes: Sequence[Pass], servers: Sequence[str], idle_mw: Mapping[str, float | None]) -> Iterator[str]:
    """Medians (least-most) over the rounds by server."""
    yield f"{'':32}" + "".join(f"{server:>24}" for server in servers)
    for row in ROWS:
        cells = [_cell(_values(passes, server, row), row.digits) for server in servers]
        yield f"{row.label:32}" + "".join(f"{cell:>24}" for cell in cells)
    for phase in (PACED, BURST):
        counts = [_answered(passes, server, phase) for server in servers]
        yield f"{f'answered, of the wanted length, {phase}':40}"[:40] + "".join(
            f"{cell:>{16 if place == 0 else 24}}" for place, cell in enumerate(counts)
        )
    known = [idle_mw.get(server) for server in servers]
    yield f"{'idle, mW above a waiting core':32}" + "".join(
        f"{'-' if value is None else f'{value:.1f}':>24}" for value in known
    )


def figures(passes: Sequence[Pass], servers: Sequence[str], idle_mw: Mapping[str, float | None]) -> dict[str, object]:
    """What the last line of output says: by server the medians, each round's values, and both over the bare engines."""
    found: dict[str, object] = {}
    for server in servers:
        mine: dict[str, object] = {"idle_mw": idle_mw.get(server)}
        for row in ROWS:
            values = _values(passes, server, row)
            ratios = _ratios(passes, server, row)
            mine[row.key] = None if not values else round(median(values), 4)
            mine[f"{row.key}_rounds"] = [round(value, 4) for value in values]
            mine[f"{row.key}_over_bare"] = None if not ratios else round(median(ratios), 3)
        for phase in (PACED, BURST):
            mine[f"answered_{phase}"] = _answered(passes, server, phase)
        found[server] = mine
    return found


def _of(passes: Sequence[Pass], server: str, phase: str) -> list[Pass]:
    return [one for one in passes if (one.server, one.phase) == (server, phase)]


def _values(passes: Sequence[Pass], server: str, row: Row) -> list[float]:
    return [value for one in _of(passes, server, row.phase) if (value := row.of(one)) is not None]


def _ratios(passes: Sequence[Pass], server: str, row: Row) -> list[float]:
    """Of each round that has both."""
    bare = {one.round: row.of(one) for one in _of(passes, BARE, row.phase)}
    pairs = [(row.of(one), bare.get(one.round)) for one in _of(passes, server, row.phase)]
    return [value / base for value, base in pairs if value is not None and base]


def _answered(passes: Sequence[Pass], server: str, phase: str) -> str:
    """``60/60 (60)``: answered, of those sent, and of those answered how many had the wanted length."""
    mine = _of(passes, server, phase)
    answered, sent = sum(len(one.answered) for one in mine), sum(len(one.outcomes) for one in mine)
    return f"{answered}/{sent} ({sum(one.exact for one in mine)})"


def _cell(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"

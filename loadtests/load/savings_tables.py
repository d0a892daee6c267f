"""What the comparison came to, as Markdown for people and as a last line of JSON for machines. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from load.delivered import Delivered
from load.savings import Side, ratio
from load.statistics import Estimate

# Joules per request of the full model alone over Economizer's that are wanted of the shipped mixes on two cores.
WANTED = {"strict": 1.15, "mixed": 1.5, "relaxed": 2.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """Both sides of one mix and policy, of the rounds that both have, and the quality that ours delivered."""

    mix: str
    policy: str
    full: Side
    ours: Side
    delivered: Delivered
    quality_source: str

    @property
    def reached(self) -> bool | None:
        """Whether it is as much as wanted, with all terms kept as well; None of a mix of which nothing is wanted."""
        wanted, saved = WANTED.get(self.mix), self.saved("usage_j").value
        if wanted is None or saved is None:
            return None
        kept = self.delivered.kept in (None, 1.0)
        return saved >= wanted and kept and (self.slo(self.ours).value or 0) >= (self.slo(self.full).value or 0)

    def saved(self, amount: str) -> Estimate:
        """How many times as much the full model alone takes for a request."""
        return ratio(self.full, self.ours, amount)

    def slo(self, side: Side) -> Estimate:
        """The share of requests that were answered within their latency terms."""
        return side.of_requests(side.in_time())

    def engines_alone(self) -> float | None:
        """The ratio of joules if all that is no engine took none."""
        full, ours = (_mean(side, "usage_j") for side in (self.full, self.ours))
        gateway = _mean(self.ours, "gateway_j")
        return None if full is None or ours is None or gateway is None else full / (ours - gateway)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One fleet on the way from the full model alone to Economizer, and what changes to it from the one before."""

    name: str
    change: str
    side: Side


def comparison(pairs: Sequence[Compared]) -> str:
    """The table of one mix: the full model alone, and each policy beside it."""
    full = pairs[0].full
    lines = [["", f"full model x {full.runs[0].ran.engines}"]]
    for each in pairs:
        lines[0] += [each.policy, f"full / {each.policy}"]
    for label, amount, unit in _AMOUNT_ROWS:
        cells = [label, _rounds(full, amount, unit)]
        for each in pairs:
            cells += [_rounds(each.ours, amount, unit), "" if amount in _PARTS else _times(each.saved(amount))]
        lines.append(cells)
    lines.append(_row("in time, %", full, pairs, _in_time))
    for label, name, rank in _LATENCY_ROWS:
        lines.append(_row(label, full, pairs, partial(_latency, name=name, rank=rank)))
    lines.append(_row("engines, on average", full, pairs, lambda side: f"{side.engines():.2f}"))
    lines.append(_row("answers by variant, %", full, pairs, _shares))
    lines.append(_row("requests sent (answered)", full, pairs, _counts))
    lines += _own(pairs)
    lines += _quality(pairs)
    return _markdown(lines)


def steps(chain: Sequence[Step]) -> str:
    """Where the saving comes from: joules per request of each fleet, and what each change made."""
    lines = [["fleet", "what changed", "usage J", "change", "idle J", "change", "J per output token", "in time, %"]]
    before: Step | None = None
    for step in chain:
        cells = [step.name, step.change]
        for amount in ("usage_j", "idle_j"):
            value = _mean(step.side, amount)
            past = None if before is None else _mean(before.side, amount)
            cells.append(_number(value))
            cells.append("" if value is None or past is None else f"{value - past:+.3g}")
        lines.append([*cells, _number(step.side.per_output_token()), _in_time(step.side)])
        before = step
    return _markdown(lines)


def verdict(each: Compared) -> str:
    """In a sentence: what was saved, whether it was as much as wanted, and what it would be without the gateway."""
    saved, wanted = each.saved("usage_j"), WANTED.get(each.mix)
    slo_full, slo_ours = each.slo(each.full).value, each.slo(each.ours).value
    words = f"{each.mix}, {each.policy}: {_times(saved)} fewer joules per request"
    words += "" if wanted is None else f" ({wanted:g}x wanted)"
    words += f"; in time {_percent(slo_ours)} against {_percent(slo_full)}"
    words += f"; floors kept {_percent(each.delivered.kept)}" if each.delivered.with_floor else "; no floors asked for"
    if each.reached is not None:
        words += ": reached" if each.reached else ": not reached"
    alone, gateway = each.engines_alone(), _mean(each.ours, "gateway_j")
    if alone is not None and gateway is not None:
        words += f". Engines alone: {alone:.2f}x; the gateway, HAProxy and Ray took {gateway:.3g} J per request"
    return words + "."


def result(each: Compared) -> dict[str, Any]:
    """What the last line says of one mix and policy; ratios are the full model's amount per request over ours."""
    found: dict[str, Any] = {"mix": each.mix, "policy": each.policy, "rounds": len(each.ours.runs)}
    for key, amount in _RATIOS.items():
        saved = each.saved(amount)
        found[key] = _rounded(saved.value)
        found[f"{key}_interval"] = [_rounded(saved.low), _rounded(saved.high)]
    found["energy_ratio_engines"] = _rounded(each.engines_alone())
    found |= {"slo_full": _rounded(each.slo(each.full).value), "slo_ours": _rounded(each.slo(each.ours).value)}
    found |= {"floors_kept": _rounded(each.delivered.kept), "quality": _rounded(each.delivered.mean)}
    return found | {"quality_source": each.quality_source, "reached": each.reached}


_RATIOS = {
    "energy_ratio": "usage_j",
    "energy_ratio_allocation": "allocation_j",
    "cost_ratio": "usage_usd",
    "cost_ratio_allocation": "allocation_usd",
}
_AMOUNT_ROWS = (
    ("J per request, usage", "usage_j", 1.0),
    ("of it the gateway, HAProxy, Ray", "gateway_j", 1.0),
    ("J per request, allocation", "allocation_j", 1.0),
    ("of it idle", "idle_j", 1.0),
    ("USD per million requests, usage", "usage_usd", 1e6),
    ("USD per million requests, allocation", "allocation_usd", 1e6),
)
_LATENCY_ROWS = (
    ("TTFT p50, ms", "ttft_s", 50),
    ("TTFT p95, ms", "ttft_s", 95),
    ("TPOT p50, ms", "tpot_s", 50),
    ("TPOT p95, ms", "tpot_s", 95),
)
_PARTS = frozenset({"gateway_j", "idle_j"})


def _row(label: str, full: Side, pairs: Sequence[Compared], cell: Callable[[Side], str]) -> list[str]:
    cells = [label, cell(full)]
    for each in pairs:
        cells += [cell(each.ours), ""]
    return cells


def _own(pairs: Sequence[Compared]) -> list[list[str]]:
    """What our own books say per request, beside the instrument that both sides have."""
    usage, allocation = ["its own bill: J per request, usage", ""], ["its own bill: with idle", ""]
    for each in pairs:
        bills = [run.ran.bill for run in each.ours.runs if run.ran.bill is not None]
        answers = float(each.ours.answers.sum())
        for cells, name in ((usage, "energy_j"), (allocation, "with_idle_j")):
            amounts = [getattr(bill, name) for bill in bills]
            known = len(bills) == len(each.ours.runs) and None not in amounts and answers
            cells.append(f"{sum(amounts) / answers:.3g}" if known else "not known")
            cells.append("")
    return [usage, allocation]


def _quality(pairs: Sequence[Compared]) -> list[list[str]]:
    mean, kept = [f"quality delivered ({pairs[0].quality_source})", "1"], ["floors kept, % (for sure)", ""]
    for each in pairs:
        found = each.delivered
        mean += [_number(found.mean), ""]
        kept += [f"{_percent(found.kept)} ({_percent(found.kept_for_sure)})" if found.with_floor else "none asked", ""]
    return [mean, kept]


def _mean(side: Side, amount: str) -> float | None:
    return side.per_request(amount).value()


def _rounds(side: Side, amount: str, unit: float) -> str:
    """The median of the rounds, and the least and the most."""
    each = [value * unit for value in side.each_round(amount)]
    if not each:
        return "not known"
    return f"{median(each):.3g}" + (f" ({min(each):.3g}-{max(each):.3g})" if len(each) > 1 else "")


def _figure(found: Estimate, unit: float) -> str:
    if found.value is None:
        return "not known"
    spread = "" if found.low is None or found.high is None else f" ({found.low * unit:.3g}-{found.high * unit:.3g})"
    return f"{found.value * unit:.3g}{spread}"


def _times(found: Estimate) -> str:
    if found.value is None:
        return "not known"
    return f"{found.value:.2f}x" + ("" if found.low is None else f" ({found.low:.2f}-{found.high:.2f})")


def _percent(share: float | None) -> str:
    return "not known" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3g}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _in_time(side: Side) -> str:
    return _figure(side.of_requests(side.in_time()), 100)


def _latency(side: Side, *, name: str, rank: float) -> str:
    return _figure(side.of_requests(side.latency(name, rank)), 1000)


def _shares(side: Side) -> str:
    return ", ".join(f"{name} {100 * share:.0f}" for name, share in side.variants().items())


def _counts(side: Side) -> str:
    return f"{sum(run.ran.planned for run in side.runs)} ({int(side.answers.sum())})"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rows])

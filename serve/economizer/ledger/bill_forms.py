"""A bill as a table for people, as CSV, and as JSON. Pure."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from io import StringIO
from typing import Any

from economizer.ledger.bill import MICRO, Bill, Spent
from economizer.ledger.types import KINDS, Amounts, MeterRow
from economizer.ledger.when import HOUR_S

_KJ_FROM_UJ = 10_000 * MICRO  # a table goes over to kJ where its largest amount is at least 10 kJ
_NOBODY = "(nobody)"
_UNKNOWN = "unknown"
_COUNTS = ("requests", "prompt_tokens", "cached_tokens", "output_tokens")


def difference(bill: Bill) -> str:
    """What the meters and the price list came to beyond the accounts, in micro-units; empty where the bill closes."""
    beyond = bill.difference
    parts = [(beyond.energy_uj, "uJ"), (beyond.cost_uusd, "uUSD"), (beyond.carbon_ug, "ug")]
    return ", ".join(f"{amount:+d} {unit}" for amount, unit in parts if amount)


def table(bill: Bill) -> str:
    """Aligned columns, a line of totals, and how the whole adds up."""
    energy_unit, joules = _energy_form(bill)
    heads = [*bill.by, "requests", "prompt", "cached", "output"]
    for title in (f"energy {energy_unit}", "cost USD", "carbon g"):
        heads += [title, "with idle"]
    forms = (joules, _micro, _micro)

    def cells(group: Sequence[str], spent: Spent) -> list[str]:
        amounts = zip(forms, _parts(spent.usage), _parts(spent.with_idle), strict=True)
        both = [form(amount) for form, usage, with_idle in amounts for amount in (usage, with_idle)]
        return [*group, *(str(getattr(spent, name)) for name in _COUNTS), *both]

    lines = [heads]
    for row in bill.rows:
        named = zip(bill.by, row.group, strict=True)
        lines.append(cells([value or (_NOBODY if word == "tenant" else "") for word, value in named], row.spent))
    lines.append(cells(["total", *[""] * (len(bill.by) - 1)], bill.total))
    scope = [f"{word} {value}" for word, value in (("tenant", bill.tenant), ("family", bill.family)) if value]
    span = f"{_iso(bill.since_s)} to {_iso(bill.until_s)}{''.join(f', {word}' for word in scope)}"
    return "\n".join([span, "", *_aligned(lines, left=len(bill.by)), "", *_sums(bill, energy_unit, joules)])


def as_csv(bill: Bill) -> str:
    """One line per row in whole micro-units, with a header; what is unknown is empty."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("energy_uj", "cost_uusd", "carbon_ug")
    writer.writerow([*bill.by, *_COUNTS, *names, *(f"with_idle_{name}" for name in names)])
    for row in bill.rows:
        counts = [getattr(row.spent, name) for name in _COUNTS]
        writer.writerow([*row.group, *counts, *_parts(row.spent.usage), *_parts(row.spent.with_idle)])
    return text.getvalue()


def as_json(bill: Bill) -> dict[str, Any]:
    """Whole micro-units, and the same as floats in joules, dollars and grams; what is unknown is null."""
    return {
        "since": _iso(bill.since_s),
        "until": _iso(bill.until_s),
        "tenant": bill.tenant,
        "family": bill.family,
        "totals": _totals_json(bill),
        "rows": [{**dict(zip(bill.by, row.group, strict=True)), **_spent_json(row.spent)} for row in bill.rows],
        "meters": [_meter_json(row) for row in bill.meters],
        "closes": bill.closes,
        "difference": amounts_json(bill.difference),
    }


def amounts_json(amounts: Amounts) -> dict[str, int | float | None]:
    """Amounts in whole micro-units and in joules, dollars and grams."""
    units = (("energy_uj", "energy_j"), ("cost_uusd", "cost_usd"), ("carbon_ug", "carbon_g"))
    found: dict[str, int | float | None] = {}
    for (whole, unit), amount in zip(units, _parts(amounts), strict=True):
        found[whole] = amount
        found[unit] = None if amount is None else amount / MICRO
    return found


def _spent_json(spent: Spent) -> dict[str, Any]:
    counts = {name: getattr(spent, name) for name in _COUNTS}
    return {**counts, "usage": amounts_json(spent.usage), "with_idle": amounts_json(spent.with_idle)}


def _totals_json(bill: Bill) -> dict[str, Any]:
    total = bill.total
    found: dict[str, Any] = {name: getattr(total, name) for name in _COUNTS}
    measured = {"energy": "measured", "cost": "billed", "carbon": "emitted"}
    columns = [
        ("", bill.measured),
        ("with_idle", total.with_idle),
        ("attributed", total.usage),
        ("idle", total.of("idle")),
        ("overhead", total.of("startup", "lost", "unclaimed")),
        ("startup", total.of("startup")),
        ("lost", total.of("lost")),
        ("unclaimed", total.of("unclaimed")),
    ]
    for name, amounts in columns:
        for key, amount in amounts_json(amounts).items():
            quantity, unit = key.split("_")
            found[f"{name or measured[quantity]}_{unit}"] = amount
    return {**found, "unmeasured_s": bill.unmeasured_s, "gaps": bill.gaps}


def _meter_json(row: MeterRow) -> dict[str, Any]:
    return {
        "hour": _iso(row.hour * HOUR_S),
        "engine": row.engine,
        "family": row.family,
        "variant": row.variant,
        "method": row.method,
        "windows": row.windows,
        "seconds": row.seconds,
        "unmeasured_s": row.unmeasured_s,
        "gaps": row.gaps,
        **amounts_json(row.total),
    }


def _sums(bill: Bill, energy_unit: str, joules: Callable[[int | None], str]) -> list[str]:
    """How each quantity adds up, what was not measured, and whether all of it closes."""
    total = bill.total
    columns = [("attributed", total.usage)]
    columns += [(kind, total.of(kind)) for kind in KINDS if kind != "active"]
    columns += [("sum", total.with_idle)]
    if bill.tenant is None:
        columns += [("measured", bill.measured)]
    forms = ((f"energy {energy_unit}", joules), ("cost USD", _micro), ("carbon g", _micro))
    lines = [["", *(title for title, _ in columns)]]
    for index, (title, form) in enumerate(forms):
        lines.append([title, *(form(_parts(amounts)[index]) for _, amounts in columns)])
    methods = ", ".join(sorted({row.method for row in bill.meters})) or "none"
    gaps = f"{bill.gaps} gap{'' if bill.gaps == 1 else 's'}"
    meters = f"meters: {methods}; {bill.unmeasured_s:g} s unmeasured, {gaps}"
    verdict = "the bill closes" if bill.closes else f"the bill does not close: meters less accounts {difference(bill)}"
    return [*_aligned(lines, left=1), "", meters, verdict]


def _energy_form(bill: Bill) -> tuple[str, Callable[[int | None], str]]:
    """One unit for the whole bill, so that its numbers can be compared by eye."""
    if max(bill.total.with_idle.energy_uj or 0, bill.measured.energy_uj or 0) < _KJ_FROM_UJ:
        return "J", lambda amount: _UNKNOWN if amount is None else f"{amount / MICRO:,.3f}"
    return "kJ", lambda amount: _UNKNOWN if amount is None else f"{amount / MICRO / 1000:,.3f}"


def _micro(amount: int | None) -> str:
    return _UNKNOWN if amount is None else f"{amount / MICRO:,.6f}"


def _parts(amounts: Amounts) -> tuple[int | None, int | None, int | None]:
    return amounts.energy_uj, amounts.cost_uusd, amounts.carbon_ug


def _iso(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s, UTC).strftime("%Y-%m-%dT%H:%MZ")


def _aligned(lines: Sequence[Sequence[str]], *, left: int) -> Iterable[str]:
    """The first ``left`` columns to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()

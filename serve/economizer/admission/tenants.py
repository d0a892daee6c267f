"""Tenants: what each may use, how fast and how much, and what that makes of a request's terms. Pure.

A budget's windows are calendar days and months in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Literal

from msgspec.structs import replace

from economizer.errors import require
from economizer.router.types import OnUnmet, Terms

ANONYMOUS = "anonymous"  # the tenant of requests without a key; the books name it the same
Per = Literal["day", "month"]
PERS: tuple[Per, ...] = ("day", "month")
Unit = Literal["usd", "joules", "grams_co2"]
UNITS: tuple[Unit, ...] = ("usd", "joules", "grams_co2")
MICRO = 1_000_000  # budgets are counted in whole millionths of their unit, as the books are

_FORBID = {"extra": "forbid"}  # read by pydantic in config.py: unknown keys are refused
_NAME = re.compile(r"[a-z0-9._-]{1,64}")


def require_tenant(name: str) -> None:
    """Raise ValueError where no tenant can have this name."""
    holds = _NAME.fullmatch(name) is not None and name != ANONYMOUS
    require(holds, "tenant", name, f"must be 1 to 64 of a-z, 0-9, '.', '_' and '-', and not {ANONYMOUS!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How much a tenant may use in a day or a month: dollars, joules or grams of CO2 equivalent, one of the three.

    From the share ``soft`` of it on, requests are served on cheaper terms. At its end they are refused where it is
    ``hard``; with ``hard`` false and ``soft`` 1 they are served on cheaper terms from there.
    """

    __pydantic_config__ = _FORBID

    per: Per
    usd: float | None = None
    joules: float | None = None
    grams_co2: float | None = None
    soft: float = 1.0
    hard: bool = True

    def __post_init__(self) -> None:
        given = {unit: amount for unit in UNITS if (amount := getattr(self, unit)) is not None}
        require(len(given) == 1, "budget", given, f"must be in one unit: {', '.join(UNITS)}")
        for unit, amount in given.items():
            require(1 / MICRO <= amount < inf, unit, amount, "must be at least one millionth, and finite")
        require(0 < self.soft <= 1, "soft", self.soft, "must be above 0, and 1 or less")

    @property
    def unit(self) -> Unit:
        """What it is counted in."""
        return next(unit for unit in UNITS if getattr(self, unit) is not None)

    @property
    def amount_micro(self) -> int:
        """How much it is, in millionths of its unit."""
        amount: float = getattr(self, self.unit)
        return round(amount * MICRO)

    @property
    def name(self) -> str:
        """``usd per month``: what a tenant's budgets are told apart by."""
        return f"{self.unit} per {self.per}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tenant:
    """What one tenant may do. None is no limit, or nothing said.

    ``policy`` and ``on_unmet`` hold where a request names none, ``quality_min`` is a floor under every request.
    ``families`` are those that it may use, None being all. ``tokens_per_minute`` counts prompt and answer.
    """

    __pydantic_config__ = _FORBID

    policy: str | None = None
    families: tuple[str, ...] | None = None
    quality_min: float | None = None
    on_unmet: OnUnmet | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    budgets: tuple[Budget, ...] = ()

    def __post_init__(self) -> None:
        if self.families is not None:
            require(bool(self.families), "families", self.families, "must name at least one family")
        if self.quality_min is not None:
            require(0 <= self.quality_min <= 1, "quality_min", self.quality_min, "must be between 0 and 1")
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "must be 1 or more")
        names = [budget.name for budget in self.budgets]
        require(len(set(names)) == len(names), "budgets", names, "must have each unit once a day and once a month")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionSettings:
    """Who is let in. A tenant that has a key and is not listed has no limits.

    ``keys`` is whether a request may come without one; it is then the tenant ``anonymous``. ``on_ledger_gone`` is what
    becomes of requests while nothing can be booked.
    """

    __pydantic_config__ = _FORBID

    keys: Literal["optional", "required"] = "optional"
    anonymous: Tenant = field(default_factory=Tenant)
    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    on_ledger_gone: Literal["serve", "refuse"] = "serve"

    def __post_init__(self) -> None:
        for name in self.tenants:
            require_tenant(name)

    def tenant(self, name: str) -> Tenant:
        """What the tenant of that name may do."""
        return self.anonymous if name == ANONYMOUS else self.tenants.get(name, Tenant())


def allowed(tenant: Tenant, family: str) -> bool:
    """Whether the tenant may use the family."""
    return tenant.families is None or family in tenant.families


def with_tenant(terms: Terms, tenant: Tenant, *, names_on_unmet: bool) -> Terms:
    """A request's terms with its tenant's: the higher of both floors, and the tenant's wishes where it names none.

    ``names_on_unmet`` is whether the request said what is to happen when its terms cannot be met, which the terms
    themselves do not tell from their default.
    """
    floors = [floor for floor in (terms.quality_min, tenant.quality_min) if floor is not None]
    return replace(
        terms,
        quality_min=max(floors, default=None),
        policy=tenant.policy if terms.policy is None else terms.policy,
        on_unmet=terms.on_unmet if names_on_unmet or tenant.on_unmet is None else tenant.on_unmet,
    )


def degraded(terms: Terms, tenant: Tenant, unit: Unit) -> Terms:
    """The terms past the soft end of a budget in ``unit``: the tenant's own floor alone, and the policy that saves
    that unit. Limits of latency and cost stay."""
    return replace(terms, quality_min=tenant.quality_min, policy="cheap" if unit == "usd" else "green")


def window_began_s(per: Per, now_s: float) -> float:
    """When the UTC day or month of ``now_s`` began, in seconds since the epoch."""
    day = datetime.fromtimestamp(now_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (day if per == "day" else day.replace(day=1)).timestamp()


def window_ends_s(per: Per, now_s: float) -> float:
    """When the UTC day or month after that of ``now_s`` begins, in seconds since the epoch."""
    began = datetime.fromtimestamp(window_began_s(per, now_s), UTC)
    if per == "day":
        return (began + timedelta(days=1)).timestamp()
    return (began + timedelta(days=31)).replace(day=1).timestamp()

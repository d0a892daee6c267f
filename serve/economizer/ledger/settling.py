"""A window that was split becomes postings and shares: its money and carbon laid over its energy. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from economizer.energy.types import Window
from economizer.ledger.prices import Carry, Rates
from economizer.ledger.schema import HOUR_S
from economizer.ledger.splitting import WindowSplit, split_amounts
from economizer.ledger.types import NOBODY, UNKNOWN, Account, Amounts, Kind, Posting, Settled, Share


def settled_by(window: Window, found: WindowSplit, rates: Rates | None, carry: Carry) -> Settled:
    """The window's amounts by these rates, each unit in one posting; ``carry`` is its engine's."""
    priced = carry.window(
        rates,
        window.measurement.seconds,
        found.energies_uj,
        _time_weights(found),
        (*found.keys, "unclaimed", "idle"),
    )
    unknown = (None,) * len(found.time_weights)
    columns = (found.energies_uj or unknown, priced.costs_uusd or unknown, priced.carbons_ug or unknown)
    *usages, unclaimed, idle = (
        Amounts(energy_uj=energy, cost_uusd=cost, carbon_ug=carbon)
        for energy, cost, carbon in zip(*columns, strict=True)
    )
    overhead: tuple[tuple[str, Kind, Amounts], ...] = (
        (NOBODY, "unclaimed", unclaimed),
        (NOBODY, "startup" if window.state == "starting" else "idle", idle),
    )
    active: Iterable[tuple[str, Kind, Amounts]] = (
        (tenant, "active", usage) for tenant, usage in zip(found.tenants, usages, strict=True)
    )
    postings: dict[Account, Amounts] = {}
    for tenant, kind, what in (*active, *overhead):
        if kind != "unclaimed" or any((what.energy_uj, what.cost_uusd, what.carbon_ug)):
            account = account_of(window, tenant, kind)
            postings[account] = postings.get(account, UNKNOWN) + what
    idles = split_amounts(idle, found.weights[:-1])
    return Settled(
        window=window,
        total=sum(postings.values(), UNKNOWN),
        postings=tuple(Posting(account=account, amounts=what) for account, what in postings.items()),
        shares=tuple(
            Share(
                request_id=request_id,
                attempt=attempt,
                usage=usage,
                idle=idle_part,
                variance_uj2=variance,
                method=window.measurement.method,
            )
            for (request_id, attempt), usage, idle_part, variance in zip(
                found.keys, usages, idles, found.variances, strict=True
            )
        ),
    )


def account_of(window: Window, tenant: str, kind: Kind) -> Account:
    """A window belongs to the hour that it ended in."""
    family, _, variant = window.variant.partition("@")
    return Account(hour=int(window.ended_s // HOUR_S), tenant=tenant, family=family, variant=variant, kind=kind)


def _time_weights(found: WindowSplit) -> tuple[float, ...]:
    """Whose the engine's time was. Of unclaimed work alone nobody knows how long it was there: that goes by energy."""
    if found.keys or not any(found.energies_uj or ()):
        return found.time_weights
    return tuple(map(float, found.energies_uj or ()))

"""Prices become amounts: what an engine's seconds and joules cost and emit, split so that the parts add up exactly.

A window of half a second at 0.05 USD an hour costs 6.94 micro-dollars. Rounded by itself it would be 7, and a month
0.8 % too dear; so what rounding leaves is carried to the engine's next window.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import fsum, inf
from pathlib import Path

from economizer.energy.attribution import split
from economizer.energy.carbon import ConstantIntensity, GridIntensity, HourlyTable, ProviderIntensity
from economizer.energy.types import UJ_PER_J
from economizer.errors import require
from economizer.variants.estimate import J_PER_KWH
from economizer.variants.types import Price, Variant

_HOUR_S = 3600
_MICRO = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What one replica costs and emits by time and by metered energy.

    ``usd_per_j`` is electricity that is paid on top, 0 where the hourly price includes it; ``carbon_g_per_j`` is None
    where the grid's intensity is unknown. Both include PUE. ``embodied_g_per_s`` is of the hardware's making.
    """

    usd_per_s: float
    usd_per_j: float = 0.0
    carbon_g_per_j: float | None = None
    embodied_g_per_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("usd_per_s", "usd_per_j", "carbon_g_per_j", "embodied_g_per_s"):
            rate = getattr(self, name)
            require(rate is None or 0 <= rate < inf, name, rate, "must be 0 or more and finite")

    @classmethod
    def of(cls, price: Price) -> Rates:
        """Those of a replica's price at some hour (:meth:`Price.at`)."""
        grid = price.carbon_g_per_kwh
        return cls(
            usd_per_s=price.rate_usd_per_hour / _HOUR_S,
            usd_per_j=(price.tariff_usd_per_kwh or 0.0) * price.pue / J_PER_KWH,
            carbon_g_per_j=None if grid is None else grid * price.pue / J_PER_KWH,
            embodied_g_per_s=price.embodied_g_per_hour / _HOUR_S,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceList:
    """Each variant's price for one replica, and the intensity of its grid, by the variant's id."""

    prices: Mapping[str, Price]
    intensities: Mapping[str, GridIntensity]

    @classmethod
    def of(cls, variants: Iterable[Variant], environment: Mapping[str, str] = os.environ) -> PriceList:
        """The list of variants whose prices are per replica (:meth:`Price.for_replica`); tokens are in ``environment``.

        Reads the carbon tables; raises OSError and ValueError where one cannot be used.
        """
        prices = {variant.id: variant.price for variant in variants if variant.price is not None}
        # Variants on one grid share a table, and ask a provider once.
        sources = {_source(price): price for price in prices.values()}
        intensities = {source: _intensity(price, environment) for source, price in sources.items()}
        return cls(prices=prices, intensities={name: intensities[_source(price)] for name, price in prices.items()})

    def at(self, variant_id: str, wall_s: float) -> Price | None:
        """A variant's price at a time in seconds since the epoch, with constants only; None without a price."""
        price = self.prices.get(variant_id)
        if price is None:
            return None
        return price.at(self.intensities[variant_id].at(wall_s), int(wall_s // _HOUR_S) % 24)

    def rates(self, variant_id: str, wall_s: float) -> Rates | None:
        """What a replica of the variant costs and emits at a time; None without a price."""
        price = self.at(variant_id, wall_s)
        return None if price is None else Rates.of(price)

    def refresh(self, now_s: float) -> list[str]:
        """Ask the providers that are due; may take seconds. Returns what went wrong, for the log."""
        found = [intensity.refresh(now_s) for intensity in self.intensities.values()]
        return [trouble for trouble in found if trouble is not None]


def _source(price: Price) -> Hashable:
    return price.carbon_g_per_kwh, price.carbon_table, price.carbon_provider


def _intensity(price: Price, environment: Mapping[str, str]) -> GridIntensity:
    if price.carbon_table is not None:
        return HourlyTable.read(Path(price.carbon_table))
    provider = price.carbon_provider
    if provider is None:
        return ConstantIntensity(price.carbon_g_per_kwh)
    return ProviderIntensity.of(provider, environment)


@dataclass(frozen=True, kw_only=True, slots=True)
class Priced:
    """A window's money and carbon by part, in micro-dollars and micrograms; None is unknown."""

    costs_uusd: tuple[int, ...] | None
    carbons_ug: tuple[int, ...] | None


@dataclass(slots=True)
class _Stream:
    """One kind of amount of one engine, and what rounding has left of it: in all, and to each part."""

    remainder: Fraction = Fraction(0)
    owed: dict[Hashable, float] = field(default_factory=dict)

    def book(self, amount: Fraction, weights: Sequence[float], keys: Sequence[Hashable] | None) -> list[int]:
        """Whole units for the parts, by weight. All that was ever booked is within half a unit of all amounts."""
        due = amount + self.remainder
        total = round(due)
        self.remainder = due - total
        whole = fsum(weights)
        if keys is None or whole == 0:
            return split(total, weights)
        shares = [total * weight / whole for weight in weights]
        fair = [share + self.owed.get(key, 0.0) for key, share in zip(keys, shares, strict=True)]
        wanted = [max(0.0, part) if weight else 0.0 for part, weight in zip(fair, weights, strict=True)]
        booked = split(total, wanted if any(wanted) else weights)
        self.owed = {key: part - unit for key, part, unit in zip(keys, fair, booked, strict=True)}
        return booked


@dataclass(slots=True)
class Carry:
    """Prices one engine's windows one after the other, and carries what rounding leaves.

    Booked money stays within a micro-dollar of price times time (and energy), carbon within a microgram of its rates.
    """

    _time: _Stream = field(default_factory=_Stream)
    _electricity: _Stream = field(default_factory=_Stream)
    _grid: _Stream = field(default_factory=_Stream)
    _embodied: _Stream = field(default_factory=_Stream)

    def window(
        self,
        rates: Rates | None,
        seconds: float,
        energies_uj: Sequence[int] | None,
        time_weights: Sequence[float],
        keys: Sequence[Hashable] | None = None,
    ) -> Priced:
        """What a window's parts cost and emitted; all are unknown without ``rates``.

        Money by time and embodied carbon go by ``time_weights``, electricity and the grid's carbon by ``energies_uj``.
        Where no energy was measured, money is what the time costs, and carbon is unknown. ``keys`` name the parts, so
        that a part too small for a unit in any one window still gets its units over several.
        """
        if rates is None:
            return Priced(costs_uusd=None, carbons_ug=None)
        lasted_s = Fraction(seconds)
        costs = self._time.book(Fraction(rates.usd_per_s) * _MICRO * lasted_s, time_weights, keys)
        if energies_uj is None:
            return Priced(costs_uusd=tuple(costs), carbons_ug=None)
        energy_j = Fraction(sum(energies_uj), UJ_PER_J)
        if rates.usd_per_j:
            paid = self._electricity.book(Fraction(rates.usd_per_j) * _MICRO * energy_j, energies_uj, keys)
            costs = _sums(costs, paid)
        if rates.carbon_g_per_j is None:
            return Priced(costs_uusd=tuple(costs), carbons_ug=None)
        carbons = self._grid.book(Fraction(rates.carbon_g_per_j) * _MICRO * energy_j, energies_uj, keys)
        if rates.embodied_g_per_s:
            made = self._embodied.book(Fraction(rates.embodied_g_per_s) * _MICRO * lasted_s, time_weights, keys)
            carbons = _sums(carbons, made)
        return Priced(costs_uusd=tuple(costs), carbons_ug=tuple(carbons))


def _sums(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]

"""What hardware costs, and how dirty its electricity is: as it is written in YAML, and for one replica. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from economizer.errors import require

Per = Literal["replica", "gpu", "core", "machine"]
PriceKind = Literal["on_demand", "spot", "reserved", "owned"]

_FORBID = {"extra": "forbid"}  # read by pydantic in config.py: unknown keys are refused
_HOURS_PER_YEAR = 8766
_HOURS_PER_DAY = 24
_AMOUNT = "must be 0 or more and finite"


@dataclass(frozen=True, kw_only=True, slots=True)
class CarbonProviderSettings:
    """A web service that tells the grid's carbon intensity of now in g/kWh, as a number in a JSON answer.

    ``{zone}`` in ``url`` is filled in. The value of the environment variable ``token_env`` is sent in ``header``.
    ``value_path`` leads to the number: keys and list indices with dots between. It is asked every ``refresh_s``; where
    it fails, its last answer holds for ``stale_s``.
    """

    __pydantic_config__ = _FORBID

    url: str
    zone: str = ""
    header: str = "auth-token"
    token_env: str | None = None
    value_path: str = "carbonIntensity"
    refresh_s: float = 900.0
    stale_s: float = 7200.0

    def __post_init__(self) -> None:
        # Anything else urllib would open as well: a file of this machine, for one.
        require(self.url.startswith(("https://", "http://")), "url", self.url, "must begin with https:// or http://")
        rule = "must be given where url has {zone}, and only there"
        require(("{zone}" in self.url) == bool(self.zone), "zone", self.zone, rule)
        require(bool(self.header.strip()), "header", self.header, "must name a header")
        require(bool(self.value_path), "value_path", self.value_path, "must lead to a number")
        require(1 <= self.refresh_s < inf, "refresh_s", self.refresh_s, "must be 1 or more and finite")
        rule = f"must be at least refresh_s ({self.refresh_s}) and finite"
        require(self.refresh_s <= self.stale_s < inf, "stale_s", self.stale_s, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What a kind of hardware costs by the hour, and how dirty its electricity is. Amounts are in US dollars.

    ``per`` says what the amounts by the hour, capital and ``embodied_g_per_hour`` are of; :meth:`for_replica` makes
    them those of one replica. Hardware of one's own has, instead of ``usd_per_hour``, what it cost and for how long it
    is used. ``electricity_usd_per_kwh`` is paid on top, one tariff or 24 by the hour of the day (UTC); None is included
    in the hourly price. ``pue`` (power usage effectiveness) multiplies energy for carbon and electricity, not the
    joules that receipts show. The grid's intensity is a constant, a table's (a CSV file) or a provider's; none of them
    is unknown. ``embodied_g_per_hour`` is the share of the hardware's making, M in the SCI specification (ISO/IEC
    21031: (E x I + M) per R).
    """

    __pydantic_config__ = _FORBID

    usd_per_hour: float | None = None
    per: Per = "replica"
    machine_share: float = 1.0
    kind: PriceKind = "on_demand"
    capital_usd: float | None = None
    lifetime_years: float | None = None
    upkeep_usd_per_hour: float | None = None
    electricity_usd_per_kwh: float | tuple[float, ...] | None = None
    currency: str = "USD"
    carbon_g_per_kwh: float | None = None
    carbon_table: str | None = None
    carbon_provider: CarbonProviderSettings | None = None
    embodied_g_per_hour: float = 0.0
    pue: float = 1.0
    source: str

    def __post_init__(self) -> None:
        rule = "must be USD: all amounts here are in dollars; convert them, and name the rate in source"
        require(self.currency == "USD", "currency", self.currency, rule)
        for name in ("usd_per_hour", "capital_usd", "upkeep_usd_per_hour", "carbon_g_per_kwh", "embodied_g_per_hour"):
            amount = getattr(self, name)
            require(amount is None or 0 <= amount < inf, name, amount, _AMOUNT)
        require(1 <= self.pue < inf, "pue", self.pue, "must be 1 or more and finite")
        self._require_one_way_to_pay()
        require(0 < self.machine_share <= 1, "machine_share", self.machine_share, "must be above 0 and at most 1")
        rule = "must be 1 where per is not machine"
        require(self.per == "machine" or self.machine_share == 1, "machine_share", self.machine_share, rule)
        tariff = self.electricity_usd_per_kwh
        if isinstance(tariff, tuple):
            rule = f"must be one tariff or {_HOURS_PER_DAY}, one for each hour of the day, each 0 or more and finite"
            fits = len(tariff) == _HOURS_PER_DAY and all(0 <= hourly < inf for hourly in tariff)
            require(fits, "electricity_usd_per_kwh", list(tariff), rule)
        else:
            require(tariff is None or 0 <= tariff < inf, "electricity_usd_per_kwh", tariff, _AMOUNT)
        sources = {name: getattr(self, name) for name in ("carbon_g_per_kwh", "carbon_table", "carbon_provider")}
        given = [name for name, value in sources.items() if value is not None]
        rule = "at most one of carbon_g_per_kwh, carbon_table and carbon_provider may be given"
        require(len(given) <= 1, given[-1] if given else "", sources[given[-1]] if given else None, rule)

    def _require_one_way_to_pay(self) -> None:
        capital = self.capital_usd
        rule = "must be given where capital_usd is not, and only there"
        require((self.usd_per_hour is None) != (capital is None), "usd_per_hour", self.usd_per_hour, rule)
        rule = "must be owned where capital_usd is given"
        require(capital is None or self.kind == "owned", "kind", self.kind, rule)
        years = self.lifetime_years
        rule = "must be given where capital_usd is, and only there"
        require((years is None) == (capital is None), "lifetime_years", years, rule)
        require(years is None or 0 < years < inf, "lifetime_years", years, "must be above 0 and finite")
        upkeep = self.upkeep_usd_per_hour
        rule = "may be given only where capital_usd is"
        require(upkeep is None or capital is not None, "upkeep_usd_per_hour", upkeep, rule)

    @property
    def rate_usd_per_hour(self) -> float:
        """What an hour costs without electricity that is paid on top; capital is spread evenly over its lifetime."""
        if self.usd_per_hour is not None:
            return self.usd_per_hour
        assert self.capital_usd is not None
        assert self.lifetime_years is not None
        return self.capital_usd / (self.lifetime_years * _HOURS_PER_YEAR) + (self.upkeep_usd_per_hour or 0.0)

    @property
    def tariff_usd_per_kwh(self) -> float | None:
        """What electricity costs on top, the day's mean where it has 24 tariffs; None is included in the rate."""
        tariff = self.electricity_usd_per_kwh
        return sum(tariff) / _HOURS_PER_DAY if isinstance(tariff, tuple) else tariff

    def for_replica(self, num_cpus: float, num_gpus: float) -> Price:
        """The price of one replica that takes this much of the cluster.

        Raises ValueError where the price is per GPU or core and the replica has none.
        """
        units = {"replica": 1.0, "gpu": num_gpus, "core": num_cpus, "machine": self.machine_share}[self.per]
        taken = "num_gpus" if self.per == "gpu" else "num_cpus"
        require(units > 0, "per", self.per, f"needs ray.{taken} above 0, which it multiplies")
        return replace(
            self,
            per="replica",
            machine_share=1.0,
            usd_per_hour=self.rate_usd_per_hour * units,
            capital_usd=None,
            lifetime_years=None,
            upkeep_usd_per_hour=None,
            embodied_g_per_hour=self.embodied_g_per_hour * units,
        )

    def at(self, carbon_g_per_kwh: float | None, hour_of_day: int) -> Price:
        """The price as it is while the grid has this intensity (None is unknown), in this hour of the day (UTC)."""
        tariff = self.electricity_usd_per_kwh
        return replace(
            self,
            electricity_usd_per_kwh=tariff[hour_of_day] if isinstance(tariff, tuple) else tariff,
            carbon_g_per_kwh=carbon_g_per_kwh,
            carbon_table=None,
            carbon_provider=None,
        )

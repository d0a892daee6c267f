import re
from collections.abc import Callable
from typing import Any

import pytest
from economizer.variants.price import CarbonProviderSettings, Price
from hypothesis import given
from hypothesis import strategies as st

NAN, INFINITE = float("nan"), float("inf")
PROVIDER = CarbonProviderSettings(url="https://grid.example/latest?zone={zone}", zone="FR")
NIGHT_AND_DAY = (0.1,) * 12 + (0.3,) * 12


def price(**given: Any) -> Price:
    return Price(**{"usd_per_hour": 1.0, "source": "made up", **given})


def owned(**given: Any) -> Price:
    return Price(**{"kind": "owned", "capital_usd": 8766.0, "lifetime_years": 4.0, "source": "made up", **given})


def provider(**given: Any) -> CarbonProviderSettings:
    return CarbonProviderSettings(**{"url": "https://grid.example/latest", **given})


@pytest.mark.parametrize(
    ("build", "given", "rule"),
    [
        (price, {"usd_per_hour": -1.0}, "usd_per_hour is -1.0: must be 0 or more and finite"),
        (price, {"usd_per_hour": INFINITE}, "usd_per_hour is inf: must be 0 or more and finite"),
        (price, {"usd_per_hour": NAN}, "usd_per_hour is nan: must be 0 or more and finite"),
        (price, {"usd_per_hour": None}, "usd_per_hour is None: must be given where capital_usd is not, and only there"),
        (owned, {"usd_per_hour": 1.0}, "usd_per_hour is 1.0: must be given where capital_usd is not, and only there"),
        (owned, {"kind": "spot"}, "kind is 'spot': must be owned where capital_usd is given"),
        (owned, {"capital_usd": -1.0}, "capital_usd is -1.0: must be 0 or more and finite"),
        (owned, {"lifetime_years": None}, "lifetime_years is None: must be given where capital_usd is, and only there"),
        (price, {"lifetime_years": 3.0}, "lifetime_years is 3.0: must be given where capital_usd is, and only there"),
        (owned, {"lifetime_years": 0.0}, "lifetime_years is 0.0: must be above 0 and finite"),
        (owned, {"lifetime_years": NAN}, "lifetime_years is nan: must be above 0 and finite"),
        (owned, {"upkeep_usd_per_hour": -0.1}, "upkeep_usd_per_hour is -0.1: must be 0 or more and finite"),
        (price, {"upkeep_usd_per_hour": 0.1}, "upkeep_usd_per_hour is 0.1: may be given only where capital_usd is"),
        (
            price,
            {"currency": "EUR"},
            "currency is 'EUR': must be USD: all amounts here are in dollars; convert them, and",
        ),
        (price, {"electricity_usd_per_kwh": -0.1}, "electricity_usd_per_kwh is -0.1: must be 0 or more and finite"),
        (price, {"electricity_usd_per_kwh": NAN}, "electricity_usd_per_kwh is nan: must be 0 or more and finite"),
        (
            price,
            {"electricity_usd_per_kwh": (0.1, 0.2)},
            "electricity_usd_per_kwh is [0.1, 0.2]: must be one tariff or 24",
        ),
        (
            price,
            {"electricity_usd_per_kwh": (*NIGHT_AND_DAY[:23], INFINITE)},
            f"electricity_usd_per_kwh is {[*NIGHT_AND_DAY[:23], INFINITE]}: must be one tariff or 24, one for each",
        ),
        (price, {"machine_share": 0.0}, "machine_share is 0.0: must be above 0 and at most 1"),
        (price, {"machine_share": 1.5, "per": "machine"}, "machine_share is 1.5: must be above 0 and at most 1"),
        (price, {"machine_share": 0.5}, "machine_share is 0.5: must be 1 where per is not machine"),
        (price, {"carbon_g_per_kwh": -1.0}, "carbon_g_per_kwh is -1.0: must be 0 or more and finite"),
        (price, {"carbon_g_per_kwh": INFINITE}, "carbon_g_per_kwh is inf: must be 0 or more and finite"),
        (
            price,
            {"carbon_g_per_kwh": 1.0, "carbon_table": "grid.csv"},
            "carbon_table is 'grid.csv': at most one of carbon_g_per_kwh, carbon_table and carbon_provider may",
        ),
        (
            price,
            {"carbon_table": "grid.csv", "carbon_provider": PROVIDER},
            f"carbon_provider is {PROVIDER!r}: at most one of carbon_g_per_kwh, carbon_table and carbon_provider may",
        ),
        (price, {"embodied_g_per_hour": -1.0}, "embodied_g_per_hour is -1.0: must be 0 or more and finite"),
        (price, {"pue": 0.9}, "pue is 0.9: must be 1 or more and finite"),
        (price, {"pue": INFINITE}, "pue is inf: must be 1 or more and finite"),
        (provider, {"url": "file:///etc/passwd"}, "url is 'file:///etc/passwd': must begin with https:// or http://"),
        (provider, {"zone": "FR"}, "zone is 'FR': must be given where url has {zone}, and only there"),
        (provider, {"url": "https://grid.example/{zone}"}, "zone is '': must be given where url has {zone}, and only"),
        (provider, {"header": " "}, "header is ' ': must name a header"),
        (provider, {"value_path": ""}, "value_path is '': must lead to a number"),
        (provider, {"refresh_s": 0.0}, "refresh_s is 0.0: must be 1 or more and finite"),
        (provider, {"stale_s": 60.0}, "stale_s is 60.0: must be at least refresh_s (900.0) and finite"),
    ],
)
def test_a_wrong_price_cannot_be_built_and_is_named(
    build: Callable[..., object], given: dict[str, object], rule: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}"):
        build(**given)


def test_what_a_price_does_not_say_is_unknown_or_nothing() -> None:
    plain = price()
    assert (plain.carbon_g_per_kwh, plain.tariff_usd_per_kwh) == (None, None)
    assert (plain.embodied_g_per_hour, plain.pue, plain.kind, plain.per) == (0.0, 1.0, "on_demand", "replica")


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ({"per": "replica"}, 0.5),
        ({"per": "core"}, 2.0),
        ({"per": "gpu"}, 1.0),
        ({"per": "machine", "machine_share": 0.25}, 0.125),
        ({"per": "machine"}, 0.5),
    ],
)
def test_a_replicas_price_is_that_of_what_it_takes_of_the_machine(given: dict[str, Any], rate: float) -> None:
    one = price(usd_per_hour=0.5, embodied_g_per_hour=10.0, carbon_g_per_kwh=473.0, pue=1.2, **given)
    assert one.for_replica(num_cpus=4, num_gpus=2) == price(
        usd_per_hour=rate, embodied_g_per_hour=20 * rate, carbon_g_per_kwh=473.0, pue=1.2
    )


def test_hardware_of_ones_own_costs_its_capital_spread_over_its_hours_and_its_upkeep() -> None:
    assert owned().rate_usd_per_hour == 0.25  # 8,766 hours a year
    assert owned(upkeep_usd_per_hour=0.5).rate_usd_per_hour == 0.75
    assert owned(per="gpu", upkeep_usd_per_hour=0.5, electricity_usd_per_kwh=0.2).for_replica(1, 2) == price(
        kind="owned", usd_per_hour=1.5, electricity_usd_per_kwh=0.2
    )


@pytest.mark.parametrize(("per", "key"), [("gpu", "num_gpus"), ("core", "num_cpus")])
def test_a_replica_with_none_of_what_is_priced_has_no_price(per: Any, key: str) -> None:
    with pytest.raises(ValueError, match=f"^per is '{per}': needs ray.{key} above 0, which it multiplies$"):
        price(per=per).for_replica(num_cpus=0, num_gpus=0)


def test_at_an_hour_a_price_has_constants_only() -> None:
    one = price(electricity_usd_per_kwh=NIGHT_AND_DAY, carbon_table="grid.csv")
    assert one.at(52.0, 11) == price(electricity_usd_per_kwh=0.1, carbon_g_per_kwh=52.0)
    assert one.at(None, 12) == price(electricity_usd_per_kwh=0.3)
    assert price(carbon_provider=PROVIDER).at(52.0, 0) == price(carbon_g_per_kwh=52.0)


def test_a_tariff_by_the_hour_counts_as_its_mean_where_no_hour_is_known() -> None:
    assert price(electricity_usd_per_kwh=NIGHT_AND_DAY).tariff_usd_per_kwh == pytest.approx(0.2)
    assert price(electricity_usd_per_kwh=0.3).tariff_usd_per_kwh == 0.3


@given(st.floats(0, 100), st.sampled_from(["replica", "gpu", "core", "machine"]), st.floats(0.1, 64), st.floats(0.1, 8))
def test_a_price_that_is_a_replicas_already_stays_as_it_is(
    usd: float, per: Any, num_cpus: float, num_gpus: float
) -> None:
    once = price(usd_per_hour=usd, per=per).for_replica(num_cpus, num_gpus)
    assert once.for_replica(num_cpus, num_gpus) == once

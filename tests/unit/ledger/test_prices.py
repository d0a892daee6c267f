from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from economizer.ledger.prices import Carry, Priced, PriceList, Rates
from economizer.variants.types import Price, Variant
from hypothesis import given
from hypothesis import strategies as st

HOUR_S = 3600


def variant(name: str, **price: Any) -> Variant:
    return Variant(
        family="m",
        name=name,
        context_tokens_max=1,
        concurrency_max=1,
        hardware="cpu",
        price=Price(**{"usd_per_hour": 3600.0, "source": "made up", **price}) if price else None,
    )


DOLLAR_A_SECOND = Rates(usd_per_s=1.0)
ALL = Rates(usd_per_s=1e-6, usd_per_j=2e-6, carbon_g_per_j=3e-6, embodied_g_per_s=5e-6)


def test_rates_are_a_prices_figures_by_second_and_joule_with_pue() -> None:
    price = Price(
        usd_per_hour=3600.0,
        electricity_usd_per_kwh=3.6e6,
        carbon_g_per_kwh=7.2e6,
        embodied_g_per_hour=1800.0,
        pue=1.5,
        source="made up",
    )
    assert Rates.of(price) == Rates(usd_per_s=1.0, usd_per_j=1.5, carbon_g_per_j=3.0, embodied_g_per_s=0.5)
    assert Rates.of(Price(usd_per_hour=3600.0, pue=1.5, source="made up")) == DOLLAR_A_SECOND


@pytest.mark.parametrize("name", ["usd_per_s", "usd_per_j", "carbon_g_per_j", "embodied_g_per_s"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_wrong_rate_cannot_be_built_and_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {value}: must be 0 or more and finite$"):
        Rates(**{"usd_per_s": 1.0, name: value})


def test_a_variant_without_a_price_has_no_rates() -> None:
    prices = PriceList.of([variant("free"), variant("paid", usd_per_hour=3600.0)], {})
    assert [prices.rates(name, 0.0) for name in ("m@free", "m@gone")] == [None, None]
    assert prices.rates("m@paid", 0.0) == DOLLAR_A_SECOND


def test_tariffs_and_tables_are_those_of_the_hour_in_utc(tmp_path: Path) -> None:
    table = tmp_path / "grid.csv"
    table.write_text("hour,g_per_kwh\n0,3.6e6\n1,7.2e6\n", encoding="utf-8")
    tariffs = (3.6e6, 7.2e6) + (1.8e6,) * 22
    prices = PriceList.of([variant("a", electricity_usd_per_kwh=tariffs, carbon_table=str(table))], {})
    day_s = 20_000 * 86_400.0
    assert prices.rates("m@a", day_s + HOUR_S - 0.5) == Rates(usd_per_s=1.0, usd_per_j=1.0, carbon_g_per_j=1.0)
    assert prices.rates("m@a", day_s + HOUR_S) == Rates(usd_per_s=1.0, usd_per_j=2.0, carbon_g_per_j=2.0)
    assert prices.rates("m@a", day_s + 2 * HOUR_S) == Rates(usd_per_s=1.0, usd_per_j=0.5, carbon_g_per_j=None)
    assert prices.at("m@a", day_s) == Price(
        usd_per_hour=3600.0, electricity_usd_per_kwh=3.6e6, carbon_g_per_kwh=3.6e6, source="made up"
    )


def test_a_table_that_cannot_be_used_is_told_when_the_list_is_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PriceList.of([variant("a", carbon_table=str(tmp_path / "gone.csv"))], {})
    (tmp_path / "grid.csv").write_text("hour,g_per_kwh\n0,green\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^grid.csv line 2: g_per_kwh is 'green': "):
        PriceList.of([variant("a", carbon_table=str(tmp_path / "grid.csv"))], {})


def test_money_by_time_goes_by_time_and_electricity_and_carbon_by_energy() -> None:
    priced = Carry().window(ALL, 100.0, [30_000_000, 0, 10_000_000], [0.5, 0.25, 0.25])
    assert priced == Priced(costs_uusd=(50 + 60, 25, 25 + 20), carbons_ug=(90 + 250, 125, 30 + 125))


def test_without_a_price_nothing_is_known_and_without_a_meter_the_time_still_costs() -> None:
    assert Carry().window(None, 100.0, [1, 2], [0.5, 0.5]) == Priced(costs_uusd=None, carbons_ug=None)
    assert Carry().window(ALL, 100.0, None, [0.5, 0.5]) == Priced(costs_uusd=(50, 50), carbons_ug=None)
    assert Carry().window(DOLLAR_A_SECOND, 1.0, [1, 2], [0.5, 0.5]) == Priced(
        costs_uusd=(500_000, 500_000), carbons_ug=None
    )


def test_an_hour_of_half_seconds_costs_what_the_price_list_says() -> None:
    carry, rates = Carry(), Rates(usd_per_s=0.05 / HOUR_S)
    booked = [sum(carry.window(rates, 0.5, None, [0.3, 0.7]).costs_uusd or ()) for _ in range(7_200)]
    assert sum(booked) == 50_000  # 7 in each window would be 50,400
    assert set(booked) == {6, 7}


def test_equal_requests_pay_equally_over_their_windows() -> None:
    carry, rates = Carry(), Rates(usd_per_s=0.05 / HOUR_S)
    keys = [f"request {number}" for number in range(16)]
    paid = [0] * 16
    for _ in range(20):
        costs = carry.window(rates, 0.5, None, [1.0] * 16, keys).costs_uusd
        assert costs is not None
        paid = [before + cost for before, cost in zip(paid, costs, strict=True)]
    assert sum(paid) == 139  # 138.9 micro-dollars, 8.7 each
    assert set(paid) <= {8, 9, 10}


def test_a_part_that_did_nothing_gets_nothing_even_if_it_is_owed() -> None:
    carry, rates = Carry(), Rates(usd_per_s=1e-6)
    assert carry.window(rates, 1.0, None, [0.6, 0.4], ["a", "b"]).costs_uusd == (1, 0)
    assert carry.window(rates, 1.0, None, [1.0, 0.0], ["a", "b"]).costs_uusd == (1, 0)


rates = st.builds(
    Rates,
    usd_per_s=st.floats(0, 1e-2),
    usd_per_j=st.floats(0, 1e-6),
    carbon_g_per_j=st.floats(0, 1e-3),
    embodied_g_per_s=st.floats(0, 1e-1),
)


@st.composite
def windows(draw: st.DrawFn) -> tuple[float, list[int], list[float], list[str]]:
    keys = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=6))
    parts = [*keys, "unclaimed", "idle"]
    energies = draw(st.lists(st.integers(0, 10**9), min_size=len(parts), max_size=len(parts)))
    weights = draw(st.lists(st.floats(0, 1), min_size=len(parts), max_size=len(parts)))
    return draw(st.floats(0, 60)), energies, weights, parts


def priced_whole(
    carry: Carry, rates: Rates, window: tuple[float, list[int], list[float], list[str]], keyed: bool
) -> tuple[int, int]:
    seconds, energies, weights, keys = window
    priced = carry.window(rates, seconds, energies, weights, keys if keyed else None)
    assert priced.costs_uusd is not None
    assert priced.carbons_ug is not None
    assert len(priced.costs_uusd) == len(priced.carbons_ug) == len(weights)
    assert all(part >= 0 for part in (*priced.costs_uusd, *priced.carbons_ug))
    return sum(priced.costs_uusd), sum(priced.carbons_ug)


def exactly(rates: Rates, seconds: Sequence[float], energies_uj: Sequence[int]) -> tuple[Fraction, Fraction]:
    """Micro-dollars and micrograms, not rounded."""
    micro_s = sum(map(Fraction, seconds)) * 10**6
    assert rates.carbon_g_per_j is not None
    return (
        Fraction(rates.usd_per_s) * micro_s + Fraction(rates.usd_per_j) * sum(energies_uj),
        Fraction(rates.embodied_g_per_s) * micro_s + Fraction(rates.carbon_g_per_j) * sum(energies_uj),
    )


@given(rates, st.lists(windows(), max_size=30), st.booleans())
def test_at_any_moment_the_books_are_within_one_unit_of_price_times_time_and_energy(
    rates: Rates, several: list[tuple[float, list[int], list[float], list[str]]], keyed: bool
) -> None:
    carry = Carry()
    booked = [priced_whole(carry, rates, window, keyed) for window in several]
    for count, so_far in enumerate(accumulate(booked, lambda one, other: (one[0] + other[0], one[1] + other[1])), 1):
        money, carbon = exactly(rates, [w[0] for w in several[:count]], [sum(w[1]) for w in several[:count]])
        assert abs(so_far[0] - money) <= 1
        assert abs(so_far[1] - carbon) <= 1


@given(rates, windows(), st.floats(0, 60), st.integers(0, 10**9))
def test_more_time_and_energy_never_cost_or_emit_less(
    rates: Rates, window: tuple[float, list[int], list[float], list[str]], longer_s: float, more_uj: int
) -> None:
    seconds, energies, weights, keys = window
    longer = (seconds + longer_s, [energies[0] + more_uj, *energies[1:]], weights, keys)
    less, more = (priced_whole(Carry(), rates, one, keyed=True) for one in (window, longer))
    assert less[0] <= more[0]
    assert less[1] <= more[1]


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=16), st.floats(0, 20), st.integers(1, 60))
def test_parts_that_stay_get_their_share_within_two_units_over_any_number_of_windows(
    weights: list[float], uusd: float, count: int
) -> None:
    carry, rates = Carry(), Rates(usd_per_s=uusd * 1e-6)
    got = [0] * len(weights)
    for _ in range(count):
        costs = carry.window(rates, 1.0, None, weights, range(len(weights))).costs_uusd
        assert costs is not None
        got = [before + cost for before, cost in zip(got, costs, strict=True)]
    for weight, part in zip(weights, got, strict=True):
        assert abs(part - uusd * count * weight / sum(weights)) <= 2


@given(rates, windows())
def test_what_has_no_weight_gets_nothing(rates: Rates, window: tuple[float, list[int], list[float], list[str]]) -> None:
    seconds, energies, weights, keys = window
    carry = Carry()
    carry.window(rates, seconds, energies, weights, keys)
    idle_alone = [0.0] * (len(keys) - 1)
    priced = carry.window(rates, seconds, [0] * (len(keys) - 1) + [1_000_000], [*idle_alone, 1.0], keys)
    assert set((priced.costs_uusd or ())[:-1]) <= {0}
    assert set((priced.carbons_ug or ())[:-1]) <= {0}

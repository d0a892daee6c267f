from typing import Any

import pytest
from economizer.variants.estimate import (
    UNKNOWN,
    Costs,
    decode_j_per_token,
    decode_tokens_per_s,
    engine_joules,
    engine_seconds,
    request_costs,
)
from economizer.variants.types import EnergyCard, PowerCard, Price, SpeedCard, Variant
from examples import POWER, SPEED
from hypothesis import given
from hypothesis import strategies as st


def variant(**cards: Any) -> Variant:
    return Variant(family="m", name="full", context_tokens_max=4096, concurrency_max=64, hardware="cpu", **cards)


CARD = {1: 10.0, 4: 40.0, 16: 80.0}


@pytest.mark.parametrize(
    ("batch", "rate"),
    [
        (1, 10.0),
        (4, 40.0),
        (2, 20.0),  # linear between 1 and 4
        (8, 56.5685),  # half way in the logarithm between 4 and 16: 40 x sqrt(2)
        (16, 80.0),
        (64, 80.0),  # nothing was measured beyond 16
        (0.5, 5.0),
    ],
)
def test_a_batchs_rate_is_a_power_law_between_measured_batches(batch: float, rate: float) -> None:
    assert decode_tokens_per_s(CARD, batch) == pytest.approx(rate)


cards = st.dictionaries(st.integers(1, 512), st.floats(0.1, 1e5), min_size=1, max_size=6)


@given(cards, st.floats(0.01, 1000))
def test_a_rate_is_between_those_of_the_batches_around_it(card: dict[int, float], batch: float) -> None:
    around = [
        max((size for size in card if size <= batch), default=min(card)),
        min((size for size in card if size >= batch), default=max(card)),
    ]
    rates = sorted(card[size] for size in around)
    low = rates[0] if batch >= min(card) else 0.0
    assert low * (1 - 1e-9) <= decode_tokens_per_s(card, batch) <= rates[1] * (1 + 1e-9)


JOULES = {2: 8.0, 8: 2.0}


@pytest.mark.parametrize(
    ("batch", "joules"),
    [
        (2, 8.0),
        (8, 2.0),
        (4, 4.0),  # half way in the logarithm: the square root of 8 x 2
        (64, 2.0),  # nothing was measured beyond 8
        (1, 16.0),  # a step for one takes what a step for two takes
    ],
)
def test_the_joules_of_a_token_are_a_power_law_between_measured_batches(batch: float, joules: float) -> None:
    assert decode_j_per_token(JOULES, batch) == pytest.approx(joules)


ENERGY = EnergyCard(prefill_j_per_token=0.25, decode_j_per_token=JOULES, source="made up")


def test_the_energy_of_a_request_is_counted_over_the_tokens_that_its_seconds_are() -> None:
    assert engine_joules(ENERGY, prompt_tokens=128, output_tokens=9, batch=8) == 32 + 8 * 2
    assert engine_joules(ENERGY, prompt_tokens=128, output_tokens=1, batch=8) == 32
    assert engine_joules(ENERGY, prompt_tokens=128, output_tokens=0, batch=8) == 32
    assert engine_joules(ENERGY, prompt_tokens=0, output_tokens=9, batch=0.2) == 8 * 16  # never less than itself


def test_measured_joules_win_over_stated_watts_and_leave_the_dollars_as_they_are() -> None:
    price = Price(usd_per_hour=3600.0, carbon_g_per_kwh=3.6e6, pue=2.0, source="made up")
    measured = variant(speed=SPEED, power=POWER, energy=ENERGY, price=price)
    assert request_costs(measured, prompt_tokens=128, output_tokens=9, batch=8) == Costs(
        energy_j=48.0, cost_usd=0.25, carbon_g=96.0
    )


def test_an_energy_card_needs_neither_a_power_card_nor_a_speed_card() -> None:
    of = {"prompt_tokens": 128, "output_tokens": 9, "batch": 8}
    price = Price(usd_per_hour=3600.0, carbon_g_per_kwh=3.6e6, source="made up")
    assert request_costs(variant(speed=SPEED, energy=ENERGY), **of).energy_j == 48.0
    assert request_costs(variant(energy=ENERGY, price=price), **of) == Costs(
        energy_j=48.0, cost_usd=None, carbon_g=48.0
    )


def test_the_first_token_comes_out_of_the_prefill() -> None:
    assert engine_seconds(SPEED, prompt_tokens=128, output_tokens=1, batch=1) == 0.125
    assert engine_seconds(SPEED, prompt_tokens=128, output_tokens=9, batch=1) == 0.25
    assert engine_seconds(SPEED, prompt_tokens=128, output_tokens=0, batch=1) == 0.125
    assert engine_seconds(SPEED, prompt_tokens=0, output_tokens=0, batch=1) == 0.0


def test_in_a_batch_a_request_takes_its_share_of_the_decode_steps() -> None:
    speed = SpeedCard(prefill_tokens_per_s=1024.0, decode_tokens_per_s={1: 64.0, 4: 256.0}, source="made up")
    assert engine_seconds(speed, prompt_tokens=128, output_tokens=9, batch=4) == 0.125 + 8 / 256
    assert engine_seconds(speed, prompt_tokens=128, output_tokens=9, batch=0.2) == 0.25  # never less than itself


def test_costs_are_power_and_price_times_the_engines_seconds() -> None:
    price = Price(usd_per_hour=3600.0, carbon_g_per_kwh=3.6e6, pue=2.0, source="made up")
    found = request_costs(variant(speed=SPEED, power=POWER, price=price), prompt_tokens=128, output_tokens=9)
    assert (found.energy_j, found.cost_usd, found.carbon_g) == (25.0, 0.25, 50.0)


def test_what_is_not_known_of_a_variant_is_not_zero() -> None:
    free = Price(usd_per_hour=0.0, source="made up")
    of = {"prompt_tokens": 128, "output_tokens": 9}
    assert request_costs(variant(power=POWER, price=free), **of) == UNKNOWN
    assert request_costs(variant(speed=SPEED, price=free), **of) == Costs(energy_j=None, cost_usd=0.0, carbon_g=None)
    assert request_costs(variant(speed=SPEED, power=POWER), **of) == Costs(energy_j=25.0, cost_usd=None, carbon_g=None)
    assert request_costs(variant(speed=SPEED, power=POWER, price=free), **of).carbon_g is None


def test_electricity_that_is_paid_on_top_is_energy_times_pue_times_the_tariff() -> None:
    of = {"prompt_tokens": 128, "output_tokens": 9}
    flat = Price(usd_per_hour=3600.0, electricity_usd_per_kwh=3.6e6, pue=2.0, source="made up")
    assert request_costs(variant(speed=SPEED, power=POWER, price=flat), **of).cost_usd == 0.25 + 25 * 2
    hourly = Price(usd_per_hour=3600.0, electricity_usd_per_kwh=(1.8e6, 5.4e6) * 12, pue=2.0, source="made up")
    assert request_costs(variant(speed=SPEED, power=POWER, price=hourly), **of).cost_usd == 0.25 + 25 * 2
    at_one = hourly.at(None, 1)
    assert request_costs(variant(speed=SPEED, power=POWER, price=at_one), **of).cost_usd == 0.25 + 25 * 3


def test_without_its_energy_a_request_whose_electricity_is_paid_on_top_has_no_known_cost() -> None:
    price = Price(usd_per_hour=3600.0, electricity_usd_per_kwh=0.2, source="made up")
    assert request_costs(variant(speed=SPEED, price=price), prompt_tokens=128, output_tokens=9) == UNKNOWN


def test_hardware_of_ones_own_costs_by_its_lifetime() -> None:
    price = Price(kind="owned", capital_usd=3600 * 8766.0, lifetime_years=1.0, source="made up")
    assert request_costs(variant(speed=SPEED, price=price), prompt_tokens=128, output_tokens=9).cost_usd == 0.25


def test_the_hardwares_making_emits_by_the_engines_seconds() -> None:
    of = {"prompt_tokens": 128, "output_tokens": 9, "batch": 8}
    price = Price(usd_per_hour=0.0, carbon_g_per_kwh=3.6e6, embodied_g_per_hour=3600.0, source="made up")
    assert request_costs(variant(speed=SPEED, energy=ENERGY, price=price), **of).carbon_g == 48.25
    assert request_costs(variant(energy=ENERGY, price=price), **of).carbon_g is None  # its seconds are unknown
    unknown = Price(usd_per_hour=0.0, embodied_g_per_hour=3600.0, source="made up")
    assert request_costs(variant(speed=SPEED, energy=ENERGY, price=unknown), **of).carbon_g is None


@given(st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 1e4), st.floats(0, 1e4), st.floats(1, 512))
def test_more_tokens_never_cost_less(prompt: float, more: float, output: float, longer: float, batch: float) -> None:
    speed = SpeedCard(prefill_tokens_per_s=1000.0, decode_tokens_per_s=CARD, source="made up")
    one = variant(
        speed=speed,
        power=PowerCard(active_w=9.0, source="made up"),
        price=Price(
            usd_per_hour=2.0,
            electricity_usd_per_kwh=0.2,
            carbon_g_per_kwh=400.0,
            embodied_g_per_hour=20.0,
            source="made up",
        ),
    )
    less = request_costs(one, prompt_tokens=prompt, output_tokens=output, batch=batch)
    dearer = request_costs(one, prompt_tokens=prompt + more, output_tokens=output + longer, batch=batch)
    for name in ("energy_j", "cost_usd", "carbon_g"):
        assert 0 <= getattr(less, name) <= getattr(dearer, name)

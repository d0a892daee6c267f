"""What a request takes of one replica by the variant's cards: engine seconds, joules, dollars, grams. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from math import log

from msgspec import Struct

from economizer.variants.price import Price
from economizer.variants.types import EnergyCard, SpeedCard, Variant

J_PER_KWH = 3.6e6


class Costs(Struct, frozen=True, kw_only=True, gc=False):
    """What a request takes: active energy in joules, dollars, grams of CO2 equivalent. None is unknown."""

    energy_j: float | None
    cost_usd: float | None
    carbon_g: float | None


UNKNOWN = Costs(energy_j=None, cost_usd=None, carbon_g=None)


def decode_tokens_per_s(card: Mapping[int, float], batch: float) -> float:
    """Tokens per second of a whole batch, between the measured batch sizes a power law through the two nearest.

    Beyond the largest measured batch the rate stays; below the smallest it shrinks with the batch.
    """
    return _at_batch(card, batch, slope_below=1)


def decode_j_per_token(card: Mapping[int, float], batch: float) -> float:
    """Joules per output token of one request in such a batch, by the same power law.

    Beyond the largest measured batch they stay. Below the smallest a decode step is taken to need what it needs there,
    for fewer tokens.
    """
    return _at_batch(card, batch, slope_below=-1)


def _at_batch(card: Mapping[int, float], batch: float, *, slope_below: int) -> float:
    """What a card says of a batch size; ``slope_below`` is the power law's exponent under the smallest measured one."""
    measured = card.get(batch)  # type: ignore[call-overload]
    if measured is not None:
        return float(measured)
    below = max((size for size in card if size < batch), default=None)
    above = min((size for size in card if size > batch), default=None)
    if above is None:
        return card[max(card)]
    if below is None:
        return float(card[above] * (max(batch, 1e-9) / above) ** slope_below)
    share = log(batch / below) / log(above / below)
    return float(card[below] * (card[above] / card[below]) ** share)


def engine_seconds(speed: SpeedCard, *, prompt_tokens: float, output_tokens: float, batch: float) -> float:
    """The engine's time that falls to one request: its own prefill, and its share of the batch's decode steps.

    ``prompt_tokens`` are the uncached ones. The first answer token comes out of the prefill.
    """
    prefill_s = prompt_tokens / speed.prefill_tokens_per_s
    decode_s = max(0.0, output_tokens - 1) / decode_tokens_per_s(speed.decode_tokens_per_s, max(1.0, batch))
    return prefill_s + decode_s


def engine_joules(energy: EnergyCard, *, prompt_tokens: float, output_tokens: float, batch: float) -> float:
    """The engine's active energy that falls to one request, counted over the same tokens as its seconds are."""
    prefill_j = prompt_tokens * energy.prefill_j_per_token
    decode_j = max(0.0, output_tokens - 1) * decode_j_per_token(energy.decode_j_per_token, max(1.0, batch))
    return prefill_j + decode_j


def request_costs(variant: Variant, *, prompt_tokens: float, output_tokens: float, batch: float = 1.0) -> Costs:
    """Joules, dollars and grams of one request in a batch of ``batch``; None where a card is unknown.

    Energy is what the request adds to an idle engine: by the energy card, or, without one, active less idle power times
    the request's engine seconds. Dollars are the
    hourly price times the same seconds, and, where electricity is paid on top, energy times PUE times the tariff (a
    day's mean where it changes by the hour). Grams are energy times PUE times the grid's intensity, and the engine
    seconds' share of what the hardware's making emitted.
    """
    speed, power, energy, price = variant.speed, variant.power, variant.energy, variant.price
    engine_s = energy_j = None
    if speed is not None:
        engine_s = engine_seconds(speed, prompt_tokens=prompt_tokens, output_tokens=output_tokens, batch=batch)
    if energy is not None:
        energy_j = engine_joules(energy, prompt_tokens=prompt_tokens, output_tokens=output_tokens, batch=batch)
    elif power is not None and engine_s is not None:
        energy_j = (power.active_w - power.idle_w) * engine_s
    return Costs(
        energy_j=energy_j,
        cost_usd=None if price is None else _dollars(price, engine_s, energy_j),
        carbon_g=None if price is None else _grams(price, engine_s, energy_j),
    )


def _dollars(price: Price, engine_s: float | None, energy_j: float | None) -> float | None:
    if engine_s is None:
        return None
    time_usd = price.rate_usd_per_hour * engine_s / 3600
    tariff = price.tariff_usd_per_kwh
    if tariff is None:
        return time_usd
    return None if energy_j is None else time_usd + energy_j / J_PER_KWH * price.pue * tariff


def _grams(price: Price, engine_s: float | None, energy_j: float | None) -> float | None:
    if energy_j is None or price.carbon_g_per_kwh is None:
        return None
    energy_g = energy_j / J_PER_KWH * price.pue * price.carbon_g_per_kwh
    if not price.embodied_g_per_hour:
        return energy_g
    return None if engine_s is None else energy_g + price.embodied_g_per_hour * engine_s / 3600

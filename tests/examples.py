"""Small variants, fleets and receipts that the unit tests share.

The numbers are powers of two, so that costs come out even. By these cards a prompt of 128 tokens and an answer of 9
take 1/8 + 8/64 = 1/4 s of an engine, so 25 J at 100 W.
"""

from __future__ import annotations

from dataclasses import dataclass

from economizer.gateway.receipts import Receipt
from economizer.router.decide import decide
from economizer.router.policies import POLICIES
from economizer.router.types import (
    LatencyPrediction,
    LatencyPredictor,
    Quantiles,
    ReplicaState,
    RequestProfile,
    Terms,
    VariantState,
)
from economizer.variants.types import PowerCard, Price, QualityCard, SpeedCard, Variant

SPEED = SpeedCard(prefill_tokens_per_s=1024.0, decode_tokens_per_s={1: 64.0}, source="made up")
POWER = PowerCard(active_w=100.0, source="made up")
STEADY_TTFT = Quantiles(p50=0.5, p95=1.0)
STEADY_TPOT = Quantiles(p50=0.125, p95=0.25)


@dataclass(frozen=True)
class Steady:
    """A latency predictor that answers the same whatever the load."""

    ttft: Quantiles = STEADY_TTFT
    tpot: Quantiles = STEADY_TPOT

    def predict(self, *, prompt_tokens: int, cached_share: float, replica: ReplicaState) -> LatencyPrediction | None:
        return LatencyPrediction(ttft_s=self.ttft, tpot_s=self.tpot)

    def expected_ttft_s(self, *, prompt_tokens: int, cached_share: float, replica: ReplicaState) -> float | None:
        return self.ttft.p50


class Unknown:
    """A latency predictor that has neither a card nor a measurement."""

    def predict(self, *, prompt_tokens: int, cached_share: float, replica: ReplicaState) -> LatencyPrediction | None:
        return None

    def expected_ttft_s(self, *, prompt_tokens: int, cached_share: float, replica: ReplicaState) -> float | None:
        return None


def variant(
    name: str = "full",
    *,
    family: str = "m",
    context_tokens_max: int = 4096,
    concurrency_max: int = 4,
    features: frozenset[str] = frozenset({"chat"}),
    loras: tuple[str, ...] = (),
    quality: float | None = 1.0,
    speed: SpeedCard | None = SPEED,
    power: PowerCard | None = POWER,
    usd_per_hour: float = 3600.0,
    carbon_g_per_kwh: float | None = None,
    replicas_min: int = 1,
    replicas_max: int = 1,
) -> Variant:
    """A variant whose engine costs a dollar a second."""
    return Variant(
        family=family,
        name=name,
        context_tokens_max=context_tokens_max,
        concurrency_max=concurrency_max,
        features=features,
        loras=loras,
        hardware="cpu",
        quality=None if quality is None else QualityCard(score=quality, source="made up"),
        speed=speed,
        power=power,
        price=Price(usd_per_hour=usd_per_hour, carbon_g_per_kwh=carbon_g_per_kwh, source="made up"),
        replicas_min=replicas_min,
        replicas_max=replicas_max,
    )


IDLE = ReplicaState(id="r1")


def state(
    of: Variant,
    *replicas: ReplicaState,
    latency: LatencyPredictor | None = None,
    cached_share: float = 0.0,
    queue_max: int = 64,
) -> VariantState:
    """The variant with these replicas; none means asleep."""
    return VariantState(
        variant=of, replicas=replicas, latency=latency or Steady(), cached_share=cached_share, queue_max=queue_max
    )


def chat(
    *,
    family: str = "m",
    pinned: str | None = None,
    lora: str | None = None,
    needs: frozenset[str] = frozenset(),
    prompt_tokens: int = 128,
    prompt_tokens_least: int = 64,
    output_tokens_max: int | None = None,
    output_tokens_expected: float = 9.0,
    session: str | None = None,
    prefix_hashes: tuple[int, ...] = (),
) -> RequestProfile:
    """A chat request of 128 prompt tokens and an expected answer of 9."""
    return RequestProfile(
        family=family,
        endpoint="chat",
        pinned=pinned,
        lora=lora,
        needs=needs,
        prompt_tokens=prompt_tokens,
        prompt_tokens_least=prompt_tokens_least,
        output_tokens_max=output_tokens_max,
        output_tokens_expected=output_tokens_expected,
        session=session,
        prefix_hashes=prefix_hashes,
    )


FULL = variant("full", usd_per_hour=3600.0)
INT8 = variant("int8", quality=0.9, usd_per_hour=1800.0)


def receipt(
    receipt_id: str = "ecr-1",
    *,
    caller: str = "ann",
    served: Variant | None = INT8,
    terms: Terms | None = None,
    fleet: tuple[VariantState, ...] | None = None,
) -> Receipt:
    """Of a chat that was decided between both variants, and has not ended."""
    terms = terms or Terms()
    fleet = fleet or (state(FULL, IDLE), state(INT8, IDLE))
    return Receipt(
        id=receipt_id,
        caller=caller,
        tenant="anonymous",
        key_id="",
        created_s=1700000000.75,
        endpoint="chat",
        model="m",
        stream=False,
        terms=terms,
        decision=decide(chat(), terms, fleet, POLICIES["cheap"]),
        variant=served,
        full=FULL,
    )

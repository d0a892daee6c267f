"""How long one decision takes, by the size of the family: `decide` alone, on a fleet in use, every filter at work."""

from __future__ import annotations

from statistics import median
from time import process_time

from economizer.router.decide import decide
from economizer.router.latency import LatencyModel
from economizer.router.policies import POLICIES
from economizer.router.types import ReplicaState, RequestProfile, Terms, VariantState
from economizer.variants.types import PowerCard, Price, QualityCard, SpeedCard, Variant

SIZES = ((2, 2), (10, 8), (10, 32), (20, 32), (40, 32), (10, 128))
STATED = (10, 32)
_BATCHES = 15
_BATCH_S = 0.02
_PROFILE = RequestProfile(family="f", endpoint="chat", prompt_tokens=256, prompt_tokens_least=128)
_TERMS = Terms(
    ttft_s_max=60.0,
    tpot_s_max=10.0,
    e2e_s_max=3600.0,
    quality_min=0.5,
    cost_usd_max=10.0,
    energy_j_max=1e9,
    carbon_g_max=1e6,
)


def decide_us(variants: int, replicas: int) -> float:
    """CPU microseconds of one decision among ``variants`` of ``replicas`` each: the median of several batches."""
    fleet = [_variant(number, replicas) for number in range(variants)]
    policy = POLICIES["balanced"]
    assert len(decide(_PROFILE, _TERMS, fleet, policy).ranking) == variants
    calls, times_s = 1, [0.0]
    while times_s[-1] < _BATCH_S:
        calls *= 2
        times_s.append(_batch_s(calls, fleet))
    return median([_batch_s(calls, fleet) for _ in range(_BATCHES)]) / calls * 1e6


def _batch_s(calls: int, fleet: list[VariantState]) -> float:
    policy = POLICIES["balanced"]
    started_s = process_time()
    for _ in range(calls):
        decide(_PROFILE, _TERMS, fleet, policy)
    return process_time() - started_s


def _variant(number: int, replicas: int) -> VariantState:
    variant = Variant(
        family="f",
        name=f"v{number:02d}",
        context_tokens_max=8192,
        concurrency_max=16,
        hardware="gpu",
        quality=QualityCard(score=1.0 - number / 100, source="benchmark"),
        speed=SpeedCard(
            prefill_tokens_per_s=5000.0 + number,
            decode_tokens_per_s={1: 50.0, 16: 500.0},
            overhead_s=0.01,
            source="benchmark",
        ),
        power=PowerCard(active_w=300.0, idle_w=60.0, source="benchmark"),
        price=Price(usd_per_hour=2.0 + number / 10, carbon_g_per_kwh=400.0, source="benchmark"),
    )
    latency = LatencyModel(variant.speed, variant.concurrency_max)
    states = tuple(
        ReplicaState(id=f"r{index:03d}", running=index % 16, waiting=index % 3, queued_tokens=64 * index)
        for index in range(replicas)
    )
    for state in states:
        latency.observe_ttft(prompt_tokens=200, cached_share=0.0, replica=state, actual_s=0.1)
        latency.observe_tpot(replica=state, actual_s=0.02)
    return VariantState(variant=variant, replicas=states, latency=latency)

"""The words of routing: what a request is and asks for, what the fleet looks like, and what was decided and why.

What there is one of for every request is left out of the garbage collector's rounds (``gc=False``): it can be in no
cycle, and a gateway keeps the decisions of thousands of requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from msgspec import Struct

from economizer.variants.estimate import Costs
from economizer.variants.types import Variant, require

OnUnmet = Literal["refuse", "degrade"]


class RequestProfile(Struct, frozen=True, kw_only=True, gc=False):
    """The few facts of a request that routing needs.

    ``prompt_tokens`` is an estimate made before tokenisation, ``prompt_tokens_least`` what it surely is at least.
    ``output_tokens_max`` is the caller's cap, or None; it never serves as a prediction. ``prefix_hashes`` are
    cumulative hashes of the prompt's leading blocks, longest prefix last. ``caller`` and ``session`` are opaque keys.
    """

    family: str
    endpoint: str
    pinned: str | None = None
    lora: str | None = None
    needs: frozenset[str] = frozenset()
    prompt_tokens: int = 0
    prompt_tokens_least: int = 0
    output_tokens_max: int | None = None
    output_tokens_expected: float = 128.0
    caller: str = ""
    session: str | None = None
    prefix_hashes: tuple[int, ...] = ()


class Terms(Struct, frozen=True, kw_only=True, gc=False):
    """What a request asks for. None is no limit. Latency limits hold at the 95th percentile of the prediction."""

    ttft_s_max: float | None = None
    tpot_s_max: float | None = None
    e2e_s_max: float | None = None
    quality_min: float | None = None
    cost_usd_max: float | None = None
    energy_j_max: float | None = None
    carbon_g_max: float | None = None
    policy: str | None = None
    on_unmet: OnUnmet = "refuse"

    def __post_init__(self) -> None:
        for name in ("ttft_s_max", "tpot_s_max", "e2e_s_max", "cost_usd_max", "energy_j_max", "carbon_g_max"):
            value = getattr(self, name)
            if value is not None:
                require(value >= 0, name, value, "must be 0 or more")
        if self.quality_min is not None:
            require(0 <= self.quality_min <= 1, "quality_min", self.quality_min, "must be between 0 and 1")


class ReplicaState(Struct, frozen=True, kw_only=True, gc=False):
    """One engine as the router sees it.

    ``running`` and ``waiting`` are requests in its batch and in its queue; ``queued_tokens`` is prompt tokens not yet
    prefilled; ``kv_used`` is the share of its KV cache in use, None when unknown.
    """

    id: str
    ready: bool = True
    running: int = 0
    waiting: int = 0
    queued_tokens: int = 0
    kv_used: float | None = None

    @property
    def load(self) -> int:
        """Requests that it holds, running or waiting."""
        return self.running + self.waiting


class Quantiles(Struct, frozen=True, kw_only=True, gc=False):
    """The 50th and the 95th percentile of a predicted time, in seconds."""

    p50: float
    p95: float


class LatencyPrediction(Struct, frozen=True, kw_only=True, gc=False):
    """Predicted time to first token and time per output token."""

    ttft_s: Quantiles
    tpot_s: Quantiles


class LatencyPredictor(Protocol):
    """Predicts a variant's latency from the prompt and the load of the replica that would serve it."""

    def predict(self, *, prompt_tokens: int, cached_share: float, replica: ReplicaState) -> LatencyPrediction | None:
        """The prediction, or None when neither a card nor a measurement is known."""
        ...

    def expected_ttft_s(self, *, prompt_tokens: int, cached_share: float, replica: ReplicaState) -> float | None:
        """The median time to first token of the same prediction, for less work."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantState:
    """A variant as it stands now: its replicas (ready or not) and how fast it has shown itself to be.

    A variant that may have no replica at all (``replicas_min`` 0) can be woken; of another, one is expected.

    ``cached_share`` is the share of prompt tokens that its engines lately found in their prefix cache.
    ``queue_max`` is how many requests one replica may hold waiting beyond its batch.
    """

    variant: Variant
    replicas: tuple[ReplicaState, ...] = ()
    latency: LatencyPredictor
    cached_share: float = 0.0
    queue_max: int = 64


class Prediction(Struct, frozen=True, kw_only=True, gc=False):
    """What is expected of one variant for one request. Unknown is None.

    ``asleep`` says that no replica is ready and one would have to be started, which takes ``wake_s``, already inside
    ``ttft_s``.
    ``load`` is what the least loaded replica holds already, ``room`` the free share of its batch.
    """

    ttft_s: Quantiles | None
    tpot_s: Quantiles | None
    e2e_s: Quantiles | None
    output_tokens: float
    costs: Costs
    quality: float | None
    load: int = 0
    room: float = 0.0
    asleep: bool = False
    wake_s: float | None = None


class Refusal(Struct, frozen=True, kw_only=True, gc=False):
    """Why a variant may not serve a request: the term's name, what was asked, what the variant offers, in words."""

    term: str
    limit: float | str | None
    offered: float | str | None
    reason: str


class Candidate(Struct, frozen=True, kw_only=True, gc=False):
    """One variant as it was weighed: its prediction, its score (None when refused), and every refusal."""

    variant: str
    prediction: Prediction
    score: float | None
    refusals: tuple[Refusal, ...] = ()


class Decision(Struct, frozen=True, kw_only=True, gc=False):
    """What was chosen and why.

    ``variant`` is the chosen variant's name, None when every candidate was refused. ``ranking`` are the variants
    that meet the terms, best first, ``variant`` leading. ``missed`` are the terms
    that the chosen variant does not meet (only with ``on_unmet: degrade``).
    """

    family: str
    policy: str
    variant: str | None
    ranking: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    missed: tuple[Refusal, ...] = ()

    def candidate(self, variant: str) -> Candidate:
        """The candidate of that name; KeyError when it was not weighed."""
        for candidate in self.candidates:
            if candidate.variant == variant:
                return candidate
        raise KeyError(variant)

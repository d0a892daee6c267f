"""What is known of a variant: its quality, speed, power and price, with units and where each was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite

from economizer.errors import require as require
from economizer.variants.price import CarbonProviderSettings as CarbonProviderSettings
from economizer.variants.price import Price as Price

# The endpoints and abilities that a request may need and a variant may have. `chat`, `completions`, `responses` and
# `embeddings` are endpoints; the others are what a request asks for in its body.
FEATURES = frozenset({"chat", "completions", "responses", "embeddings", "tools", "json", "logprobs", "vision", "audio"})

_FORBID = {"extra": "forbid"}  # read by pydantic in config.py: unknown keys are refused


def require_measures(size_bytes: int | None, kl_mean: float | None, top1_agreement: float | None) -> None:
    """Raise ValueError where what was measured of a checkpoint cannot be so."""
    if size_bytes is not None:
        require(size_bytes >= 0, "size_bytes", size_bytes, "must be 0 or more")
    if kl_mean is not None:
        # Rounding takes that of two equal models a hair below 0.
        require(isfinite(kl_mean), "kl_mean", kl_mean, "must be finite")
    if top1_agreement is not None:
        require(0 <= top1_agreement <= 1, "top1_agreement", top1_agreement, "must be between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityCard:
    """Quality relative to the family's full model, in [0, 1], 1 being the full model itself.

    ``low`` is the lower end of the score's interval; a floor is compared with it, or with ``score`` where no
    interval is known.
    """

    __pydantic_config__ = _FORBID

    score: float
    low: float | None = None
    source: str

    def __post_init__(self) -> None:
        require(0.0 <= self.score <= 1.0, "score", self.score, "must be between 0 and 1")
        if self.low is not None:
            require(0.0 <= self.low <= self.score, "low", self.low, "must be between 0 and score")

    @property
    def promised(self) -> float:
        """The quality that a floor is compared with."""
        return self.score if self.low is None else self.low


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedCard:
    """Speed of one replica on its hardware.

    ``decode_tokens_per_s`` maps a batch size to the tokens per second of the whole batch. ``overhead_s`` is the time
    to a first token of an empty prompt on an idle replica. ``cold_start_s`` is from nothing to ready.
    """

    __pydantic_config__ = _FORBID

    prefill_tokens_per_s: float
    decode_tokens_per_s: Mapping[int, float]
    overhead_s: float = 0.0
    cold_start_s: float | None = None
    source: str

    def __post_init__(self) -> None:
        rule = "must be above 0 and finite"
        require(0 < self.prefill_tokens_per_s < inf, "prefill_tokens_per_s", self.prefill_tokens_per_s, rule)
        require(
            bool(self.decode_tokens_per_s) and all(b >= 1 and 0 < v < inf for b, v in self.decode_tokens_per_s.items()),
            "decode_tokens_per_s",
            dict(self.decode_tokens_per_s),
            "must map at least one batch size (1 or more) to tokens per second above 0 and finite",
        )
        require(0 <= self.overhead_s < inf, "overhead_s", self.overhead_s, "must be 0 or more and finite")
        if self.cold_start_s is not None:
            require(0 <= self.cold_start_s < inf, "cold_start_s", self.cold_start_s, "must be 0 or more and finite")


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerCard:
    """Power drawn by one replica's share of the hardware, in watts: while it works, and while it waits."""

    __pydantic_config__ = _FORBID

    active_w: float
    idle_w: float = 0.0
    source: str

    def __post_init__(self) -> None:
        require(self.idle_w >= 0, "idle_w", self.idle_w, "must be 0 or more")
        require(self.idle_w <= self.active_w < inf, "active_w", self.active_w, "must be at least idle_w and finite")


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyCard:
    """Active energy of one replica in joules per token, as it was measured on the engine.

    ``decode_j_per_token`` maps a batch size to the joules per output token of one request in such a batch.
    """

    __pydantic_config__ = _FORBID

    prefill_j_per_token: float
    decode_j_per_token: Mapping[int, float]
    source: str

    def __post_init__(self) -> None:
        rule = "must be 0 or more and finite"
        require(0 <= self.prefill_j_per_token < inf, "prefill_j_per_token", self.prefill_j_per_token, rule)
        require(
            bool(self.decode_j_per_token) and all(b >= 1 and 0 < v < inf for b, v in self.decode_j_per_token.items()),
            "decode_j_per_token",
            dict(self.decode_j_per_token),
            "must map at least one batch size (1 or more) to joules per token above 0 and finite",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way of serving a family: weights, engine arguments and hardware, and what was measured of them.

    ``concurrency_max`` is how many requests one replica runs at once; more wait. A card that is None is unknown.
    ``routed`` is whether the router may choose it by itself; otherwise only a request that pins it gets it.
    ``kl_mean`` and ``top1_agreement`` are the full model's Kullback-Leibler divergence from it and the share of equal
    most probable tokens, both per token of held-out text; ``size_bytes`` is its weights'.
    """

    family: str
    name: str
    context_tokens_max: int
    concurrency_max: int
    features: frozenset[str] = frozenset({"chat", "completions"})
    loras: tuple[str, ...] = ()
    hardware: str
    quality: QualityCard | None = None
    speed: SpeedCard | None = None
    power: PowerCard | None = None
    energy: EnergyCard | None = None
    price: Price | None = None
    replicas_min: int = 1
    replicas_max: int = 1
    routed: bool = True
    size_bytes: int | None = None
    kl_mean: float | None = None
    top1_agreement: float | None = None

    def __post_init__(self) -> None:
        require(self.context_tokens_max >= 1, "context_tokens_max", self.context_tokens_max, "must be 1 or more")
        require(self.concurrency_max >= 1, "concurrency_max", self.concurrency_max, "must be 1 or more")
        unknown = sorted(self.features - FEATURES)
        require(not unknown, "features", unknown, f"must be among {sorted(FEATURES)}")
        require(self.replicas_min >= 0, "replicas_min", self.replicas_min, "must be 0 or more")
        require(
            self.replicas_max >= max(1, self.replicas_min),
            "replicas_max",
            self.replicas_max,
            "must be 1 or more, and at least replicas_min",
        )
        require_measures(self.size_bytes, self.kl_mean, self.top1_agreement)

    @property
    def id(self) -> str:
        """``family@variant``: the name that pins it, and the name its engines answer to."""
        return f"{self.family}@{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One logical model: its variants, the one that counts as full, and the policy used when a caller names none."""

    name: str
    full: str
    variants: tuple[Variant, ...]
    policy: str = "balanced"
    aliases: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        require(bool(names), "variants", names, "must name at least one variant")
        require(len(set(names)) == len(names), "variants", names, "must have unique names")
        require(self.full in names, "full", self.full, f"must be one of this family's variants {names}")
        require(all(v.family == self.name for v in self.variants), "variants", names, "must belong to this family")

    @property
    def full_variant(self) -> Variant:
        """The variant that quality and savings are measured against."""
        return next(variant for variant in self.variants if variant.name == self.full)

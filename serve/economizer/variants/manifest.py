"""A checkpoint's ``manifest.json`` as types: what it was made from and how, and all that was measured of it. Pure.

The compression and distillation jobs write it. Every part that was not measured yet is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from economizer.variants.types import require

FILE_NAME = "manifest.json"
FORMAT = 1

_FORBID = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A value with the ends of its 95 % interval (for speeds: with the smallest and the largest of the rounds)."""

    __pydantic_config__ = _FORBID

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        require(self.low <= self.high, "low", self.low, "must be at most high")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileDigest:
    """One file of the checkpoint: its SHA-256 in hexadecimal and its size."""

    __pydantic_config__ = _FORBID

    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        require(len(self.sha256) == 64, "sha256", self.sha256, "must be 64 hexadecimal digits")
        require(self.size_bytes >= 0, "size_bytes", self.size_bytes, "must be 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """The model that a variant was made from: its name, the digest over its files, its licence where one is stated."""

    __pydantic_config__ = _FORBID

    name: str
    sha256: str
    architecture: str
    license: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSet:
    """The text that a recipe looked at: where it came from, how much it was, the digest over its token ids."""

    __pydantic_config__ = _FORBID

    source: str
    samples: int
    tokens: int
    seed: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of a recipe with every parameter that it ran with, defaults included."""

    __pydantic_config__ = _FORBID

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One of the settings that were swept: what it was, and its mean KL from the input model on held-back samples."""

    __pydantic_config__ = _FORBID

    parameters: Mapping[str, Any]
    kl_mean: float
    chosen: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """How a checkpoint was made.

    ``module_losses`` maps a module to the loss that its own compression reported (for GPTQ and SparseGPT the summed
    squared error weighted by the inverse Hessian, for a removed block its influence), in the order of the work.
    """

    __pydantic_config__ = _FORBID

    recipe: str
    steps: tuple[Step, ...]
    seed: int
    calibration: CalibrationSet | None = None
    candidates: tuple[Candidate, ...] = ()
    module_losses: Mapping[str, float] = field(default_factory=dict)
    cpu_seconds: float
    versions: Mapping[str, str]
    hardware: str
    made_at: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceScore:
    """The variant against the full model on one kind of task.

    ``kind`` is ``text`` (teacher-forced documents), ``answers`` (teacher-forced on what the full model itself
    answered) or ``choices`` (multiple choice). ``items`` are the clusters that the intervals resample. ``agreement``
    is how often the variant does what the full model does: the same most probable next token, or the same choice.
    ``flips`` (choices alone) is the share of items right with one model and wrong with the other.
    ``accuracy_difference`` is variant minus full, paired by item.
    """

    __pydantic_config__ = _FORBID

    slice: str
    kind: str
    items: int
    tokens: int
    agreement: Interval
    kl_mean: Interval | None = None
    kl_p99: float | None = None
    perplexity_full: float | None = None
    perplexity_ratio: Interval | None = None
    accuracy_full: float | None = None
    accuracy: float | None = None
    accuracy_difference: Interval | None = None
    flips: Interval | None = None

    def __post_init__(self) -> None:
        kinds = ("text", "answers", "choices")
        require(self.kind in kinds, "kind", self.kind, f"must be one of {kinds}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A variant against the full model on a suite of held-out items.

    ``quality`` is the mean of the slices' agreements, each slice counting the same; its interval comes from a bootstrap
    over items within slices. ``top1_agreement``, ``kl_*`` and ``perplexity_ratio`` are over all teacher-forced tokens,
    ``flips`` and ``accuracy_difference`` over all multiple-choice items. ``items_excluded`` shared an n-gram with
    calibration or training text and were not scored.
    """

    __pydantic_config__ = _FORBID

    suite: str
    suite_sha256: str
    reference_sha256: str
    seed: int
    quality: Interval
    top1_agreement: Interval | None
    kl_mean: Interval | None
    kl_p99: float | None
    perplexity_ratio: Interval | None
    flips: Interval | None = None
    accuracy_difference: Interval | None = None
    slices: tuple[SliceScore, ...]
    items_excluded: int
    overlap_ngram: int

    def __post_init__(self) -> None:
        require(self.quality.low >= 0 and self.quality.high <= 1, "quality", self.quality, "must be within [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineMeasurement:
    """Speed and energy of a variant on the engine that serves it, medians with the range of the rounds.

    Decode figures map a batch size to tokens per second of the whole batch, seconds per output token of one request,
    and joules per output token. ``against_full`` holds the paired ratios, variant over full, measured in turns in the
    same minutes; below 1 a rate is slower and an energy smaller. Log probabilities
    of a few texts' tokens are compared between the engine and transformers on the same checkpoint, in nats: the largest
    and the mean absolute difference, and ``logprob_shift``, the mean of engine less transformers. Where activations are
    rounded single tokens differ by much (a step of eight bits is near bfloat16's own error); the shift does not.
    """

    __pydantic_config__ = _FORBID

    engine: str
    engine_args: tuple[str, ...]
    hardware: str
    rounds: int
    prefill_tokens_per_s: Interval
    decode_tokens_per_s: Mapping[int, Interval]
    tpot_s: Mapping[int, Interval]
    ttft_s: Interval
    cold_start_s: float
    memory_bytes: int
    prefill_j_per_token: Interval | None
    decode_j_per_token: Mapping[int, Interval] | None
    energy_method: str | None
    against_full: Mapping[str, Interval] = field(default_factory=dict)
    logprob_difference_max: float | None = None
    logprob_difference_mean: float | None = None
    logprob_shift: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the gate said: whether the router may choose the variant by itself, and why or why not."""

    __pydantic_config__ = _FORBID

    promoted: bool
    reasons: tuple[str, ...]
    margins: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """``manifest.json``: one variant of a family. ``files`` are the checkpoint's own, without this one and the card."""

    __pydantic_config__ = _FORBID

    format: int = FORMAT
    family: str
    variant: str
    full: bool = False
    origin: Origin
    license: str | None
    quantization: str | None
    making: Making | None = None
    evaluation: Evaluation | None = None
    engine: EngineMeasurement | None = None
    verdict: Verdict | None = None
    files: Mapping[str, FileDigest]

    def __post_init__(self) -> None:
        require(self.format == FORMAT, "format", self.format, f"must be {FORMAT}, the only one known here")
        require(bool(self.files), "files", dict(self.files), "must name the checkpoint's files")

    @property
    def size_bytes(self) -> int:
        """The size of the checkpoint's weights."""
        return sum(file.size_bytes for name, file in self.files.items() if name.endswith(".safetensors"))

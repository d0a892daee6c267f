"""A distillation as a YAML file: teacher, student, text, loss, and how it is run. No torch here but for the loss.

::

    teacher: ./.economizer/models/smollm2-135m-instruct
    student:
      steps: [depth_prune: {keep: 0.667}]
    family: smollm2-135m
    variant: distilled-20
    data: ./.economizer/text/smollm2-135m
    out: ./.economizer/variants/smollm2-135m/distilled-20
    steps: 800
    learning_rate: 0.001

Paths that begin with ``./`` are relative to ``ECONOMIZER_HOME`` or the checkout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import cos, inf, pi
from pathlib import Path
from typing import Any, Literal

from economizer.energy.choose import MeterSettings
from economizer.variants.types import require
from economizer_compression.family import located

from economizer_training.losses import Loss
from economizer_training.pacing import EarlyStopping, Pause

_FORBID = {"extra": "forbid"}
_HOW = (
    *("mesh", "micro_batch", "recompute_activations", "compile", "checkpoints"),
    *("restarts", "gpu", "meter", "pause", "out"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentSource:
    """Where the student comes from: one of three.

    ``steps`` (with ``calibration`` and ``suite``) cut the teacher as a recipe of economizer-compress does; ``folder``
    is a model that is there already; ``config`` are settings that differ from the teacher's, such as
    ``num_hidden_layers: 12``, and the weights are what of the teacher's fits into them.
    """

    __pydantic_config__ = _FORBID

    steps: tuple[Mapping[str, Any], ...] = ()
    calibration: Mapping[str, int] = field(default_factory=dict)
    suite: str = "builtin"
    folder: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "folder", "config") if getattr(self, name)]
        require(len(given) == 1, "student", given, "must have exactly one of steps, folder and config")


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherLogits:
    """Where the teacher's distributions come from.

    ``in_process``: from a pass of the teacher beside each of the student's. ``stored``: ``samples`` draws for each
    position, made once by such passes. ``http``: the ``top`` most probable tokens for each position, asked once of
    ``model`` at ``url`` (an OpenAI API with vLLM's ``prompt_logprobs``), with the key in the environment variable
    ``key_env`` if there is one, ``requests`` at a time.
    """

    __pydantic_config__ = _FORBID

    kind: Literal["in_process", "stored", "http"] = "in_process"
    samples: int = 12
    top: int = 20
    url: str | None = None
    model: str | None = None
    key_env: str = "ECONOMIZER_API_KEY"
    requests: int = 4

    def __post_init__(self) -> None:
        for name in ("samples", "top", "requests"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be 1 or more")
        for name in ("url", "model"):
            rule = "must be given for the kind http, and for no other"
            require((self.kind == "http") == bool(getattr(self, name)), name, getattr(self, name), rule)
        is_url = self.url is None or self.url.startswith(("http://", "https://"))
        require(is_url, "url", self.url, "must begin with http:// or https://")

    def identity(self) -> dict[str, Any] | None:
        """What of it decides what comes out; None of what needs no such settings."""
        if self.kind == "in_process":
            return None
        return {"kind": self.kind, "samples": self.samples, "top": self.top, "model": self.model}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """How many workers there are and what they share: the product of all four.

    ``data`` copies of the model learn from other rows (DDP; FSDP2's replicas where anything else is above 1). ``shard``
    workers hold a part of each weight and learn from other rows too (FSDP2). ``tensor`` workers split each matrix,
    ``pipeline`` workers have some blocks each.
    """

    __pydantic_config__ = _FORBID

    data: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            require(size >= 1, name, size, "must be 1 or more")

    @property
    def workers(self) -> int:
        """How many processes."""
        return self.batches * self.tensor * self.pipeline

    @property
    def batches(self) -> int:
        """How many workers learn from rows of their own."""
        return self.data * self.shard


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoints:
    """Every ``every_steps`` the student is scored and saved; the last ``keep_last`` stay, and the best one."""

    __pydantic_config__ = _FORBID

    every_steps: int = 100
    keep_last: int = 2

    def __post_init__(self) -> None:
        require(self.every_steps >= 1, "every_steps", self.every_steps, "must be 1 or more")
        require(self.keep_last >= 1, "keep_last", self.keep_last, "must be 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """What ``economizer-train distill`` does.

    A step learns from ``batch`` rows, ``micro_batch`` of them at a time on each worker. The learning rate rises for
    ``warmup_steps`` and falls by a cosine to ``final_learning_rate``. ``freeze`` names parts of the model that stay as
    they are. ``compile`` has torch compile the blocks; ``auto``: where it can. ``restarts`` is how often workers that
    died are started again from the last checkpoint.
    """

    __pydantic_config__ = _FORBID

    teacher: str
    student: StudentSource
    family: str
    variant: str
    data: str
    out: str

    loss: Loss = field(default_factory=Loss)
    teacher_logits: TeacherLogits = field(default_factory=TeacherLogits)
    steps: int
    batch: int = 4
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    warmup_steps: int = 10
    weight_decay: float = 0.0
    clip: float = 1.0
    freeze: tuple[str, ...] = ("embed_tokens", "lm_head")
    precision: Literal["bf16", "fp32"] = "bf16"
    heldout_rows: int = 32
    early_stopping: EarlyStopping | None = None

    mesh: Mesh = field(default_factory=Mesh)
    micro_batch: int = 4
    recompute_activations: bool = False
    compile: bool | Literal["auto"] = False
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    restarts: int = 2
    gpu: bool = False
    meter: MeterSettings = field(default_factory=MeterSettings)
    pause: Pause | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "micro_batch", "heldout_rows"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be 1 or more")
        for name in ("final_learning_rate", "warmup_steps", "weight_decay", "restarts"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")
        for name in ("learning_rate", "clip"):
            require(0 < getattr(self, name) < inf, name, getattr(self, name), "must be above 0 and finite")
        each = self.mesh.batches * self.micro_batch
        rule = f"must be a multiple of mesh.data * mesh.shard * micro_batch, which is {each}"
        require(self.batch % each == 0, "batch", self.batch, rule)
        rule = "must be 0 where mesh.pipeline is above 1: no worker has all hidden states"
        require(not (self.loss.hidden and self.mesh.pipeline > 1), "loss.hidden", self.loss.hidden, rule)
        self._require_what_the_teacher_tells()
        rule = "must be 0 where mesh.shard, tensor or pipeline is above 1: a worker samples from a whole model"
        whole = self.mesh.workers == self.mesh.data
        require(whole or not self.loss.on_policy, "loss.on_policy", self.loss.on_policy, rule)
        rule = "must be auto or false where mesh.tensor or pipeline is above 1 or loss.on_policy above 0"
        require(self.compile is not True or self.can_compile, "compile", self.compile, rule)
        rule = "must not be none where early_stopping is given: it goes by joules"
        require(self.early_stopping is None or self.meter.kind != "none", "meter.kind", self.meter.kind, rule)

    def _require_what_the_teacher_tells(self) -> None:
        """A few tokens of each distribution are enough for one loss alone, and for text that is known before."""
        kind = self.teacher_logits.kind
        if kind == "in_process":
            return
        for name, only in (("divergence", "forward_kl"), ("temperature", 1.0), ("hidden", 0.0), ("on_policy", 0.0)):
            rule = f"must be {only} where teacher_logits.kind is {kind}"
            require(getattr(self.loss, name) == only, f"loss.{name}", getattr(self.loss, name), rule)

    @property
    def run(self) -> Path:
        """Where unfinished work lies: the student as it begins, checkpoints, metrics."""
        out = located(self.out)
        return out.with_name(f"{out.name}.run")

    @property
    def can_compile(self) -> bool:
        """Whether blocks are whole, and called with rows of one length, so that they are compiled once."""
        return self.mesh.tensor == 1 and self.mesh.pipeline == 1 and not self.loss.on_policy

    @property
    def micro_batches(self) -> int:
        """How many times a worker accumulates gradients in a step."""
        return self.batch // (self.mesh.batches * self.micro_batch)

    def learning_rate_at(self, step: int) -> float:
        """The rate of step 0, 1, ...: a rise over the warm-up, then a cosine from the peak to the final rate."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        fall = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + fall * (1 + cos(pi * min(1.0, done))) / 2

    def rows_of(self, step: int, rows: int) -> list[int]:
        """The rows of a step, of ``rows`` that there are: on where the last step ended, from the start at the end."""
        return [(step * self.batch + at) % rows for at in range(self.batch)]

    def identity(self) -> dict[str, Any]:
        """All that decides what comes out, without what only says how it is run: a run goes on only with the same."""
        told = {key: value for key, value in asdict(self).items() if key not in _HOW}
        told["teacher_logits"] = self.teacher_logits.identity()
        if not self.loss.on_policy:
            del told["loss"]["on_policy"]  # as a release that did not have it told it
        return told

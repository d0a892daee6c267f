"""Recipes: YAML files that say in a few lines how a variant is made. No torch here.

A recipe has a summary, its steps in order, and how much calibration text they look at::

    summary: INT8 weights and activations by GPTQ after SmoothQuant
    steps:
      - smoothquant: {strength: 0.8}
      - gptq: {scheme: W8A8, observer: [minmax, mse]}
    calibration: {samples: 64, tokens: 512}

A setting of a step that is given as a list is swept: each is tried, and the one nearest to the input model on
held-back calibration text is kept.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from economizer.variants.types import require
from pydantic import TypeAdapter, ValidationError

from economizer_compression.errors import CompressionError

SHIPPED = Path(__file__).resolve().parents[1] / "recipes"
GROUP_SIZES = (128, 64, 32, 16)

Scheme = Literal["W8A8", "W4A16", "FP8_DYNAMIC"]
Observer = Literal["minmax", "mse"]

_FORBID = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """What a quantising step has in common.

    ``W8A8`` has one scale per output channel and one per token, ``W4A16`` one per ``group_size`` input channels,
    ``FP8_DYNAMIC`` one per output channel and one per token. ``observer`` is how a scale is found: ``minmax`` takes the
    extremes, ``mse`` shrinks them to where the squared error is least. ``ignore`` names modules that stay as they are.
    """

    __pydantic_config__ = _FORBID

    scheme: Scheme
    group_size: int | None = None
    symmetric: bool = True
    observer: Observer | tuple[Observer, ...] = "minmax"
    ignore: tuple[str, ...] = ("lm_head",)

    def __post_init__(self) -> None:
        grouped = self.scheme == "W4A16"
        rule = "must be given for W4A16, 16 or more" if grouped else f"has no meaning for {self.scheme}"
        require((self.group_size is not None and self.group_size >= 16) == grouped, "group_size", self.group_size, rule)
        require(grouped or self.symmetric, "symmetric", self.symmetric, f"must be true for {self.scheme}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rtn(Quantization):
    """Rounds every weight to the nearest value of its scale. Needs no text and takes seconds."""

    name: ClassVar[str] = "rtn"
    needs_text: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Gptq(Quantization):
    """Rounds column by column and lets the columns to come make up for the error (Frantar et al., arXiv:2210.17323)."""

    name: ClassVar[str] = "gptq"
    needs_text: ClassVar[bool] = True

    dampening: float | tuple[float, ...] = 0.01
    block_size: int = 128
    activation_order: Literal["static", "none"] = "static"


@dataclass(frozen=True, kw_only=True, slots=True)
class Awq(Quantization):
    """Scales up the weights that meet large activations before it rounds (Lin et al., arXiv:2306.00978)."""

    name: ClassVar[str] = "awq"
    needs_text: ClassVar[bool] = True

    grid: int = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class SmoothQuant:
    """Moves outliers from activations to weights, where they harm less (Xiao et al., arXiv:2211.10438)."""

    __pydantic_config__ = _FORBID
    name: ClassVar[str] = "smoothquant"
    needs_text: ClassVar[bool] = True

    strength: float | tuple[float, ...] = 0.5

    def __post_init__(self) -> None:
        for strength in options(self.strength):
            require(0 <= strength <= 1, "strength", strength, "must be between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseGpt:
    """Zeroes two of every four weights and lets the others make up for it (Frantar and Alistarh, arXiv:2301.00774)."""

    __pydantic_config__ = _FORBID
    name: ClassVar[str] = "sparsegpt"
    needs_text: ClassVar[bool] = True

    mask: Literal["2:4"] = "2:4"
    dampening: float = 0.01
    ignore: tuple[str, ...] = ("lm_head",)


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthPrune:
    """Drops the blocks that change their input least (block influence: Men et al., arXiv:2403.03853)."""

    __pydantic_config__ = _FORBID
    name: ClassVar[str] = "depth_prune"
    needs_text: ClassVar[bool] = True

    keep: float

    def __post_init__(self) -> None:
        require(0 < self.keep < 1, "keep", self.keep, "must be a share of the blocks between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class WidthPrune:
    """Drops the intermediate channels of each MLP that add least to its output, the same number in every block.

    A channel's importance is its mean absolute activation times the norm of its column in the down projection (after
    Muralidharan et al., arXiv:2407.14679). What is kept is rounded to a multiple of ``multiple`` channels.
    """

    __pydantic_config__ = _FORBID
    name: ClassVar[str] = "width_prune"
    needs_text: ClassVar[bool] = True

    keep: float
    multiple: int = 64

    def __post_init__(self) -> None:
        require(0 < self.keep < 1, "keep", self.keep, "must be a share of the intermediate channels between 0 and 1")
        require(self.multiple >= 1, "multiple", self.multiple, "must be 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class GptqModel:
    """GPTQ by GPTQModel, in the AutoGPTQ checkpoint format; the only step of its recipe, since it saves by itself.

    ``desc_act`` takes the columns with the largest activations first, each with the group that it then falls in. vLLM
    0.32 serves what is symmetric and without ``desc_act``, and 8 bits on GPUs alone.
    """

    __pydantic_config__ = _FORBID
    name: ClassVar[str] = "gptqmodel"
    needs_text: ClassVar[bool] = True

    bits: Literal[4, 8] = 4
    group_size: int
    symmetric: bool = True
    desc_act: bool = False

    def __post_init__(self) -> None:
        require(self.group_size >= 16, "group_size", self.group_size, "must be 16 or more")


StepSettings = Rtn | Gptq | Awq | SmoothQuant | SparseGpt | DepthPrune | WidthPrune | GptqModel
_STEPS: dict[str, TypeAdapter[Any]] = {
    kind.name: TypeAdapter(kind) for kind in (Rtn, Gptq, Awq, SmoothQuant, SparseGpt, DepthPrune, WidthPrune, GptqModel)
}
STRUCTURAL = DepthPrune | WidthPrune


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How much text a recipe looks at: ``samples`` of ``tokens`` tokens each, drawn with ``seed``."""

    __pydantic_config__ = _FORBID

    samples: int = 64
    tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.samples >= 1, "samples", self.samples, "must be 1 or more")
        require(self.tokens >= 16, "tokens", self.tokens, "must be 16 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a variant is made. ``hidden_size``, where given, is the only model width that the recipe is meant for."""

    name: str
    summary: str
    steps: tuple[StepSettings, ...]
    calibration: Calibration = field(default_factory=Calibration)
    hidden_size: int | None = None

    def __post_init__(self) -> None:
        require(bool(self.steps), "steps", self.steps, "must name at least one step")
        quantising = [step.name for step in self.steps if isinstance(step, Quantization | GptqModel)]
        require(len(quantising) <= 1, "steps", quantising, "must quantise at most once")
        last = self.steps[-1]
        require(not isinstance(last, SmoothQuant), "steps", last.name, "must be followed by a step that quantises")
        if quantising:
            after = isinstance(last, Quantization | GptqModel)
            require(after, "steps", last.name, "must not come after the model is quantised")
        alone = len(self.steps) == 1 or not isinstance(last, GptqModel)
        require(alone, "steps", [step.name for step in self.steps], "must be gptqmodel alone where it is named")

    @property
    def needs_text(self) -> bool:
        """Whether some step looks at calibration text."""
        return any(step.needs_text for step in self.steps)

    def candidates(self) -> Iterator[tuple[Mapping[str, Any], tuple[StepSettings, ...]]]:
        """Every combination of the swept settings and the steps with it; one with nothing swept yields one."""
        swept = [
            (index, spec.name)
            for index, step in enumerate(self.steps)
            for spec in dataclasses.fields(step)
            if spec.name != "ignore" and isinstance(getattr(step, spec.name), tuple)
        ]
        choices = [getattr(self.steps[index], name) for index, name in swept]
        for values in itertools.product(*choices):
            steps = list(self.steps)
            for (index, name), value in zip(swept, values, strict=True):
                steps[index] = dataclasses.replace(steps[index], **{name: value})
            chosen = {f"{self.steps[i].name}.{name}": v for (i, name), v in zip(swept, values, strict=True)}
            yield chosen, tuple(steps)


def options(value: Any) -> tuple[Any, ...]:
    """The values of a setting that may be swept."""
    return value if isinstance(value, tuple) else (value,)


def load_recipe(name: str) -> Recipe:
    """A recipe by its file's path or, for those that come with the package, by its name; raises CompressionError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else SHIPPED / f"{name}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise CompressionError(f"there is no recipe {name}: give a YAML file or one of {shipped}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CompressionError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return parse_recipe(path.stem, content, str(path))


def parse_recipe(name: str, content: Any, source: str) -> Recipe:
    """The recipe in already-read YAML; raises CompressionError naming the key, the value and the rule."""
    if not isinstance(content, dict):
        raise CompressionError(f"{source}: {content!r}: a recipe must be a mapping of summary, steps, calibration")
    known = {"summary", "steps", "calibration", "hidden_size"}
    for key in content:
        if key not in known:
            raise CompressionError(f"{source}: {key}: is not a known key here; there are {', '.join(sorted(known))}")
    steps = content.get("steps")
    if not isinstance(steps, list):
        raise CompressionError(f"{source}: steps: {steps!r}: must be a list, one `- step: {{...}}` a line")
    try:
        return Recipe(
            name=name,
            summary=str(content.get("summary", "")),
            steps=tuple(_step(step, f"{source}: steps[{index}]") for index, step in enumerate(steps)),
            calibration=_parse(TypeAdapter(Calibration), content.get("calibration", {}), f"{source}: calibration"),
            hidden_size=_parse(TypeAdapter(int | None), content.get("hidden_size"), f"{source}: hidden_size"),
        )
    except ValueError as error:
        raise CompressionError(f"{source}: {error}") from None


def _step(content: Any, where: str) -> StepSettings:
    if isinstance(content, str):
        content = {content: {}}
    if not isinstance(content, dict) or len(content) != 1 or next(iter(content)) not in _STEPS:
        raise CompressionError(f"{where}: {content!r}: must be one of {', '.join(sorted(_STEPS))} with its settings")
    ((name, settings),) = content.items()
    step: StepSettings = _parse(_STEPS[name], settings or {}, f"{where}.{name}")
    return step


def _parse(adapter: TypeAdapter[Any], content: Any, where: str) -> Any:
    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        found = error.errors()[0]
        key = ".".join(str(part) for part in (where, *found["loc"]))
        if found["type"] == "unexpected_keyword_argument":
            raise CompressionError(f"{key}: is not a known key here") from None
        message = found["msg"].removeprefix("Value error, ")
        raise CompressionError(f"{key}: {found['input']!r}: {message}") from None


def refuse_group_sizes(recipe: Recipe, input_channels: Mapping[str, int]) -> None:
    """Raises CompressionError when a group size does not divide what it groups, with the sizes that would.

    ``input_channels`` maps each linear layer that a step may quantise to its number of input channels.
    """
    for step in recipe.steps:
        if not isinstance(step, Quantization | GptqModel) or step.group_size is None:
            continue
        odd = {name: width for name, width in input_channels.items() if width % step.group_size}
        if odd:
            common = gcd(*input_channels.values())
            fitting = [str(size) for size in GROUP_SIZES if common % size == 0]
            advice = f"{' or '.join(fitting)} would" if fitting else f"only divisors of {common} would"
            name, width = next(iter(odd.items()))
            raise CompressionError(
                f"recipe {recipe.name}: group_size {step.group_size} does not divide the {width} input channels of "
                f"{name} (and {len(odd) - 1} more layers): {advice}"
            )

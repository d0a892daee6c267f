"""A family as a YAML file: the full model, the variants to make of it, and what the gate allows. No torch here.

::

    family: smollm2-135m
    model: ./.economizer/models/smollm2-135m-instruct
    full: bf16
    engine: vllm-cpu
    margins: {quality_loss: 0.3}
    variants:                 # name: recipe
      int8: int8
      distilled: null         # made elsewhere, as `economizer-train distill` makes one, and lies there already
      distilled-int8: {recipe: int8, of: distilled}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import yaml
from economizer.energy.choose import MeterSettings
from economizer.variants.types import require
from pydantic import TypeAdapter, ValidationError

from economizer_compression.errors import CompressionError
from economizer_compression.gate import Margins

CHECKOUT = Path(__file__).resolve().parents[2]
ENGINES = CHECKOUT / "compression" / "engines"

_FORBID = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stacked:
    """A recipe that is run on another variant of the family, not on the full model."""

    __pydantic_config__ = _FORBID

    recipe: str
    of: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyFile:
    """What ``economizer-compress build`` makes: ``variants`` maps each variant's name to its recipe.

    A variant of no recipe was made of the full model elsewhere and lies in the family's folder.
    """

    __pydantic_config__ = _FORBID

    family: str
    model: str
    full: str
    engine: str
    suite: str = "builtin"
    margins: Margins = field(default_factory=Margins)
    variants: Mapping[str, str | Stacked | None]

    def __post_init__(self) -> None:
        for key, name in (
            ("family", self.family),
            ("full", self.full),
            *(("variants", name) for name in self.variants),
        ):
            require(
                bool(name) and not any(c in "@:/" or c.isspace() for c in name), key, name, "must have no @ : / space"
            )
        require(self.full not in self.variants, "variants", self.full, "must not make the full model")
        there = [name for name, made in self.variants.items() if made is None]
        for name, made in self.variants.items():
            if isinstance(made, Stacked):
                require(made.of in there, f"variants.{name}.of", made.of, f"must be one that lies there, of {there}")

    def recipe(self, variant: str) -> str | None:
        """The recipe that makes a variant; None where it was made elsewhere."""
        made = self.variants[variant]
        return made.recipe if isinstance(made, Stacked) else made

    def source(self, variant: str) -> str:
        """Which variant it is made of."""
        made = self.variants[variant]
        return made.of if isinstance(made, Stacked) else self.full


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFile:
    """How an engine is started to be measured: with the arguments, and metered by the meter, that the gateway gives it.

    ``gpus`` is how many it takes, ``gpu_idle_w`` what they draw without work in watts; None is not known.
    """

    __pydantic_config__ = _FORBID

    python: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    gpus: int = 0
    gpu_idle_w: float | None = None
    meter: MeterSettings = field(default_factory=MeterSettings)
    batches: tuple[int, ...] = (1, 4, 16)
    rounds: int = 3

    def __post_init__(self) -> None:
        require(self.gpus >= 0, "gpus", self.gpus, "must be 0 or more")
        if self.gpu_idle_w is not None:
            require(0 <= self.gpu_idle_w < inf, "gpu_idle_w", self.gpu_idle_w, "must be 0 or more and finite")


def load_family(path: Path) -> FamilyFile:
    """The family in a YAML file; raises CompressionError naming the key that is wrong."""
    family: FamilyFile = _load(path, TypeAdapter(FamilyFile))
    return family


def load_engine(name: str) -> EngineFile:
    """The engine in a YAML file, or of that name among those that come with the package."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else ENGINES / f"{name}.yaml"
    engine: EngineFile = _load(path, TypeAdapter(EngineFile))
    return engine


def home() -> Path:
    """What ``./`` paths in these files are relative to: ``ECONOMIZER_HOME`` or the checkout."""
    return Path(os.environ.get("ECONOMIZER_HOME") or CHECKOUT)


def located(path: str) -> Path:
    """A path of these files on this machine."""
    return home() / path if path.startswith("./") else Path(path)


def _load(path: Path, adapter: TypeAdapter[Any]) -> Any:
    try:
        return adapter.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CompressionError(f"there is no file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CompressionError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        found = error.errors()[0]
        key = ".".join(str(part) for part in found["loc"]) or "(the whole file)"
        unknown = found["type"] in ("unexpected_keyword_argument", "extra_forbidden")
        message = "is not a known key here" if unknown else found["msg"].removeprefix("Value error, ")
        raise CompressionError(f"{path}: {key}: {found['input']!r}: {message}") from None

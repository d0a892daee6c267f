"""The catalogue: what ``economizer-compress publish`` wrote of variants that it measured, laid over ``args``.

::

    families:
      FAMILY:
        variants:
          VARIANT: {engine: {model: PATH}, routed: BOOL, quality: ..., speed: ..., power: ..., energy: ...,
                    size_bytes: N, kl_mean: X, top1_agreement: X}

Every part may be absent, or null: what was not measured changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from economizer.errors import ConfigurationError, Mistake
from economizer.variants.catalog import NAME_RULE, is_name
from economizer.variants.types import EnergyCard, PowerCard, QualityCard, SpeedCard, require_measures
from economizer.yaml_files import from_pydantic, join, laid_over, mistake

# What a variant that args do not have takes from its family's full one; its model and the other cards are its own.
_AS_THE_FULL_ONE = (
    *("engine", "hardware", "context_tokens_max", "concurrency_max"),
    *("features", "scaling", "ray", "power"),
)
_ASLEEP = {"min": 0, "max": 1}
_CARDS = ("quality", "speed", "power", "energy")
_FORBID = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedEngine:
    """Where an engine finds the checkpoint; how it is started is the configuration's to say."""

    __pydantic_config__ = _FORBID

    model: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedVariant:
    """What was measured of one variant."""

    __pydantic_config__ = _FORBID

    engine: PublishedEngine | None = None
    routed: bool | None = None
    quality: QualityCard | None = None
    speed: SpeedCard | None = None
    power: PowerCard | None = None
    energy: EnergyCard | None = None
    size_bytes: int | None = None
    kl_mean: float | None = None
    top1_agreement: float | None = None

    def __post_init__(self) -> None:
        require_measures(self.size_bytes, self.kl_mean, self.top1_agreement)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFamily:
    """The published variants of one family."""

    __pydantic_config__ = _FORBID

    variants: Mapping[str, PublishedVariant] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A whole catalogue."""

    __pydantic_config__ = _FORBID

    families: Mapping[str, PublishedFamily]


_ADAPTER = TypeAdapter(Published)


def with_published(args: dict[str, Any], content: Any, path: Path) -> dict[str, Any]:
    """``args`` with the content of the catalogue at ``path`` laid over them.

    What was measured wins over what was declared, a card as a whole. Families that ``args`` do not have are left out;
    a variant that they do not have is added, asleep. What is wrong in ``args`` themselves is left as it is, for
    ``parse`` to name. Raises ConfigurationError with every mistake of the catalogue.
    """
    try:
        _ADAPTER.validate_python(content)
    except ValidationError as error:
        raise ConfigurationError(str(path), tuple(from_pydantic(error, ""))) from None
    families = args.get("families")
    if not isinstance(families, dict):
        return args
    changed, mistakes = dict(families), list[Mistake]()
    for name, family in families.items():
        published = content["families"].get(name, {}).get("variants", {})
        if isinstance(family, dict) and isinstance(family.get("variants"), dict):
            mistakes += _mistakes(family, published, join("families", (str(name), "variants")))
            changed[name] = {**family, "variants": _laid_over_all(family, published, path.parent)}
    if mistakes:
        raise ConfigurationError(str(path), tuple(mistakes))
    return {**args, "families": changed}


def _mistakes(family: dict[str, Any], published: Mapping[str, Any], at: str) -> Iterator[Mistake]:
    for name, variant in published.items():
        if name == family.get("full") and variant.get("routed") is False:
            rule = "must be true: it is the family's full variant, which the others are compared with"
            yield mistake(join(at, (name, "routed")), False, rule)
        if name not in family["variants"]:
            if not is_name(name):
                yield mistake(join(at, (name,)), name, NAME_RULE)
            if variant.get("engine") is None:
                rule = "must be given, since args have no variant of this name"
                yield Mistake(path=join(at, (name, "engine", "model")), value="(absent)", rule=rule)


def _laid_over_all(family: dict[str, Any], published: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    declared = family["variants"]
    full = declared.get(family["full"]) if isinstance(family.get("full"), str) else None
    added = {key: full[key] for key in _AS_THE_FULL_ONE if key in full} if isinstance(full, dict) else {}
    added["replicas"] = _ASLEEP
    variants = dict(declared)
    for name, variant in published.items():
        below = declared.get(name, added)
        if isinstance(below, dict):
            variants[name] = _laid_over_one(below, variant, folder)
    return variants


def _laid_over_one(below: dict[str, Any], published: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    measured = {key: value for key, value in published.items() if value is not None}
    if "engine" in measured:
        model = measured["engine"]["model"]
        measured["engine"] = {"model": str(folder / model) if model.startswith("./") else model}
    # Joined key by key, a card would mix two measurements.
    kept = {key: value for key, value in below.items() if key not in _CARDS or key not in measured}
    joined: dict[str, Any] = laid_over(kept, measured)
    return joined

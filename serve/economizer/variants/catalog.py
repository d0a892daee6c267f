"""The families that are served, looked up by the model name of a request. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from economizer.errors import ModelNotFound
from economizer.variants.types import Family, require

NAME_RULE = "a variant's name must have no '@', ':' or space in it"


def is_name(name: str) -> bool:
    """It can be a family's or a variant's name, which stand on both sides of an '@'."""
    return bool(name) and not any(letter in "@:" or letter.isspace() for letter in name)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelName:
    """What a request's ``model`` means: a family, the variant that it pins, the LoRA adapter that it names."""

    family: str
    variant: str | None = None
    lora: str | None = None


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Families by name. A model name is ``family``, an alias of it, or a LoRA adapter; ``@variant`` pins."""

    families: tuple[Family, ...]

    def __post_init__(self) -> None:
        names = [name for family in self.families for name in _names(family)]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, "families", twice, "must have names, aliases and LoRA adapters that are all different")

    @cached_property
    def _by_name(self) -> dict[str, ModelName]:
        found: dict[str, ModelName] = {}
        for family in self.families:
            loras = {lora for variant in family.variants for lora in variant.loras}
            for name in _names(family):
                lora = name if name in loras else None
                found[name] = ModelName(family=family.name, lora=lora)
                for variant in family.variants:
                    if lora is None or lora in variant.loras:
                        pinned = ModelName(family=family.name, variant=variant.name, lora=lora)
                        found[f"{name}@{variant.name}"] = pinned
        return found

    @cached_property
    def _by_family(self) -> dict[str, Family]:
        return {family.name: family for family in self.families}

    def resolve(self, model: str) -> ModelName:
        """What a request's model name means; raises ModelNotFound naming the models there are."""
        name = self._by_name.get(model)
        if name is None:
            known = ", ".join(sorted(known for known in self._by_name if "@" not in known))
            shown = model if len(model) <= 100 else model[:97] + "..."
            raise ModelNotFound(f"The model {shown!r} does not exist. There are: {known}.", param="model")
        return name

    def family(self, name: str) -> Family:
        """The family of that name; KeyError when there is none."""
        return self._by_family[name]

    def models(self) -> Iterator[tuple[str, ModelName]]:
        """Every model name and what it means, in order."""
        yield from sorted(self._by_name.items())


def _names(family: Family) -> list[str]:
    loras = {lora for variant in family.variants for lora in variant.loras}
    return [family.name, *family.aliases, *sorted(loras)]

"""Mixes of terms: which share of the requests asks for what. A YAML file lists sorts of requests and their shares."""

from __future__ import annotations

import random
from math import isclose
from pathlib import Path

import msgspec
import yaml

from load.types import Terms

SHIPPED = Path(__file__).resolve().parents[1] / "mixes"


class Sort(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests that ask for the same: their share of all, their terms, and OpenAI's ``service_tier``."""

    share: float
    terms: Terms = Terms()
    service_tier: str | None = None


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """Sorts of requests by name; shares add up to 1."""

    name: str
    sorts: dict[str, Sort]

    def draw(self, draw: random.Random) -> Sort:
        """One of the sorts, by their shares."""
        sorts = list(self.sorts.values())
        return draw.choices(sorts, weights=[sort.share for sort in sorts])[0]

    def with_policy(self, policy: str | None) -> Mix:
        """The same mix, with this policy in every sort that names none."""
        sorts = {
            name: msgspec.structs.replace(
                sort, terms=msgspec.structs.replace(sort.terms, policy=sort.terms.policy or policy)
            )
            for name, sort in self.sorts.items()
        }
        return msgspec.structs.replace(self, sorts=sorts)


def read_mix(name: str) -> Mix:
    """A shipped mix by its name, or a file by its path; raises ValueError where it is none."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else SHIPPED / f"{name}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise ValueError(f"--mix {name}: must be {shipped} or the path of a YAML file")
    try:
        sorts = msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), dict[str, Sort])
    except (msgspec.ValidationError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from None
    total = sum(sort.share for sort in sorts.values())
    if any(sort.share < 0 for sort in sorts.values()) or not isclose(total, 1.0, abs_tol=1e-6):
        raise ValueError(f"{path}: share adds up to {total:g}: must be 0 or more each, and 1 in all")
    return Mix(name=path.stem, sorts=sorts)

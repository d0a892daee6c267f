"""What would make a job fail late, found before it starts: format, sizes, broken weights, disk and memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from economizer_compression.errors import CompressionError
from economizer_compression.model_folder import GIB, ModelFolder, available_memory_bytes, require_disk
from economizer_compression.progress import steps as progress
from economizer_compression.pruning import require_prunable
from economizer_compression.recipes import STRUCTURAL, Recipe, refuse_group_sizes

_WORKING_BYTES = 2 * GIB  # Python, torch and the libraries, and one block's activations

Say = Callable[[str], None]


def check(recipe: Recipe, source: ModelFolder, out: Path, say: Say) -> None:
    """What would make the work fail later, found now: format, sizes, broken weights, disk and memory."""
    if source.quantization is not None:
        raise CompressionError(f"{source.path} is quantised already ({source.quantization}): give the full model")
    refuse_unknown(source)
    if recipe.hidden_size is not None and recipe.hidden_size != source.config.get("hidden_size"):
        found = source.config.get("hidden_size")
        raise CompressionError(f"recipe {recipe.name} is for models of hidden size {recipe.hidden_size}, not {found}")
    if any(isinstance(step, STRUCTURAL) for step in recipe.steps):
        require_prunable(source.architecture)
    refuse_group_sizes(recipe, source.input_channels())
    count = sum(1 for _ in recipe.candidates())
    require_disk(out.parent, (count + 1) * source.weights_bytes + GIB // 2, f"recipe {recipe.name}")
    _require_memory(recipe, source)
    say(f"checking {source.weights_bytes / GIB:.2f} GiB of weights")
    refuse_broken_weights(source)


def refuse_unknown(source: ModelFolder) -> None:
    """Raises CompressionError for a model or a tokenizer that transformers does not know."""
    try:
        AutoConfig.from_pretrained(source.path)
        AutoTokenizer.from_pretrained(source.path)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise CompressionError(f"{source.path} cannot be loaded by transformers: {first}") from None


def _require_memory(recipe: Recipe, source: ModelFolder) -> None:
    """The weights may lie on disk, but one block with its Hessians, and the text's activations, may not."""
    widest = max(source.input_channels().values(), default=0)
    blocks = max(1, int(source.config.get("num_hidden_layers", 1)))
    block_bytes = source.weights_bytes // blocks + 3 * 4 * widest**2
    calibration = recipe.calibration
    text_bytes = 0
    if recipe.needs_text:
        text_bytes = 4 * calibration.samples * calibration.tokens * int(source.config.get("hidden_size", 0))
    needed, available = _WORKING_BYTES + 2 * block_bytes + text_bytes, available_memory_bytes()
    if available < needed:
        raise CompressionError(
            f"recipe {recipe.name} needs {needed / GIB:.1f} GiB of memory for this model, and "
            f"{available / GIB:.1f} GiB are available: end other programs, or lower calibration.samples"
        )


def refuse_broken_weights(source: ModelFolder) -> None:
    """Raises CompressionError naming the first tensor that has a NaN or an infinity in it."""
    files = sorted({tensor.file for tensor in source.tensors.values()})
    with progress(len(source.tensors), "checking weights") as advance:
        for file in files:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118  # not a mapping
                    tensor = weights.get_tensor(name)
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
                        raise CompressionError(f"{file.name} has NaN or infinity in {name}: the model is broken")
                    advance()

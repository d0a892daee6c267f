"""Structured pruning of Llama-like models: whole blocks, or channels of each MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from economizer_compression.errors import CompressionError
from economizer_compression.model_folder import PRUNABLE


def require_prunable(architecture: str) -> None:
    """Raises CompressionError for a model whose blocks these functions do not know."""
    if architecture not in PRUNABLE:
        raise CompressionError(f"{architecture} cannot be pruned by structure: only {', '.join(sorted(PRUNABLE))} can")


@torch.no_grad()
def block_influence(model: Any, samples: Sequence[Sequence[int]]) -> list[float]:
    """1 - the mean cosine between a block's input and output, for each block (Men et al., arXiv:2403.03853)."""
    blocks = model.model.layers
    cosines = [torch.zeros((), dtype=torch.float64) for _ in blocks]
    tokens = 0

    def look(index: int) -> Any:
        def hook(_module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            similar = torch.nn.functional.cosine_similarity(inputs[0].float(), after.float(), dim=-1)
            cosines[index] += similar.sum().double().cpu()

        return hook

    handles = [block.register_forward_hook(look(index)) for index, block in enumerate(blocks)]
    try:
        for sample in samples:
            model(input_ids=torch.tensor([sample], device=model.device), use_cache=False, logits_to_keep=1)
            tokens += len(sample)
    finally:
        for handle in handles:
            handle.remove()
    return [1 - float(total) / tokens for total in cosines]


def drop_blocks(model: Any, keep: float, samples: Sequence[Sequence[int]]) -> dict[str, float]:
    """Removes the blocks of least influence until the share ``keep`` is left; returns the influence of each dropped.

    The first and the last block always stay: the others are measured against what they hand on.
    """
    influence = block_influence(model, samples)
    count = len(influence)
    dropped_count = count - max(2, round(count * keep))
    inner = sorted(range(1, count - 1), key=lambda index: (influence[index], index))
    dropped = sorted(inner[:dropped_count])
    if not dropped:
        raise CompressionError(f"keeping {keep:g} of {count} blocks drops none: keep fewer")
    kept = [index for index in range(count) if index not in dropped]
    model.model.layers = torch.nn.ModuleList(model.model.layers[index] for index in kept)
    for position, block in enumerate(model.model.layers):
        block.self_attn.layer_idx = position  # its place in the KV cache
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]
    return {f"model.layers.{index}": influence[index] for index in dropped}


@torch.no_grad()
def drop_channels(model: Any, keep: float, multiple: int, samples: Sequence[Sequence[int]]) -> dict[str, float]:
    """Keeps the most important intermediate channels of every MLP; returns the share of importance lost, by MLP."""
    blocks = model.model.layers
    width = model.config.intermediate_size
    kept_width = max(multiple, round(width * keep / multiple) * multiple)
    if kept_width >= width:
        raise CompressionError(f"keeping {keep:g} of {width} channels in multiples of {multiple} drops none")
    activity = [torch.zeros(width, dtype=torch.float64) for _ in blocks]

    def look(index: int) -> Any:
        def hook(_module: Any, inputs: tuple[Any, ...]) -> None:
            activity[index] += inputs[0].abs().sum(dim=tuple(range(inputs[0].dim() - 1))).double().cpu()

        return hook

    handles = [block.mlp.down_proj.register_forward_pre_hook(look(index)) for index, block in enumerate(blocks)]
    try:
        for sample in samples:
            model(input_ids=torch.tensor([sample], device=model.device), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    lost = {}
    for index, block in enumerate(blocks):
        importance = activity[index] * block.mlp.down_proj.weight.double().norm(dim=0).cpu()
        kept = importance.topk(kept_width).indices.sort().values
        lost[f"model.layers.{index}.mlp"] = 1 - float(importance[kept].sum() / importance.sum())
        _narrow(block.mlp, kept)
    model.config.intermediate_size = kept_width
    return lost


def _narrow(mlp: Any, kept: torch.Tensor) -> None:
    for layer, dimension in ((mlp.gate_proj, 0), (mlp.up_proj, 0), (mlp.down_proj, 1)):
        layer.weight = torch.nn.Parameter(layer.weight.index_select(dimension, kept.to(layer.weight.device)).clone())
        if dimension == 0:
            layer.out_features = len(kept)
            if layer.bias is not None:
                layer.bias = torch.nn.Parameter(layer.bias.index_select(0, kept.to(layer.bias.device)).clone())
        else:
            layer.in_features = len(kept)

"""Loads a checkpoint into transformers, whatever format its weights are stored in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.offload import load_offloaded_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from economizer_compression.errors import CompressionError
from economizer_compression.gptq_format import dequantize, format_settings
from economizer_compression.model_folder import GIB, ModelFolder, available_memory_bytes

_RESERVE_BYTES = 2 * GIB  # what torch, the libraries and the calibration data take beside the weights


def load_model(folder: Path) -> tuple[Any, Any]:
    """(model in bfloat16 and evaluation mode, tokenizer) of a checkpoint as it computes when it is served.

    On a machine with CUDA the model is spread over the GPUs, then memory; AutoGPTQ checkpoints go to one GPU. These are
    read without any kernel of their own: their weights alone are quantised, so the dense weights that the integers
    stand for compute the same.
    """
    source = ModelFolder.open(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    quantization = source.config.get("quantization_config") or {}
    if quantization.get("quant_method") == "gptq":
        model = _dense_from_gptq(source, quantization).to("cuda" if torch.cuda.is_available() else "cpu")
    else:
        device_map = "auto" if torch.cuda.is_available() else None
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map=device_map)
    return model.eval(), tokenizer


@contextmanager
def model_to_compress(source: ModelFolder) -> Iterator[Any]:
    """The model for a recipe's steps: in memory where it fits, else with the rest of its weights on disk.

    The steps work block by block, and llmcompressor brings each block to the GPU, if there is one, for its turn.
    """
    room = available_memory_bytes() - _RESERVE_BYTES
    if source.weights_bytes <= room:
        yield AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.bfloat16).eval()
        return
    with tempfile.TemporaryDirectory(prefix="offload-", dir=source.path.parent) as offload, load_offloaded_model():
        model = AutoModelForCausalLM.from_pretrained(
            source.path,
            dtype=torch.bfloat16,
            device_map="auto_offload",
            max_memory={"cpu": max(room, GIB)},
            offload_folder=offload,
        )
        yield model.eval()


def _dense_from_gptq(source: ModelFolder, quantization: dict[str, Any]) -> Any:
    bits, zero_offset = format_settings(quantization, str(source.path / "config.json"))
    packed: dict[str, torch.Tensor] = {}
    for file in sorted({tensor.file for tensor in source.tensors.values()}):
        packed.update(load_file(file))
    dense = {}
    for name in sorted(packed):
        module, _, kind = name.rpartition(".")
        if kind == "qweight":
            try:
                weight = dequantize(
                    packed[name].numpy(),
                    packed[f"{module}.qzeros"].numpy(),
                    packed[f"{module}.scales"].float().numpy(),
                    _groups(packed, module, bits),
                    bits=bits,
                    zero_offset=zero_offset,
                )
            except (KeyError, IndexError, ValueError) as error:
                message = f"{source.path}: the packed tensors of {module} do not fit together: {error}"
                raise CompressionError(message) from None
            dense[f"{module}.weight"] = torch.from_numpy(weight).to(torch.bfloat16)
        elif kind not in ("qzeros", "scales", "g_idx"):
            dense[name] = packed[name].to(torch.bfloat16)
    config = AutoConfig.from_pretrained(source.path)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    try:
        missing, surplus = model.load_state_dict(dense, strict=False)
    except RuntimeError as error:
        message = " ".join(str(error).split())
        raise CompressionError(f"{source.path}: its weights do not fit its config.json: {message[:300]}") from None
    untied = [name for name in missing if not (name == "lm_head.weight" and config.tie_word_embeddings)]
    # AutoGPTQ writes zeros where a layer has no bias; in old checkpoints lie the angles that transformers computes.
    surplus = [name for name in surplus if not name.endswith(".rotary_emb.inv_freq")]
    surplus = [name for name in surplus if not name.endswith(".bias") or bool(dense[name].any())]
    if untied or surplus:
        raise CompressionError(f"{source.path}: its weights do not fit its config.json: {(untied + surplus)[:3]}")
    model.tie_weights()
    return model


def _groups(packed: dict[str, torch.Tensor], module: str, bits: int) -> Any:
    """Each input's group: as stored, or for older checkpoints without ``g_idx`` one after the other."""
    if f"{module}.g_idx" in packed:
        return packed[f"{module}.g_idx"].numpy()
    inputs = packed[f"{module}.qweight"].shape[0] * 32 // bits
    groups = packed[f"{module}.scales"].shape[0]
    return (torch.arange(inputs) // (inputs // groups)).numpy()

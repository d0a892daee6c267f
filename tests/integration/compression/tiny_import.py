"""Runs in the compression environment, for test_import.py: tiny AutoGPTQ checkpoints through the command line.

::

    python tiny_import.py FOLDER TOKENIZER
"""

import io
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from economizer_compression.cli import main as command_line
from economizer_compression.errors import CompressionError
from economizer_compression.loading import load_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

WEIGHTS = "gptq_model-4bit-32g.safetensors"
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GROUP = 32


def packed(integers: Any) -> Any:
    """[8 * n, columns] of integers below 16 -> [n, columns] of words, the first integer in the lowest four bits."""
    words = np.zeros((len(integers) // 8, integers.shape[1]), dtype=np.int64)
    for row, values in enumerate(integers):
        words[row // 8] |= values << 4 * (row % 8)
    return words.astype(np.uint32).view(np.int32)


def random_layer(random: Any, outputs: int, inputs: int, *, reordered: bool) -> tuple[dict[str, Any], Any]:
    """(a layer as AutoGPTQ stores it, the weights that it stands for)."""
    groups = inputs // GROUP
    integers, zeros = random.integers(0, 16, (inputs, outputs)), random.integers(1, 16, (groups, outputs))
    scales = (random.uniform(0.5, 2, (groups, outputs)) * 0.06 / 8).astype(np.float16)
    group_of = np.arange(inputs) // GROUP
    if reordered:
        random.shuffle(group_of)
    weight = np.empty((outputs, inputs), dtype=np.float32)
    for i, group in enumerate(group_of):
        weight[:, i] = scales[group].astype(np.float32) * (integers[i] - zeros[group])
    stored = {
        "qweight": packed(integers),
        "qzeros": np.ascontiguousarray(packed(zeros.T - 1).T),
        "scales": scales,
        "g_idx": group_of.astype(np.int32),
        "bias": np.zeros(outputs, dtype=np.float16),
    }
    return {kind: torch.from_numpy(value) for kind, value in stored.items()}, torch.from_numpy(weight)


def make_checkpoint(folder: Path, tokenizer: Path) -> Any:
    """A random Llama with SmolLM2's tokenizer in AutoGPTQ's older layout, and the dense model that it stands for."""
    config = LlamaConfig(
        **{"vocab_size": 49152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 1024},
        **{"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.06, "tie_word_embeddings": True},
        architectures=["LlamaForCausalLM"],
    )
    torch.manual_seed(0)
    dense = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    random, stored = np.random.default_rng(0), {}
    state = dense.state_dict()
    for name, tensor in state.items():
        module, _, _ = name.rpartition(".")
        if module.endswith(LINEAR):
            layer, weight = random_layer(random, *tensor.shape, reordered=module.endswith("down_proj"))
            stored |= {f"{module}.{kind}": value for kind, value in layer.items()}
            tensor.copy_(weight)
        elif name != "lm_head.weight":
            stored[name] = tensor.clone()
    for layer in range(2):  # as transformers 4 wrote them
        stored[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.rand(16)
    config.save_pretrained(folder)
    save_file(stored, folder / WEIGHTS)
    settings = {"bits": 4, "group_size": GROUP, "damp_percent": 0.01, "desc_act": True, "sym": False}
    (folder / "quantize_config.json").write_text(json.dumps(settings | {"true_sequential": True}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    return dense


def imported(folder: Path, out: Path) -> dict[str, Any]:
    """What the command line says and returns."""
    said = io.StringIO()
    with redirect_stderr(said):
        code = command_line(["import", str(folder), "--out", str(out), "--family", "tiny", "--variant", "w4"])
    return {"code": code, "said": said.getvalue().splitlines()[-1].replace(str(folder), "FOLDER")}


def changed_weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The weights' file anew, with something done to its tensors."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / WEIGHTS)


def with_nan(tensors: dict[str, Any]) -> None:
    tensors["model.layers.1.mlp.up_proj.scales"][0, 3] = float("nan")


def as_bin(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "gptq_model-4bit-32g.bin")


def settings(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "quantize_config.json").write_text(text) and None


def cut_short(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no config.json": lambda folder: (folder / "config.json").unlink(),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    ".bin weights": as_bin,
    "half a file": cut_short,
    "3 bits": settings('{"bits": 3, "group_size": 32}'),
    "marlin": settings('{"bits": 4, "group_size": 32, "is_marlin_format": true}'),
    "foreign settings": settings('{"bits": 4, "quant_method": "awq"}'),
    "no JSON": settings('{"bits": 4'),
    "NaN": lambda folder: changed_weights(folder, with_nan),
}


def logits(model: Any) -> Any:
    """Of the same text."""
    with torch.no_grad():
        return model(torch.tensor([[1, *range(100, 160)]])).logits[0].float()


def main(folder: Path, tokenizer: Path) -> None:
    """One line of JSON."""
    good, out = folder / "good", folder / "imported"
    good.mkdir()
    dense = make_checkpoint(good, tokenizer)
    found: dict[str, Any] = {"import": imported(good, out), "again": imported(good, out)}
    found["files"] = sorted(file.name for file in out.iterdir())
    found["settings"] = json.loads((out / "config.json").read_text())["quantization_config"]
    found["original"] = json.loads((good / "config.json").read_text()).get("quantization_config")
    found["manifest"] = json.loads((out / "manifest.json").read_text())
    expected = logits(dense)
    found["spread"] = float(expected.std())
    found["difference"] = float((logits(load_model(out)[0]) - expected).abs().max())
    found["refused"] = {}
    for name, damage in DAMAGES.items():
        copy = folder / "damaged"
        shutil.copytree(good, copy)
        damage(copy)
        found["refused"][name] = imported(copy, folder / "refused")
        shutil.rmtree(copy)
    found["left"] = sorted(path.name for path in folder.iterdir())
    misfit = folder / "misfit"
    shutil.copytree(out, misfit)
    tensors = load_file(misfit / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.g_idx"] += 9
    (misfit / "model.safetensors").unlink()
    save_file(tensors, misfit / "model.safetensors")
    try:
        load_model(misfit)
    except CompressionError as error:
        found["misfit"] = str(error).replace(str(misfit), "FOLDER")
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

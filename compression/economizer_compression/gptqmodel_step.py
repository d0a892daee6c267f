"""The one adapter to GPTQModel, the successor of auto-gptq: a model folder to a folder in the AutoGPTQ format.

The environment is made without GPTQModel: the dependency group ``gptqmodel`` of pyproject.toml says how to add it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from economizer_compression.errors import CompressionError
from economizer_compression.recipes import GptqModel

_INSTALL = (
    "pip install --no-deps gptqmodel==7.7.0 defuser device-smi logbar pypcre tokenicer (without --no-deps, pip would "
    "replace this environment's torch and transformers)"
)
_WORKERS_MIN = 2  # its own default on one or two cores is 1, with which its pool of threads cannot be built


def require_gptqmodel() -> None:
    """Raises CompressionError saying how to install GPTQModel where it is absent."""
    if importlib.util.find_spec("gptqmodel") is None:
        raise CompressionError(f"the step gptqmodel needs GPTQModel, which is not in this environment: {_INSTALL}")


def quantize_folder(source: Path, out: Path, step: GptqModel, samples: Sequence[Sequence[int]]) -> dict[str, float]:
    """Quantises the model in ``source`` looking at ``samples`` (token ids) into ``out``; returns each module's loss."""
    gptqmodel = _gptqmodel()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        settings = gptqmodel.QuantizeConfig(
            bits=step.bits, group_size=step.group_size, sym=step.symmetric, desc_act=step.desc_act
        )
        model = gptqmodel.GPTQModel.load(str(source), settings, device=device)
    except ValueError as error:
        raise CompressionError(f"GPTQModel does not take {source} with {step}: {error}") from None
    rows = [torch.tensor([sample]) for sample in samples]
    model.quantize([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows], batch_size=1)
    losses = module_losses(model.quant_log, model.extract_layers_node()[0])
    model.save(str(out))
    _without_notes(out)
    return losses


def module_losses(log: Iterable[Mapping[str, Any]], layers: str) -> dict[str, float]:
    """GPTQModel's log of each module as losses by the module's name; those that it has no figure for are left out."""
    losses = {}
    for entry in log:
        try:
            losses[f"{layers}.{entry['layer']}.{entry['module']}"] = float(entry["loss"])
        except ValueError:  # words: the module was rounded to nearest for want of text
            continue
    return losses


def _gptqmodel() -> Any:
    require_gptqmodel()
    if (os.cpu_count() or 1) <= _WORKERS_MIN:
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(_WORKERS_MIN))
    try:
        gptqmodel = importlib.import_module("gptqmodel")
        importlib.import_module("logbar").LogBar.shared().setLevel("WARN")
    except ImportError as error:
        raise CompressionError(f"GPTQModel cannot be imported ({error}): {_INSTALL}") from None
    return gptqmodel


def _without_notes(folder: Path) -> None:
    """Removes what no engine reads and what differs from run to run: its log, and where it kept its temporary files."""
    (folder / "quant_log.csv").unlink(missing_ok=True)
    (folder / "quantize_config.json").unlink(missing_ok=True)  # config.json has the same
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["quantization_config"].get("meta", {}).pop("offload_to_disk_path", None)
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")

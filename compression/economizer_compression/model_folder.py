"""A model as it lies on disk: read without loading it, and refused before the work when it cannot be worked on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from economizer.variants.manifest import Origin
from safetensors import SafetensorError, safe_open

from economizer_compression.errors import CompressionError
from economizer_compression.manifests import digest_folder, digest_of

GIB = 2**30
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Blocks with self_attn and an mlp of gate_proj, up_proj and down_proj: what the structural recipes know how to cut.
PRUNABLE = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """A tensor's place and form: the file that holds it, its safetensors dtype (``BF16``), its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """A Hugging Face model folder: its configuration and the tensors in its safetensors files, by name."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def open(cls, path: Path) -> ModelFolder:
        """Reads the folder's headers; raises CompressionError saying what is missing or broken."""
        if not path.is_dir():
            raise CompressionError(f"{path} is no folder: give the folder of a model (config.json, *.safetensors)")
        config = _config(path)
        if not any((path / name).is_file() for name in _TOKENIZER_FILES):
            raise CompressionError(f"{path} has no tokenizer: one of {', '.join(_TOKENIZER_FILES)} must lie in it")
        return cls(path=path, config=config, tensors=dict(_tensors(path)))

    @property
    def architecture(self) -> str:
        """The model class, ``LlamaForCausalLM``."""
        return str(self.config["architectures"][0])

    @property
    def quantization(self) -> str | None:
        """How its weights are stored: the quantisation method and format, or None for plain floating point."""
        found = self.config.get("quantization_config")
        if not isinstance(found, dict):
            return None
        parts = [str(found[key]) for key in ("quant_method", "format", "checkpoint_format") if found.get(key)]
        return "/".join(dict.fromkeys(parts))

    @property
    def weights_bytes(self) -> int:
        """The size of its safetensors files."""
        return sum(file.stat().st_size for file in {tensor.file for tensor in self.tensors.values()})

    @property
    def parameters(self) -> int:
        """How many numbers its floating-point tensors hold."""
        return sum(tensor.elements for tensor in self.tensors.values() if tensor.dtype in _FLOAT_BYTES)

    def input_channels(self) -> dict[str, int]:
        """The linear layers that recipes quantise, with their input channels: all but embeddings and the head."""
        return {
            name.removesuffix(".weight"): tensor.shape[1]
            for name, tensor in self.tensors.items()
            if name.endswith(".weight") and len(tensor.shape) == 2 and "embed" not in name and "lm_head" not in name
        }

    def origin(self) -> Origin:
        """What a variant made from this folder says of it."""
        return Origin(
            name=str(self.config.get("_name_or_path") or self.path.resolve().name),
            sha256=digest_of(digest_folder(self.path)),
            architecture=self.architecture,
            license=self.license,
        )

    @property
    def license(self) -> str | None:
        """The licence that the folder's model card states, if it has one."""
        card = self.path / "README.md"
        lines = card.read_text(encoding="utf-8", errors="replace").splitlines() if card.is_file() else []
        if lines[:1] != ["---"]:
            return None
        front = lines[1 : lines.index("---", 1)] if "---" in lines[1:] else []
        return next((line.partition(":")[2].strip() for line in front if line.startswith("license:")), None)


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CompressionError(f"{path} is no model folder: it has no config.json") from None
    except (ValueError, OSError) as error:
        raise CompressionError(f"{file} cannot be read: {error}") from None
    architectures = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(architectures, list) or not architectures:
        raise CompressionError(f"{file}: architectures: {architectures!r}: must name the model's class")
    if not str(architectures[0]).endswith("ForCausalLM"):
        raise CompressionError(f"{file}: architectures: {architectures[0]!r}: must end in ForCausalLM")
    return dict(config)


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        other = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".gguf"))
        found = f" ({', '.join(other[:3])} would have to be converted first)" if other else ""
        raise CompressionError(f"{path} has no *.safetensors weights{found}")
    for file in files:
        try:
            with safe_open(file, framework="numpy") as weights:
                for name in weights.keys():  # noqa: SIM118  # not a mapping
                    header = weights.get_slice(name)
                    yield name, Tensor(file=file, dtype=header.get_dtype(), shape=tuple(header.get_shape()))
        except (SafetensorError, OSError) as error:
            raise CompressionError(f"{file} is damaged: {error}; get it anew") from None


def require_disk(folder: Path, needed_bytes: int, what: str) -> None:
    """Raises CompressionError when the disk below ``folder`` has not that much room."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise CompressionError(
            f"{what} needs {needed_bytes / GIB:.1f} GiB of disk at {existing}, and {free / GIB:.1f} GiB are free"
        )


def available_memory_bytes() -> int:
    """The memory that programs may still take, in bytes."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))

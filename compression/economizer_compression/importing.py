"""``economizer-compress import``: takes over a checkpoint that was made elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from economizer.variants.manifest import Manifest

from economizer_compression.checks import refuse_broken_weights
from economizer_compression.errors import CompressionError
from economizer_compression.gptq_format import format_settings
from economizer_compression.make import manifest_of
from economizer_compression.manifests import write_manifest
from economizer_compression.model_folder import GIB, ModelFolder, require_disk

_OLDER = "quantize_config.json"

Say = Callable[[str], None]
_NOT_TAKEN = shutil.ignore_patterns("manifest.json", ".*")


def import_checkpoint(folder: Path, out: Path, *, family: str, variant: str, full: bool, say: Say) -> Manifest:
    """Takes over a checkpoint that was made elsewhere, plain or quantised (AutoGPTQ's too), with a manifest.

    The files are linked where they can be and copied otherwise. AutoGPTQ's older layout, with the settings in
    ``quantize_config.json`` and a name of its own for the weights, is brought into the form that engines load.
    """
    if out.exists():
        raise CompressionError(f"{out} exists already; remove it first to import again")
    source = ModelFolder.open(folder)
    older = _older_settings(source)
    settings = older or source.config.get("quantization_config") or {}
    if settings.get("quant_method") == "gptq":
        format_settings(settings, str(folder / (_OLDER if older else "config.json")))
    require_disk(out.parent, source.weights_bytes, "the import")
    say(f"checking {source.weights_bytes / GIB:.2f} GiB of weights")
    refuse_broken_weights(source)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(folder, partial, copy_function=_link_or_copy, ignore=_NOT_TAKEN)
        if older:
            _with_settings_in_config(partial, older)
        _with_usual_weights_name(partial)
        imported = replace(source.origin(), name=source.path.resolve().name)
        manifest = manifest_of(partial, family=family, variant=variant, origin=imported, full=full)
        write_manifest(partial, manifest)
        partial.rename(out)
    except OSError as error:
        raise CompressionError(f"{folder} cannot be brought to {out}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _link_or_copy(source: str, target: str) -> None:
    """Links a file, or what a symbolic link leads to: a hub's cache is made of such."""
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def _older_settings(source: ModelFolder) -> dict[str, Any]:
    """The settings that AutoGPTQ's older layout has in a file of their own; none where config.json has them."""
    file = source.path / _OLDER
    if "quantization_config" in source.config or not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CompressionError(f"{file} cannot be read: {error}") from None
    if not isinstance(settings, dict) or settings.get("quant_method", "gptq") != "gptq":
        raise CompressionError(f"{file}: {str(settings)[:80]}: must be a mapping, of quant_method gptq if of any")
    return {**settings, "quant_method": "gptq"}


def _with_settings_in_config(folder: Path, settings: dict[str, Any]) -> None:
    file = folder / "config.json"
    config = {**json.loads(file.read_text(encoding="utf-8")), "quantization_config": settings}
    file.unlink()  # a link to the original
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _with_usual_weights_name(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1 and files[0].name != "model.safetensors":
        files[0].rename(folder / "model.safetensors")
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)

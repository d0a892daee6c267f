"""Runs in the compression environment, for test_run_command.py: what `run` refuses. Says each in JSON.

::

    python tiny_refusals.py FOLDER TOKENIZER
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from economizer_compression.cli import main as economizer_compress
from economizer_compression.errors import CompressionError
from economizer_compression.make import Job, make_variant
from economizer_compression.model_folder import ModelFolder
from economizer_compression.recipes import parse_recipe
from economizer_compression.suite import parse_suite
from every_recipe import SUITE, make_tiny
from safetensors.torch import load_file, save_file


def refusal(model: Path, *steps: dict[str, object], suite: object = None, **recipe: object) -> str:
    """The message of the error that making a variant ends with."""
    try:
        job = Job(
            recipe=parse_recipe("mine", {"steps": list(steps), **recipe}, "mine.yaml"),
            source=ModelFolder.open(model),
            out=model.parent / "refused",
            family="tiny",
            variant="mine",
            suite=SUITE if suite is None else parse_suite(suite, "mine.yaml"),
            data=model.parent,
        )
        make_variant(job, lambda line: None)
    except CompressionError as error:
        return str(error)
    return "it was made"


def broken_copy(model: Path, name: str) -> Path:
    """The model with a NaN in one of its weights."""
    copy = model.with_name(name)
    shutil.copytree(model, copy)
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def main(folder: Path, tokenizer: Path) -> None:
    """One model, several reasons."""
    tiny = folder / "tiny"
    make_tiny(tiny, tokenizer)
    rtn: dict[str, object] = {"rtn": {"scheme": "W8A8"}}
    gptq: dict[str, object] = {"gptq": {"scheme": "W8A8"}}
    other = folder / "other"
    shutil.copytree(tiny, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2ForCausalLM"]}))
    bare = folder / "bare"
    shutil.copytree(tiny, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    (folder / "short.txt").write_text("Too little to learn from.")
    short = {"calibration": [{"text": "short.txt"}], "evaluation": [{"slice": "x", "text": "short.txt"}]}
    missing = {**short, "calibration": [{"text": "absent.txt"}]}
    found = {
        "group": refusal(tiny, {"gptq": {"scheme": "W4A16", "group_size": 96}}),
        "width": refusal(tiny, rtn, hidden_size=576),
        "nan": refusal(broken_copy(tiny, "nan"), rtn),
        "architecture": refusal(other, {"depth_prune": {"keep": 0.5}}),
        "tokenizer": refusal(bare, rtn),
        "folder": refusal(folder, rtn),
        "text": refusal(tiny, gptq, suite=short),
        "file": refusal(tiny, gptq, suite=missing),
        "left": sorted(path.name for path in folder.glob("refused*")),
        "code": economizer_compress(["run", "int8-rtn", "--model", str(bare), "--out", str(folder / "x")]),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

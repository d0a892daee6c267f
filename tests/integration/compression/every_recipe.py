"""Runs in the compression environment, for test_recipes_served.py: every recipe on a tiny random Llama.

::

    python every_recipe.py FOLDER TOKENIZER

Writes a folder for each recipe, ``texts.json`` (token ids) and ``expected.json`` (what transformers says of them).
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from economizer_compression.loading import load_model
from economizer_compression.make import Job, make_variant
from economizer_compression.model_folder import ModelFolder
from economizer_compression.recipes import SHIPPED, Calibration, Gptq, Recipe, load_recipe
from economizer_compression.suite import Suite, TextSlice, TextSource
from transformers import AutoModelForCausalLM, LlamaConfig

# The variants are told apart from the model by more than rounding: a text of 60 tokens each.
TEXTS = [[1, *range(100, 160)], list(range(7, 4000, 90))]
SUITE = Suite(
    name="tiny",
    calibration=(TextSource(text="builtin:documents"),),
    evaluation=(TextSlice(slice="documents", text="builtin:documents"),),
    sha256="0" * 64,
)


def make_tiny(folder: Path, tokenizer: Path) -> None:
    """A random Llama of five blocks with SmolLM2's tokenizer; its widths take groups of 32 and of 64."""
    config = LlamaConfig(
        **{"vocab_size": 49152, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 5},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512},
        **{"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.05, "tie_word_embeddings": True},
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)


def small(recipe: Recipe) -> Recipe:
    """The recipe with little text; without its sweep, except that GPTQ's of INT4 stays as one to see."""
    swept = recipe.name == "gptq-w4a16"
    steps = tuple(
        replace(step, observer="mse") if isinstance(step, Gptq) and not swept else step for step in recipe.steps
    )
    return replace(recipe, steps=steps, calibration=Calibration(samples=4, tokens=64))


def logprobs(folder: Path) -> list[list[float]]:
    """Transformers' log probability of every token of TEXTS but the first."""
    model, _ = load_model(folder)
    found = []
    for ids in TEXTS:
        with torch.no_grad():
            every = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        found.append([float(every[at, token]) for at, token in enumerate(ids[1:])])
    return found


def main(folder: Path, tokenizer: Path) -> None:
    """Makes the model and its variants one after another, in one process: importing torch is most of the time."""
    tiny = folder / "full"
    make_tiny(tiny, tokenizer)
    expected = {"full": logprobs(tiny)}
    for file in sorted(SHIPPED.glob("*.yaml")):
        if file.stem.startswith("autogptq"):
            continue  # needs a package that is not installed by default
        job = Job(
            recipe=small(load_recipe(file.stem)),
            source=ModelFolder.open(tiny),
            out=folder / file.stem,
            family="tiny",
            variant=file.stem,
            suite=SUITE,
            data=None,
        )
        make_variant(job, lambda line: None)
        expected[file.stem] = logprobs(folder / file.stem)
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    (folder / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

"""Runs in the compression environment, for test_evaluate.py: evaluations of tiny random Llamas.

::

    python tiny_evaluations.py FOLDER TOKENIZER

Writes ``told.json``: what each evaluation said, or the error that it raised.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from economizer_compression import overlap
from economizer_compression.errors import CompressionError
from economizer_compression.evaluate import evaluate_folder
from economizer_compression.loading import load_model
from economizer_compression.suite import Suite, parse_suite
from economizer_compression.texts import DOCUMENTS, documents
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

QUESTIONS = 24
SLICES: list[dict[str, Any]] = [
    {"slice": "documents", "text": DOCUMENTS, "tokens": 512, "window": 64},
    {"slice": "chat", "answers": "builtin:prompts", "items": 4, "answer_tokens": 8},
    {
        "slice": "sums",
        "items": QUESTIONS,
        "choices": {
            "task": "sums",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": "sums.jsonl"}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}\nAnswer:",
            "doc_to_choice": ["A", "B", "C"],
            "doc_to_target": "{{right}}",
        },
    },
]


def suite(*slices: dict[str, Any]) -> Suite:
    return parse_suite({"name": "tiny", "calibration": [], "evaluation": list(slices)}, "tiny.yaml")


def question(index: int) -> str:
    return f"{index} and {index * 7 % 11} are how many"


def make_tiny(folder: Path, tokenizer: Path) -> None:
    config = LlamaConfig(
        **{"vocab_size": 49152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512},
        **{"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2, "tie_word_embeddings": True},
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / name, folder / name)


def changed(full: Path, name: str, change: Callable[[Any], None]) -> Path:
    """A copy of the full model whose weights are changed in place."""
    folder = full.with_name(name)
    shutil.copytree(full, folder)
    model = AutoModelForCausalLM.from_pretrained(full, dtype=torch.bfloat16)
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    return folder


def noise(model: Any) -> None:
    torch.manual_seed(1)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight += 0.1 * torch.randn_like(layer.mlp.down_proj.weight)


@torch.no_grad()
def chosen(folder: Path) -> list[int]:
    """What a model chooses, question by question, without lm-eval."""
    model, tokenizer = load_model(folder)
    letters = [tokenizer(f" {letter}").input_ids[0] for letter in "ABC"]
    asked = [tokenizer(f"{question(index)}\nAnswer:", return_tensors="pt").input_ids for index in range(QUESTIONS)]
    return [int(model.float()(ids).logits[0, -1, letters].argmax()) for ids in asked]


def main(root: Path, tokenizer_folder: Path) -> None:
    full = root / "full"
    make_tiny(full, tokenizer_folder)
    (root / "sums.jsonl").write_text(
        "".join(json.dumps({"question": question(i), "right": i % 3}) + "\n" for i in range(QUESTIONS))
    )
    loaded: list[str] = []
    told: dict[str, Any] = {}

    def load(folder: Path) -> tuple[Any, Any]:
        """In single precision, so that choices do not hang on how bfloat16 rounds in batches."""
        loaded.append(folder.name)
        model, tokenizer = load_model(folder)
        return model.float(), tokenizer

    def note(what: str, folder: Path, on: Suite, data: Path | None = root) -> None:
        try:
            told[what] = asdict(evaluate_folder(folder, full, on, data=data, work=root / "work", seed=0, load=load))
        except CompressionError as error:
            told[what] = str(error)

    everything = suite(*SLICES)
    note("full", full, everything)
    same = changed(full, "same", lambda model: None)
    (same / "note.json").write_text("{}")  # another digest
    note("same", same, everything)
    other = changed(full, "other", noise)
    note("other", other, everything)
    told["loaded"] = list(loaded)
    told["chosen"] = [chosen(full), chosen(other)]

    text = documents(DOCUMENTS, None, part="evaluation")[0]
    ids = AutoTokenizer.from_pretrained(full)(text, verbose=False).input_ids
    tokenizer = AutoTokenizer.from_pretrained(full)
    learnt = shutil.copytree(other, root / "learnt")
    overlap.save(
        overlap.ngrams([tokenizer.decode(ids[70:120]), tokenizer.decode(ids[200:250])]), learnt / "calibration.ngrams"
    )
    note("learnt", learnt, everything)
    overlap.save(overlap.ngrams(documents(DOCUMENTS, None, part="evaluation")), learnt / "calibration.ngrams")
    note("learnt by heart", learnt, everything)

    note("damaged", changed(full, "damaged", lambda model: model.model.norm.weight.fill_(torch.nan)), everything)
    note("damaged on choices", root / "damaged", suite(SLICES[2]))
    strange = shutil.copytree(full, root / "strange")
    tokenizer.add_tokens(["brown fox"])
    tokenizer.save_pretrained(strange)
    note("strange", strange, everything)
    note("too little text", other, suite({**SLICES[0], "tokens": 10_000_000}))
    note("too few items", other, suite({**SLICES[2], "items": 100}))
    note("no data", other, suite(SLICES[2]), data=None)
    told["left"] = sorted(path.name.rpartition(".")[2] for path in (root / "work").iterdir() if path.is_file())
    (root / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""The classifier: an encoder, the mean of what it says of a text's tokens, and a line for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from economizer_training.classify.settings import Run
from economizer_training.errors import TrainingError

Tensor = Any


class Classifier(torch.nn.Module):
    """Token ids and their mask in, [texts, length] each; logits out, [texts, classes]."""

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = torch.nn.Dropout(getattr(encoder.config, "hidden_dropout_prob", 0.1))
        self.head = torch.nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        counts = mask.unsqueeze(-1).to(hidden.dtype)
        return self.head(self.dropout((hidden * counts).sum(1) / counts.sum(1)))


def classifier(folder: Path, classes: int, run: Run) -> Classifier:
    """The encoder as the run has it, in single precision, with a head that knows nothing."""
    try:
        encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        first = [*str(error).strip().splitlines(), ""][0]
        raise TrainingError(f"{folder} cannot be loaded by transformers: {first}") from None
    encoder.pooler = None  # what BERT has for pairs of sentences; nothing would learn from it
    if run.blocks is not None:
        _cut(encoder, run.blocks, folder)
    model = Classifier(encoder, classes)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not any(part in name.split(".") for part in run.freeze)
    return model


def _cut(encoder: Any, kept: Sequence[int], folder: Path) -> None:
    blocks = getattr(getattr(encoder, "encoder", None), "layer", None)
    if blocks is None:
        raise TrainingError(f"blocks: {folder} is a {type(encoder).__name__}: only encoders built as BERT are cut")
    encoder.encoder.layer = torch.nn.ModuleList([blocks[at] for at in kept])
    encoder.config.num_hidden_layers = len(kept)


def tokenised(folder: Path, texts: Sequence[str], tokens_max: int) -> list[list[int]]:
    """The ids of each text, the first ``tokens_max``."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=tokens_max)["input_ids"]
    return found


def padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids as long as the longest, and the mask that says which count."""
    longest = max(map(len, ids))
    filled = torch.zeros(len(ids), longest, dtype=torch.long)
    mask = torch.zeros(len(ids), longest, dtype=torch.long)
    for row, each in enumerate(ids):
        filled[row, : len(each)] = torch.tensor(each)
        mask[row, : len(each)] = 1
    return filled, mask

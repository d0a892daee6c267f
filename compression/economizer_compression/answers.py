"""The model's own answers to chats: text that looks like what it will serve, for calibration and for scoring."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from economizer_compression.errors import CompressionError
from economizer_compression.locks import one_at_a_time
from economizer_compression.progress import steps
from economizer_compression.texts import Chat

_BATCH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """A chat through the model's template as token ids, the answer's token ids, and both as text without template."""

    prompt_ids: list[int]
    answer_ids: list[int]
    text: str


def answer(model: Any, tokenizer: Any, chats: Sequence[Chat], *, tokens: int, cache: Path, key: str) -> list[Answered]:
    """The model's most probable answers of up to ``tokens`` tokens, one for each chat.

    They are kept in the folder ``cache`` under ``key``, which names the model, so that each is made once; a run that is
    killed goes on after the last batch. ``model`` may be a function that returns the model, called when it is needed.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise CompressionError("the tokenizer has no chat template, so the model cannot answer chats")
    told = json.dumps([key, tokens, chats], sort_keys=True)
    file = cache / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.jsonl"
    with one_at_a_time(cache, "the model's own answers"):
        done = list(_kept(file))
        if len(done) < len(chats):
            answering = model() if callable(model) and not isinstance(model, torch.nn.Module) else model
            _answer_rest(answering, tokenizer, chats, len(done), tokens, file)
            done = list(_kept(file))
    return done


def _answer_rest(model: Any, tokenizer: Any, chats: Sequence[Chat], first: int, tokens: int, file: Path) -> None:
    left = -(-(len(chats) - first) // _BATCH)
    with steps(left, "the model's own answers") as advance, file.open("a", encoding="utf-8") as kept:
        for start in range(first, len(chats), _BATCH):
            for made in _batch(model, tokenizer, chats[start : start + _BATCH], tokens):
                kept.write(json.dumps(asdict(made)) + "\n")
            kept.flush()
            advance()


def _kept(file: Path) -> Iterator[Answered]:
    """What an earlier run wrote; a line that was cut off when it was killed is dropped from the file."""
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8")
    whole, _, cut = text.rpartition("\n")
    if cut:
        file.write_text(whole + "\n" if whole else "", encoding="utf-8")
    for line in whole.splitlines():
        yield Answered(**json.loads(line))


@torch.no_grad()
def _batch(model: Any, tokenizer: Any, chats: Sequence[Chat], tokens: int) -> Iterator[Answered]:
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True) for chat in chats]
    ids = [list(prompt["input_ids"]) for prompt in prompts]
    longest = max(map(len, ids))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    padded = torch.tensor([[pad] * (longest - len(each)) + each for each in ids], device=model.device)
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in ids], device=model.device)
    made = model.generate(
        input_ids=padded, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=pad
    )
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    for chat, prompt_ids, row in zip(chats, ids, made[:, longest:].tolist(), strict=True):
        end = next((index + 1 for index, token in enumerate(row) if token in ends), len(row))
        said = [message["content"] for message in chat]
        text = "\n".join([*said, tokenizer.decode(row[:end], skip_special_tokens=True)])
        yield Answered(prompt_ids=prompt_ids, answer_ids=row[:end], text=text)

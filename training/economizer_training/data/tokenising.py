"""One example to a row of tokens, or to what the teacher is asked for it. Needs no torch and no Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from economizer_training.data.chance import draw
from economizer_training.data.chat import NotRendered, Tokens, chat_tokens, document_tokens, rendered
from economizer_training.data.choosing import Place
from economizer_training.data.config import Preparation
from economizer_training.data.examples import Example, Message
from economizer_training.data.paraphrasing import beginning, last_asked
from economizer_training.errors import TrainingError

Row = dict[str, Any]

# Columns of a row: text where not said otherwise.
COLUMNS = {
    "file": "string",
    "rank": "int64",
    "slice": "string",
    "rule": "string",  # empty where it was not dropped
    "bytes": "int64",
    "ids": "binary",  # int32
    "counted": "binary",  # bool
    "asked": "string",  # the messages that the teacher is to answer; empty where there are ids
    "otherwise": "string",  # what is to be put otherwise, empty where it is too long, and its chat; else empty
    "text": "string",
}


def tokenised(example: Example, place: Place, preparation: Preparation, folder: str) -> Row:
    """The row of an example's copy, without what the teacher has to add."""
    row = {
        "file": f"{place.split}-{place.shard:05d}",
        "rank": place.rank,
        "slice": example.slice,
        "rule": "",
        "bytes": example.size_bytes,
        "ids": b"",
        "counted": b"",
        "asked": "",
        "otherwise": "",
        "text": example.text,
    }
    chat = chat_of(example, preparation, place.copy)
    try:
        row |= columns_of(chat, example.text, preparation, folder)
    except NotRendered as refused:
        return {**row, "rule": str(refused)}
    wanted = preparation.paraphrases
    # Of copies the first: the others' paraphrases would be the same.
    if wanted is not None and place.split == "train" and place.copy == 0:
        drawn = draw(preparation.seed, "paraphrase", example.id) < wanted.share
        row["otherwise"] = _otherwise(chat, example.text, wanted.tokens, folder) if drawn else ""
    return row


def columns_of(chat: Sequence[Message], text: str, preparation: Preparation, folder: str) -> Row:
    """A chat's or, without one, a document's tokens, or that the teacher is asked; raises NotRendered."""
    if not chat:
        return token_columns(document_tokens(tokenizer_of(folder), text))
    if preparation.answers is not None and chat[-1]["role"] == "user":
        return {"asked": json.dumps(chat)}
    return token_columns(chat_tokens(tokenizer_of(folder), chat, preparation.packing.counted))


def token_columns(tokens: Tokens) -> Row:
    """Tokens as a row has them."""
    return {"ids": tokens.ids.tobytes(), "counted": tokens.counted.tobytes(), "asked": ""}


def chat_of(example: Example, preparation: Preparation, copy: int) -> list[Message]:
    """A copy's chat; of fields by the template whose turn it is. A document has none."""
    templates = next(source.templates for source in preparation.sources if source.name == example.source)
    first = turn_of(example.id, preparation.seed, len(templates)) if templates else 0
    return example.chat(templates, first + copy)


def turn_of(id_: str, seed: int, count: int) -> int:
    """Which template an example begins with; its copies go on from there."""
    return int(draw(seed, "template", id_) * count)


def whole_tokens(example: Example, preparation: Preparation, folder: str) -> Tokens:
    """An example's first copy as it stands, answered or not; raises NotRendered."""
    tokenizer = tokenizer_of(folder)
    chat = chat_of(example, preparation, 0)
    if not chat:
        return document_tokens(tokenizer, example.text)
    return Tokens.of(tokenizer(rendered(tokenizer, chat), add_special_tokens=False)["input_ids"])


def _otherwise(chat: Sequence[Message], text: str, tokens_max: int, folder: str) -> str:
    def count(some: str) -> int:
        return len(tokenizer_of(folder)(some, add_special_tokens=False)["input_ids"])

    if not chat:
        return json.dumps([beginning(text, tokens_max, count), []])
    asked = last_asked(chat)
    if asked is None:
        return ""
    said = chat[asked]["content"]
    return json.dumps([said if count(said) <= tokens_max else "", chat])


def padding(folder: str) -> int:
    """The token that fills rows."""
    tokenizer = tokenizer_of(folder)
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


@cache
def tokenizer_of(folder: str) -> Any:
    """A folder's tokenizer, loaded once in a process."""
    return load_tokenizer(Path(folder))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder; raises TrainingError for one that has none or no end of text."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise TrainingError(f"tokenizer: there is no folder {folder}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        first = [*str(error).strip().splitlines(), "no message"][0]
        raise TrainingError(f"tokenizer: {folder} has none that can be read: {first}") from None
    if tokenizer.eos_token_id is None:
        raise TrainingError(f"tokenizer: {folder} has no end of text, by which documents are kept apart")
    return tokenizer

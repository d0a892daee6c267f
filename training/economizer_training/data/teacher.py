"""What the teacher says of examples: answers, paraphrases, and how likely it finds them.

What it writes is kept in a folder, so that a run that was killed does not ask twice. A shard's rows are always the
same, so that they are asked in the same batches: in bfloat16 the neighbours in a batch may decide between two tokens
that are all but equally probable.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from economizer_compression.answers import Answered, answer
from economizer_compression.loading import load_model
from economizer_compression.model_folder import ModelFolder
from numpy.typing import NDArray

from economizer_training.data.chat import NotRendered, Tokens, said_by_assistant
from economizer_training.data.config import Paraphrases, Preparation
from economizer_training.data.examples import Message
from economizer_training.data.paraphrasing import KEPT, last_asked, verdict
from economizer_training.data.tokenising import Row, columns_of, token_columns, tokenizer_of


@torch.no_grad()
def likelihood(folder: str, ids: NDArray[np.int32]) -> float:
    """The mean negative log-likelihood of tokens after the first, two or more in all, in nats a token."""
    tokens = torch.from_numpy(ids).long()[None].to(_teacher(folder).device)
    logits = _teacher(folder)(input_ids=tokens, use_cache=False).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:]))


def add_answers(rows: Sequence[Row], preparation: Preparation, folder: str, cache_folder: Path) -> int:
    """Gives the rows that ask for it their chats' answers, or the rule that drops them; returns how many asked."""
    asking = [row for row in rows if row["asked"]]
    if not asking or preparation.answers is None:
        return 0
    chats = [json.loads(row["asked"]) for row in asking]
    made = _answers(folder, chats, preparation.answers.tokens, cache_folder)
    for row, chat, answered in zip(asking, chats, made, strict=True):
        tokens = Tokens.of([*answered.prompt_ids, *answered.answer_ids])
        try:
            if preparation.packing.counted == "assistant":
                tokens.counted[: len(answered.prompt_ids)] = said_by_assistant(tokenizer_of(folder), chat, asked=True)
            row |= token_columns(tokens) | {"text": answered.text, "bytes": len(answered.text.encode())}
        except NotRendered as refused:
            row |= {"asked": "", "rule": str(refused)}
    return len(asking)


def paraphrased(
    rows: Sequence[Row], preparation: Preparation, folder: str, cache_folder: Path
) -> tuple[list[Row], Counter[str]]:
    """New rows for those that are to be put otherwise, and how many were kept and refused by which rule."""
    wanted = preparation.paraphrases
    told = [(row, *json.loads(row["otherwise"])) for row in rows if row["otherwise"]]
    asked = [(row, source, chat) for row, source, chat in told if source]
    counts: Counter[str] = Counter({"too long": len(told) - len(asked)} if len(told) > len(asked) else {})
    if wanted is None or not asked:
        return [], counts
    made = []
    for (row, source, chat), (text, finished) in zip(
        asked, _paraphrases(folder, [source for _, source, _ in asked], wanted, cache_folder), strict=True
    ):
        found = verdict(source, text, finished=finished)
        counts[found] += 1
        if found == KEPT:
            made.append(_with(row, text, chat, preparation, folder))
    return made, counts


def _with(row: Row, text: str, chat: list[Message], preparation: Preparation, folder: str) -> Row:
    """The row of a paraphrase: a document of its own, or the chat with the user's last turn put otherwise."""
    if chat:
        chat[last_asked(chat) or 0]["content"] = text
        text = "\n\n".join(message["content"] for message in chat)
    columns = columns_of(chat, text, preparation, folder)
    return {**row, "otherwise": "", "text": text, "bytes": len(text.encode()), **columns}


def _paraphrases(
    folder: str, sources: Sequence[str], wanted: Paraphrases, cache_folder: Path
) -> list[tuple[str, bool]]:
    """Each source's paraphrase, and whether the teacher came to its end."""
    chats = [[{"role": "user", "content": wanted.prompt.replace("{text}", source)}] for source in sources]
    return [
        (
            tokenizer_of(folder).decode(answered.answer_ids, skip_special_tokens=True).strip(),
            len(answered.answer_ids) < wanted.tokens,
        )
        for answered in _answers(folder, chats, wanted.tokens, cache_folder)
    ]


def _answers(folder: str, chats: Sequence[list[Message]], tokens: int, cache_folder: Path) -> list[Answered]:
    return answer(
        lambda: _teacher(folder), tokenizer_of(folder), chats, tokens=tokens, cache=cache_folder, key=_digest(folder)
    )


@cache
def _teacher(folder: str) -> Any:
    return load_model(Path(folder))[0]


@cache
def _digest(folder: str) -> str:
    return ModelFolder.open(Path(folder)).origin().sha256

"""Examples to tokens: chats through the model's own template, documents as they stand. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from economizer_training.data.examples import Message
from economizer_training.errors import TrainingError


class NotRendered(Exception):
    """A chat that cannot be learnt from; the message is the rule's name in the card."""


class Tokens(NamedTuple):
    """An example's token ids, and which of them count in a loss: [tokens] each."""

    ids: NDArray[np.int32]
    counted: NDArray[np.bool_]

    @classmethod
    def of(cls, ids: Sequence[int]) -> Tokens:
        """Tokens that all count."""
        return cls(np.asarray(ids, np.int32), np.ones(len(ids), np.bool_))


def document_tokens(tokenizer: Any, text: str) -> Tokens:
    """A document's tokens and the end of text."""
    return Tokens.of([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])


def chat_tokens(tokenizer: Any, messages: Sequence[Message], counted: Literal["all", "assistant"] = "all") -> Tokens:
    """A chat's tokens by the tokenizer's template; raises NotRendered where nobody answers or the template refuses."""
    if not any(message["role"] == "assistant" and message["content"] for message in messages):
        raise NotRendered("no_answer")
    tokens = Tokens.of(tokenizer(rendered(tokenizer, messages), add_special_tokens=False)["input_ids"])
    return tokens if counted == "all" else tokens._replace(counted=said_by_assistant(tokenizer, messages))


def rendered(tokenizer: Any, messages: Sequence[Message], *, asked: bool = False) -> str:
    """A chat as the template writes it, up to the assistant's next turn where it is ``asked``; raises NotRendered."""
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asked))
    except TemplateError as error:
        raise NotRendered("template_refuses") from error


def said_by_assistant(tokenizer: Any, messages: Sequence[Message], *, asked: bool = False) -> NDArray[np.bool_]:
    """Which tokens of a rendered chat the assistant said, [tokens]: its turns, and what ends each.

    Raises NotRendered where the template writes a turn otherwise once others follow, so that none can be found.
    """
    whole = rendered(tokenizer, messages, asked=asked)
    said = np.zeros(len(whole), np.bool_)
    for at, message in enumerate(messages):
        if message["role"] == "assistant":
            before = rendered(tokenizer, messages[:at], asked=True) if at else ""
            through = rendered(tokenizer, messages[: at + 1]).rstrip()
            if not at or not through.startswith(before) or not whole.startswith(through):
                raise NotRendered("template_mixes_turns")
            said[len(before) : len(through)] = True
    try:
        spans = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    except NotImplementedError:
        raise TrainingError("packing.counted: must be all for this tokenizer, which does not say what it cut") from None
    return np.array([said[begin:end].any() for begin, end in spans], np.bool_)

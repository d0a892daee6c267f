"""Examples to tokens: chats through the model's own template, documents as they stand. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from economizer_training.data.examples import Message


class NotRendered(Exception):
    """A chat that cannot be learnt from; the message is the rule's name in the card."""


def document_tokens(tokenizer: Any, text: str) -> NDArray[np.int32]:
    """A document's tokens and the end of text."""
    return np.asarray([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id], np.int32)


def chat_tokens(tokenizer: Any, messages: Sequence[Message]) -> NDArray[np.int32]:
    """A chat's tokens by the tokenizer's template; raises NotRendered where nobody answers or the template refuses."""
    from jinja2 import TemplateError

    if not any(message["role"] == "assistant" and message["content"] for message in messages):
        raise NotRendered("no_answer")
    try:
        whole = tokenizer.apply_chat_template(list(messages), tokenize=False)
    except TemplateError as error:
        raise NotRendered("template_refuses") from error
    return np.asarray(tokenizer(whole, add_special_tokens=False)["input_ids"], np.int32)

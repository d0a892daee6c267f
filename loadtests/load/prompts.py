"""Real prompts of a wanted length: a question, behind as much of a real text as it takes. The same seed and key give
the same prompt.

Without a folder of public sets the texts are the built-in ones of compression: Python's own language reference and the
prompts that are shipped, the halves that no variant was calibrated on.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from economizer_compression import texts

from load.tokens import Counter
from load.types import Message

TEMPLATE_TOKENS, MESSAGE_TOKENS = 30, 5  # what a chat template adds: SmolLM2's to a chat, and to each later message
_LEAD = "Read this text, then answer.\n\n"
_QUESTION_FIELDS = ("question", "prompt", "instruction", "input", "turns")
_NEAR = 32  # so many questions, the nearest in length, are drawn from where a prompt is short
_FILE_ROWS_MAX = 2_000
_CHARS_PER_TOKEN = 6  # more than any text here has on average
_FILLED_FROM = 16  # what is missing of a prompt's length by less tokens than these is left missing
_BLOCKS_KEPT = 4_096


class Texts(msgspec.Struct, frozen=True, kw_only=True):
    """What prompts are made of; ``source`` says where it comes from."""

    source: str
    questions: tuple[str, ...]
    documents: tuple[str, ...]


def read_texts(data: Path | None) -> Texts:
    """The texts of a folder of public sets, of its folders' too, or the built-in ones. Raises ValueError for none.

    Questions are ``question``, ``prompt``, ``instruction``, ``input`` or the first of ``turns`` of JSONL rows (with
    ``choices`` where a row has some), documents ``text`` of JSONL rows and whole ``.txt`` files.
    """
    built_in = Texts(
        source="built in",
        questions=tuple(chat[-1]["content"] for chat in texts.chats(texts.PROMPTS, None, part="evaluation")),
        documents=tuple(texts.documents(texts.DOCUMENTS, None, part="evaluation")),
    )
    if data is None:
        return built_in
    if not data.is_dir():
        raise ValueError(f"--data {data}: must be a folder of public sets")
    questions: list[str] = []
    documents = [path.read_text(encoding="utf-8") for path in sorted(data.rglob("*.txt"))]
    for path in sorted(data.rglob("*.jsonl")):
        for row in _rows(path):
            if isinstance(text := row.get("text"), str):
                documents.append(text)
            elif question := _question(row):
                questions.append(question)
    if not questions:
        raise ValueError(f"--data {data}: must hold JSONL files whose rows have one of {', '.join(_QUESTION_FIELDS)}")
    return Texts(
        source=f"{len(questions)} questions, {len(documents) or 'built-in'} documents of {data.name}",
        questions=tuple(questions),
        documents=tuple(documents) or built_in.documents,
    )


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The first rows of a file that are JSON objects; a file of something else has none."""
    with path.open("rb") as file:
        for _, line in zip(range(_FILE_ROWS_MAX), file, strict=False):
            try:
                row = msgspec.json.decode(line)
            except msgspec.DecodeError:
                return
            if isinstance(row, dict):
                yield row


def _question(row: Mapping[str, Any]) -> str | None:
    found = next((row[field] for field in _QUESTION_FIELDS if field in row), None)
    text = found[0] if isinstance(found, list) and found else found
    if not isinstance(text, str) or not text.strip():
        return None
    choices = row.get("choices")
    if isinstance(choices, list) and all(isinstance(choice, str) for choice in choices):
        text += "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCDEFGHIJ", choices, strict=False))
    return text.strip()


class Prompts:
    """Prompts by length, in tokens of the prompt as the engine sees it: what a chat template adds is counted in."""

    def __init__(self, source: Texts, counter: Counter, seed: int = 0) -> None:
        self.source = source.source
        self.counter = counter
        self._seed = seed
        ordered = sorted((counter.count(question), question) for question in set(source.questions))
        self._questions = [question for _, question in ordered]
        self._lengths = [length for length, _ in ordered]
        self._text = "\n\n".join(source.documents)
        self._lead_tokens = counter.count(_LEAD) + 2
        self._block = lru_cache(_BLOCKS_KEPT)(self._new_block)

    def chat(self, tokens: int, key: object) -> tuple[Message, ...]:
        """A chat of one message."""
        draw = self._draw(key)
        return (_user(self._fill(tokens - TEMPLATE_TOKENS, draw, self._passage)),)

    def shared(self, blocks: Sequence[int], block_tokens: int, tokens: int, key: object) -> tuple[Message, ...]:
        """A chat of one message that begins with the text of these blocks, as far as its length goes.

        A block's text is the same in every prompt of this seed, so prompts share their beginnings as their blocks say.
        """

        def beginning(length: int, _draw: random.Random) -> str:
            needed = blocks[: -(-length // block_tokens)]
            return self.counter.cut("\n\n".join(self._block(block, block_tokens) for block in needed), length)

        return (_user(self._fill(tokens - TEMPLATE_TOKENS, self._draw(key), beginning)),)

    def turn(self, history: Sequence[Message], tokens: int, key: object) -> tuple[Message, ...]:
        """A chat that goes on from ``history``, or begins anew where so many tokens do not hold it."""
        draw = self._draw(key)
        left = tokens - TEMPLATE_TOKENS - self.tokens(history)
        if history and left < _FILLED_FROM:
            history, left = (), tokens - TEMPLATE_TOKENS
        return (*history, _user(self._fill(left, draw, self._passage)))

    def answered(self, history: Sequence[Message], tokens: int, key: object) -> tuple[Message, ...]:
        """A chat with an answer of so many tokens at its end.

        It stands for the real one, which is not known when later turns are planned.
        """
        answer = self._passage(tokens, self._draw((key, "answer")))
        return (*history, Message(role="assistant", content=answer))

    def tokens(self, messages: Sequence[Message]) -> int:
        """The tokens of a chat's messages, with what a template adds to each."""
        return sum(self.counter.count(message.content) + MESSAGE_TOKENS for message in messages)

    def _draw(self, key: object) -> random.Random:
        return random.Random(f"{self._seed} {key}")

    def _fill(self, tokens: int, draw: random.Random, text: Callable[[int, random.Random], str]) -> str:
        """A question of at most so many tokens, behind as much text as is missing; ``text`` gives it by its length."""
        tokens = max(1, tokens)
        upto = bisect_right(self._lengths, tokens)
        if upto == 0:
            return self.counter.cut(self._questions[0], tokens) or self._questions[0].split(maxsplit=1)[0]
        place = draw.randrange(0 if upto == len(self._questions) else max(0, upto - _NEAR), upto)
        missing = tokens - self._lengths[place] - self._lead_tokens
        question = self._questions[place]
        return question if missing < _FILLED_FROM else f"{_LEAD}{text(missing, draw)}\n\n{question}"

    def _passage(self, tokens: int, draw: random.Random) -> str:
        """Text from a random place on, over the ends of documents; the last one is followed by the first."""
        start = self._text.find(" ", draw.randrange(len(self._text))) + 1
        chars = tokens * _CHARS_PER_TOKEN + 100
        text = self._text[start : start + chars]
        while len(text) < chars:
            text += "\n\n" + self._text[: chars - len(text)]
        return self.counter.cut(text, tokens)

    def _new_block(self, block: int, tokens: int) -> str:
        return self._passage(tokens, self._draw(f"block {block}"))


def _user(content: str) -> Message:
    return Message(role="user", content=content)

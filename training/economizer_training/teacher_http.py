"""A teacher that another process serves: asked by OpenAI's completions API for the most probable tokens of prompts.

vLLM's ``prompt_logprobs: k`` gives, for each token of a prompt but the first, the k most probable tokens by their ids,
and the prompt's own besides. A server allows 20 unless it was started with a larger ``--max-logprobs``.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from economizer_training.batches import scored
from economizer_training.distillation import TeacherLogits
from economizer_training.errors import TrainingError
from economizer_training.shards import Shards, Split
from economizer_training.stored_answers import Answer

_TIMEOUT = httpx.Timeout(600.0, connect=10.0)  # a busy engine may let what is not urgent wait
_COMES_BACK = frozenset({408, 425, 429})  # of refusals, those that waiting mends

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How an endpoint that is gone is waited for, in seconds.

    Waits double from the first to the longest. From the third try on it is said every ``say_every_s`` that it is gone.
    """

    first_s: float = 1.0
    longest_s: float = 60.0
    say_every_s: float = 60.0

    def wait_s(self, tries: int) -> float:
        """How long after so many tries in vain."""
        return float(min(self.longest_s, self.first_s * 2 ** min(tries - 1, 30)))


class _Gone(Exception):
    """No answer for now; the message says why, ``after_s`` when the server says to come back."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class Endpoint:
    """A served teacher of ``vocabulary`` tokens, asked for the text of ``shards``."""

    def __init__(
        self, settings: TeacherLogits, shards: Shards, vocabulary: int, say: Say, patience: Patience | None = None
    ) -> None:
        assert settings.url is not None
        self._settings, self._shards, self._vocabulary, self._say = settings, shards, vocabulary, say
        self._patience = patience or Patience()
        self._url = f"{settings.url.rstrip('/')}/completions"
        self._said_s = 0.0

    def answers(self, split: Split, rows: range, advance: Callable[[], None]) -> tuple[list[Answer], float | None]:
        """The answers to rows, and the joules that the server says it took; None where it does not say.

        An endpoint that is gone is waited for. Raises TrainingError where it refuses, or answers what it must not.
        """
        found = asyncio.run(self._all(split, rows, advance))
        joules = [each for _, each in found]
        told = [each for each in joules if each is not None]
        return [answer for answer, _ in found], sum(told) if len(told) == len(joules) else None

    async def _all(self, split: Split, rows: range, advance: Callable[[], None]) -> list[tuple[Answer, float | None]]:
        key = os.environ.get(self._settings.key_env)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        turns = asyncio.Semaphore(self._settings.requests)
        async with httpx.AsyncClient(headers=headers, timeout=_TIMEOUT) as client:

            async def one(row: int) -> tuple[Answer, float | None]:
                async with turns:
                    found = await self._row(client, split, row)
                advance()
                return found

            return await asyncio.gather(*(one(row) for row in rows))

    async def _row(self, client: httpx.AsyncClient, split: Split, row: int) -> tuple[Answer, float | None]:
        """The answers to a row: its documents are prompts of one request, as attention does not cross them."""
        (ids,), (segments,) = self._shards.read(split, [row])
        counts = scored(self._shards, split, [row])[0]
        ids_top = np.zeros((len(ids), self._settings.top), np.int64)
        log_p_top = np.zeros(ids_top.shape, np.float32)
        documents = [np.flatnonzero(segments == segment) for segment in range(1, int(segments.max()) + 1)]
        documents = [places for places in documents if counts[places].any()]
        joules: float | None = 0.0
        if documents:
            prompts = [ids[places].tolist() for places in documents]
            told, joules = await self._asked(client, prompts)
            for places, prompt, choice in zip(documents, prompts, told, strict=True):
                ids_top[places[:-1]], log_p_top[places[:-1]] = self._top(choice, prompt)
        return Answer(ids=ids_top[counts], log_p=log_p_top[counts]), joules

    async def _asked(self, client: httpx.AsyncClient, prompts: list[list[int]]) -> tuple[list[Any], float | None]:
        body = {
            "model": self._settings.model,
            "prompt": prompts,
            "prompt_logprobs": self._settings.top,
            "max_tokens": 1,
            "temperature": 1.0,
            "service_tier": "flex",
        }
        headers, told = await self._answered(client, body)
        self._refuse_another_model(headers)
        choices = told.get("choices", [])
        if sorted(choice.get("index", -1) for choice in choices) != list(range(len(prompts))):
            raise TrainingError(f"{self._url} gave {len(choices)} choices for {len(prompts)} prompts")
        joules = headers.get("x-energy-joules")
        return sorted(choices, key=lambda choice: choice["index"]), None if joules is None else float(joules)

    async def _answered(
        self, client: httpx.AsyncClient, body: Mapping[str, Any]
    ) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        """(headers, body) of the answer, which is waited for however long it takes."""
        tries = 0
        while True:
            try:
                return await self._tried(client, body)
            except _Gone as gone:
                tries += 1
                self._tell(gone, tries)
                await asyncio.sleep(max(gone.after_s, self._patience.wait_s(tries)))

    async def _tried(
        self, client: httpx.AsyncClient, body: Mapping[str, Any]
    ) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        """The answer to one try; raises _Gone where another may do better, and TrainingError where none will."""
        try:
            response = await client.post(self._url, json=body)
        except httpx.TransportError as error:
            raise _Gone(f"{type(error).__name__}: {error}".rstrip(": ")) from None
        status = response.status_code
        if status < 300:
            try:
                return response.headers, dict(response.json())
            except (ValueError, TypeError):
                raise _Gone("its answer is no JSON object, or was cut off") from None
        message, code = _error(response)
        if code == "insufficient_quota" or (status < 500 and status not in _COMES_BACK):
            raise TrainingError(f"{self._url} refuses with {status}: {message}")
        after = response.headers.get("retry-after", "")
        raise _Gone(f"{status}: {message}", float(after) if after.isdecimal() else 0.0)

    def _tell(self, gone: _Gone, tries: int) -> None:
        now_s = time.monotonic()
        if tries >= 3 and (not self._said_s or now_s - self._said_s >= self._patience.say_every_s):
            self._said_s = now_s
            self._say(f"waiting for the teacher at {self._url}, which does not answer ({gone})")

    def _refuse_another_model(self, headers: Mapping[str, str]) -> None:
        """A gateway that chooses among variants must not: only the one that is named is the teacher."""
        variant = headers.get("x-economizer-variant")
        model = str(self._settings.model)
        if variant is not None and variant != model.partition("@")[2]:
            why = headers.get("x-economizer-degraded")
            told = f"{self._url} answered by the variant {variant}" + (f", since {why}" if why else "")
            raise TrainingError(f"{told}: teacher_logits.model is {model}: must name the teacher's (family@variant)")

    def _top(self, choice: Mapping[str, Any], prompt: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """([positions, top] ids, their log-probabilities), the most probable first, of all positions but the last."""
        found = choice.get("prompt_logprobs")
        if not isinstance(found, list):
            raise TrainingError(f"{self._url} gives no prompt_logprobs, as vLLM does: it cannot be a teacher")
        if len(found) != len(prompt):
            raise TrainingError(f"{self._url} gave prompt_logprobs of {len(found)} tokens for {len(prompt)}")
        rows = list(self._most_probable(found[1:], prompt[1:]))
        ids = np.asarray([[token for token, _ in row] for row in rows], np.int64)
        return ids, np.asarray([[log_p for _, log_p in row] for row in rows], np.float32)

    def _most_probable(
        self, found: Sequence[Mapping[str, Any]], tokens: Sequence[int]
    ) -> Iterator[list[tuple[int, float]]]:
        top = self._settings.top
        for told, token in zip(found, tokens, strict=True):
            if str(token) not in told:
                raise TrainingError(f"{self._url} answers for other tokens than it was asked about")
            listed = sorted((-float(each["logprob"]), int(id_)) for id_, each in told.items())[:top]
            if len(listed) < top or not all(0 <= id_ < self._vocabulary for _, id_ in listed):
                raise TrainingError(f"{self._url} must give {top} tokens of the teacher's {self._vocabulary} each time")
            yield [(id_, -negative) for negative, id_ in listed]


def _error(response: httpx.Response) -> tuple[str, str | None]:
    """(the server's message, its code), of OpenAI's error object or of whatever came."""
    try:
        body = response.json()
        error = body.get("error", body)
        return str(error.get("message", error)), error.get("code")
    except (ValueError, AttributeError):
        return response.text.strip()[:300] or "no message", None

"""Rows whose answers the student gives itself, to be taught where its own words lead (GKD, arXiv:2306.13649)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from economizer_training.batches import Batch, batch_of, scored
from economizer_training.errors import TrainingError
from economizer_training.shards import Shards

_SEEDS = 2**63 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """The last answer of a chat: its row's place in a batch, where the chat begins, the answer begins, and both end."""

    at: int
    begin: int
    answer: int
    end: int


def answer_opening(tokenizer: Any) -> list[int]:
    """The tokens by which the chat template opens the assistant's turn; raises TrainingError where there are none."""
    closed = opened = ""
    if getattr(tokenizer, "chat_template", None):
        chat = [{"role": "user", "content": "x"}]
        closed, opened = (
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=adds) for adds in (False, True)
        )
    opening = opened.removeprefix(closed)
    if not opening or opening == opened:
        told = "the teacher's chat template has nothing that opens the assistant's turn"
        raise TrainingError(f"loss.on_policy: must be 0: {told}")
    return list(tokenizer(opening, add_special_tokens=False)["input_ids"])


def ends_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer."""
    told = model.generation_config.eos_token_id
    ends = [told] if isinstance(told, int) else list(told or ())
    return frozenset([*ends, tokenizer.eos_token_id]) - {None}


def turns(at: int, ids: NDArray[np.int32], segments: NDArray[np.int16], opening: Sequence[int]) -> Iterator[Turn]:
    """The last answers of all chats in a row; none of a document, nor of a chat that is cut off before its answer."""
    for segment in range(1, int(segments.max()) + 1):
        begin, end = np.searchsorted(np.where(segments > 0, segments, np.iinfo(np.int16).max), (segment, segment + 1))
        if end - begin <= len(opening):
            continue
        windows = np.lib.stride_tricks.sliding_window_view(ids[begin : end - 1], len(opening))
        found = np.flatnonzero((windows == np.asarray(opening)).all(1))
        if len(found):
            yield Turn(at=at, begin=int(begin), answer=int(begin + found[-1] + len(opening)), end=int(end))


def refuse_text_without_chats(shards: Shards, opening: Sequence[int]) -> None:
    """Raises TrainingError where no row that is learnt from has an answer in a chat."""
    for row in range(shards.rows("train")):
        ids, segments = shards.read("train", [row])
        if any(turns(0, ids[0], segments[0], opening)):
            return
    raise TrainingError(f"loss.on_policy: must be 0: no row of {shards.folder} has a chat with an answer")


class OnPolicy:
    """Reads rows to learn from, of which it has the share ``share`` answered by ``model`` as that is now.

    Which rows these are and what is drawn follow from the step's number and the row's alone: a run that goes on from a
    checkpoint gets the same, on any number of workers. ``within`` is in what the model is called.
    """

    def __init__(
        self,
        shards: Shards,
        model: Any,
        *,
        share: float,
        opening: Sequence[int],
        ends: frozenset[int],
        device: torch.device,
        within: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._shards, self._model = shards, model
        self._share, self._opening, self._ends = share, opening, ends
        self._device, self._within = device, within

    def read(self, step: int, rows: Sequence[int]) -> Batch:
        """The rows' tensors. Of a chat that the model answers anew its own tokens are scored, and no others."""
        ids, segments = self._shards.read("train", rows)
        counts = scored(self._shards, "train", rows)
        chosen = [at for at, row in enumerate(rows) if np.random.default_rng([step, row]).random() < self._share]
        found = [turn for at in chosen for turn in turns(at, ids[at], segments[at], self._opening)]
        seeds = [np.random.default_rng([step, rows[turn.at], turn.begin]).integers(_SEEDS) for turn in found]
        for turn, said in zip(found, self._said(ids, found, seeds), strict=True):
            last = turn.answer + len(said)
            ids[turn.at, turn.answer : last] = said
            segments[turn.at, last : turn.end] = 0
            counts[turn.at, turn.begin : turn.end] = False
            counts[turn.at, turn.answer - 1 : last - 1] = True
        return batch_of("train", rows, ids, segments, counts, self._device)

    def _said(self, ids: NDArray[np.int32], found: Sequence[Turn], seeds: Sequence[Any]) -> list[list[int]]:
        if not found:
            return []
        prompts = [ids[turn.at, turn.begin : turn.answer].tolist() for turn in found]
        generators = [torch.Generator(self._device).manual_seed(int(seed)) for seed in seeds]
        lengths = [turn.end - turn.answer for turn in found]
        self._model.eval()
        try:
            with self._within():
                said: list[list[int]] = continued(self._model, prompts, lengths, self._ends, generators)
        finally:
            self._model.train()
        return said


@torch.no_grad()
def continued(
    model: Any,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    ends: frozenset[int],
    generators: Sequence[torch.Generator],
) -> list[list[int]]:
    """What the model says after each prompt, at temperature 1, until a token of ``ends`` or so many tokens."""
    device, longest = generators[0].device, max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(each)) + list(each) for each in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    said: list[list[int]] = [[] for _ in prompts]
    open_ones = set(range(len(prompts)))
    cache = None
    while open_ones:
        answer = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = answer.past_key_values
        p = answer.logits[:, -1].float().softmax(-1)
        drawn = [torch.multinomial(each, 1, generator=mine) for each, mine in zip(p, generators, strict=True)]
        ids = torch.stack(drawn)
        for index, token in enumerate(ids[:, 0].tolist()):
            if index in open_ones:
                said[index].append(token)
                if token in ends or len(said[index]) == lengths[index]:
                    open_ones.remove(index)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return said

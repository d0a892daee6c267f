"""Scores a variant against the full model on a suite: token by token, and choice by choice.

The full model runs first and what it said is kept (`reference.py`), so that the two are never in memory together and
a family's variants share one pass of it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from economizer.variants.manifest import Evaluation

from economizer_compression import overlap
from economizer_compression.errors import CompressionError
from economizer_compression.manifests import digest_folder, digest_of
from economizer_compression.progress import steps
from economizer_compression.reference import (
    Load,
    Passage,
    Reference,
    full_pass,
    logits,
    probes,
    suite_digest,
    vocabulary,
)
from economizer_compression.scores import ChoiceScores, Scores, TokenScores, evaluation
from economizer_compression.suite import AnswerSlice, ChoiceSlice, Suite, TextSlice
from economizer_compression.tasks import run_task

_ROWS = 16  # in a cache, and little memory with a vocabulary of 256k; several copies are made in float32
_EXCLUDED_SHARE_MAX = 0.5

Kept = dict[str, list[bool]]


def evaluate_folder(
    folder: Path, reference: Path, suite: Suite, *, data: Path | None, work: Path, seed: int, load: Load
) -> Evaluation:
    """The checkpoint in ``folder`` against the full model in ``reference``.

    ``load`` gives (model, tokenizer) of a folder; ``work`` keeps the full model's pass; ``seed`` is the bootstrap's.
    Items that share an n-gram with ``folder``'s calibration text are not scored. Raises CompressionError when the two
    models take different tokens, when there is too little text, and when logits are not finite.
    """
    sha256 = digest_of(digest_folder(reference))
    full = full_pass(reference, sha256, suite, data=data, work=work, load=load)
    kept = _kept(folder, full)
    if digest_of(digest_folder(folder)) == sha256:
        scores = _scores(suite, full, kept, None, None, data=data, work=work, what=folder.name)
    else:
        model, tokenizer = load(folder)
        _require_same_tokens(folder, model, tokenizer, full)
        scores = _scores(suite, full, kept, model, tokenizer, data=data, work=work, what=folder.name)
        del model
        gc.collect()
    return evaluation(
        scores,
        suite=suite.name,
        suite_sha256=suite_digest(suite, data),
        reference_sha256=sha256,
        seed=seed,
        items_excluded=sum(not scored for items in kept.values() for scored in items),
    )


def _kept(folder: Path, full: Reference) -> Kept:
    """By slice, for each item whether it is scored: whether it shares no text with what the variant was made from."""
    texts = {name: [each.text for each in passages] for name, passages in full.passages.items()}
    texts |= {name: [each.text for each in items] for name, items in full.choices.items()}
    path = folder / overlap.FILE_NAME
    if not path.is_file():
        return {name: [True] * len(items) for name, items in texts.items()}
    seen = overlap.load(path)
    kept = {name: [not shared for shared in overlap.overlapping(items, seen)] for name, items in texts.items()}
    for name, items in kept.items():
        excluded = items.count(False) / max(1, len(items))
        if excluded > _EXCLUDED_SHARE_MAX:
            raise CompressionError(
                f"slice {name}: {excluded:.0%} of its items share {overlap.NGRAM} words in a row with the text that "
                f"{folder.name} was made from: make it from other text, or score it on other text"
            )
    return kept


def _require_same_tokens(folder: Path, model: Any, tokenizer: Any, full: Reference) -> None:
    if probes(tokenizer) != full.probes:
        raise CompressionError(f"{folder.name} has another tokenizer than the full model: their tokens do not compare")
    if (size := vocabulary(model)) != full.vocabulary:
        raise CompressionError(f"{folder.name} scores {size} tokens and the full model {full.vocabulary}")


def _scores(
    suite: Suite, full: Reference, kept: Kept, model: Any, tokenizer: Any, *, data: Path | None, work: Path, what: str
) -> dict[str, Scores]:
    """By slice in the suite's order. Without a model it is the full one, against itself."""
    scores: dict[str, Scores] = {}
    with steps(sum(map(len, kept.values())), f"scoring {what}") as advance:
        for each in suite.evaluation:
            name = each.slice
            if not isinstance(each, ChoiceSlice):
                scores[name] = _on_tokens(model, full, name, kept[name], _kind(each), advance)
                continue
            theirs = full.choices[name]
            ours = theirs
            if model is not None:
                ours = run_task(model, tokenizer, each, data=data, cache=work / "datasets", advance=advance)
            pairs = [pair for pair, scored in zip(zip(theirs, ours, strict=True), kept[name], strict=True) if scored]
            scores[name] = ChoiceScores(
                chosen_full=np.array([one.chosen for one, _ in pairs], dtype=np.int64),
                chosen=np.array([other.chosen for _, other in pairs], dtype=np.int64),
                correct_full=np.array([one.correct for one, _ in pairs], dtype=np.bool_),
                correct=np.array([other.correct for _, other in pairs], dtype=np.bool_),
            )
    return scores


def _kind(each: TextSlice | AnswerSlice) -> str:
    return "text" if isinstance(each, TextSlice) else "answers"


def _on_tokens(
    model: Any, full: Reference, name: str, kept: list[bool], kind: str, advance: Callable[[], None]
) -> TokenScores:
    items = zip(full.passages[name], full.logits(name), kept, strict=True)
    columns: list[torch.Tensor] = []
    for index, (passage, recorded, scored) in enumerate(items):
        if scored:
            theirs = recorded()
            ours = theirs if model is None else logits(model, passage, name)
            measured = token_scores(theirs.to(ours.device), ours, passage)
            columns.append(torch.cat([torch.full_like(measured[:1], index), measured]))
        advance()
    item, kl, agrees, nll_full, nll = torch.cat(columns, dim=1).cpu().numpy()
    return TokenScores(
        kind=kind, item=item.astype(np.int64), kl=kl, agrees=agrees.astype(np.bool_), nll_full=nll_full, nll=nll
    )


@torch.no_grad()
def token_scores(full: torch.Tensor, ours: torch.Tensor, passage: Passage) -> torch.Tensor:
    """KL(full || ours) in nats, agreement, and both negative log-likelihoods of a passage's tokens: [4, tokens].

    From both models' logits, [tokens, vocabulary]; in float32.
    """
    following = torch.tensor(passage.ids[passage.first :], device=ours.device)
    parts = []
    for start in range(0, len(full), _ROWS):
        rows = slice(start, start + _ROWS)
        theirs, mine = full[rows].float(), ours[rows].float()
        p, q = theirs.log_softmax(-1), mine.log_softmax(-1)
        # The sum of what is positive and negative rounds to a little below 0 for distributions that are nearly equal.
        kl = (p.exp() * (p - q)).sum(-1).clamp_min(0)
        agrees = theirs.argmax(-1) == mine.argmax(-1)
        nlls = [-each.gather(1, following[rows, None])[:, 0] for each in (p, q)]
        parts.append(torch.stack([kl.double(), agrees.double(), *(nll.double() for nll in nlls)]))
    return torch.cat(parts, dim=1)

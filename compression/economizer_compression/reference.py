"""What the full model says of a suite, kept on disk: its variants are scored against it, one after another.

A folder of ``work`` holds one pass: ``reference.json`` (token ids, the items' text, choices) and, for each slice that
is scored token by token, the logits as they came, in bfloat16, as raw 16-bit integers.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from economizer_compression.answers import answer
from economizer_compression.errors import CompressionError
from economizer_compression.locks import one_at_a_time
from economizer_compression.model_folder import require_disk
from economizer_compression.progress import steps
from economizer_compression.suite import AnswerSlice, ChoiceSlice, Slice, Suite, TextSlice
from economizer_compression.tasks import ChoiceItem, data_digests, run_task, spread
from economizer_compression.texts import Chat, chats, documents

_FORMAT = 1
_TOKEN_CHARACTERS_MAX = 64  # no tokenizer needs that many for a token on the average: what lies beyond is not encoded
_PROBES = (
    "The quick brown fox jumps over 1,234.5 lazy dogs.\n\n  def f(x):\n\treturn x**2",
    "Übergröße, naïveté, ¿qué?, 東京で会いましょう, Привет, 👩‍🚀",
    "<|im_start|>user\nHello<|im_end|></s><|endoftext|><eos>",
)

Load = Callable[[Path], tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """Token ids, of which those from index ``first`` on are scored, and what they say."""

    ids: list[int]
    first: int
    text: str

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return len(self.ids) - self.first


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pass:
    """What a pass depends on: the model with its digest, the suite, and what each slice reads."""

    folder: Path
    sha256: str
    suite: Suite
    material: Mapping[str, Any]
    data: Path | None
    work: Path

    @property
    def name(self) -> str:
        """16 hexadecimal digits that are others when the model, the suite or its texts are."""
        told = json.dumps([_FORMAT, self.sha256, self.suite.sha256, self.material], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A kept pass of the full model: what it was shown and what it said, by slice.

    ``probes`` is how its tokenizer encodes a few strings, with its size.
    """

    folder: Path
    vocabulary: int
    probes: list[list[int]]
    passages: Mapping[str, list[Passage]]
    choices: Mapping[str, list[ChoiceItem]]

    @classmethod
    def open(cls, folder: Path) -> Reference:
        """Reads what `full_pass` wrote."""
        content = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
        return cls(
            folder=folder,
            vocabulary=content["vocabulary"],
            probes=content["probes"],
            passages={name: [Passage(**each) for each in items] for name, items in content["passages"].items()},
            choices={name: [ChoiceItem(**each) for each in items] for name, items in content["choices"].items()},
        )

    def logits(self, slice_name: str) -> Iterator[Callable[[], torch.Tensor]]:
        """For each passage of a slice a function that reads its logits, [scored, vocabulary], in bfloat16."""
        passages = self.passages[slice_name]
        shape = (sum(passage.scored for passage in passages), self.vocabulary)
        path = self.folder / _logits_file(list(self.passages), slice_name)
        raw = np.memmap(path, dtype=np.int16, mode="r", shape=shape)
        start = 0
        for passage in passages:
            rows = slice(start, start + passage.scored)
            yield partial(_bfloat16, raw, rows)
            start = rows.stop


def full_pass(folder: Path, sha256: str, suite: Suite, *, data: Path | None, work: Path, load: Load) -> Reference:
    """The full model's pass over a suite, made once for the model's digest, the suite and the texts that it names.

    Who else wants the same pass waits for it. Raises CompressionError for text that is missing or too short.
    """
    material = _materials(suite, data)
    wanted = _Pass(folder=folder, sha256=sha256, suite=suite, material=material, data=data, work=work)
    kept = work / wanted.name
    work.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(work, "the full model's pass"):
        if not kept.is_dir():
            unfinished = work / f"{kept.name}.partial"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                _make(wanted, unfinished, load)
                unfinished.rename(kept)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return Reference.open(kept)


def suite_digest(suite: Suite, data: Path | None) -> str:
    """SHA-256 over the suite and all text that it names: scores of equal digests were made on the same items."""
    told = json.dumps([_FORMAT, suite.sha256, _materials(suite, data)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _materials(suite: Suite, data: Path | None) -> dict[str, Any]:
    return {each.slice: _material(each, data) for each in suite.evaluation}


@torch.no_grad()
def logits(model: Any, passage: Passage, slice_name: str) -> torch.Tensor:
    """The model's logits for a passage's scored tokens, [scored, vocabulary], in bfloat16 on the model's device.

    Raises CompressionError where they are no numbers.
    """
    ids = torch.tensor([passage.ids], device=model.device)
    rows = passage.scored + 1  # the last row predicts what follows the passage
    made = model(input_ids=ids, logits_to_keep=rows, use_cache=False).logits[0, -rows:-1]
    if not bool(torch.isfinite(made.sum(dtype=torch.float32))):  # one that is not finite makes the sum so
        raise CompressionError(
            f"slice {slice_name}: the model's logits are not finite: its weights are damaged or overflow in bfloat16"
        )
    return made.to(torch.bfloat16)


def vocabulary(model: Any) -> int:
    """How many tokens a model scores."""
    return int(model.get_output_embeddings().weight.shape[0])


def probes(tokenizer: Any) -> list[list[int]]:
    """How a tokenizer encodes a few strings, and its size: tokenizers that agree on it take the same token ids."""
    return [[len(tokenizer)], *(list(tokenizer(text).input_ids) for text in _PROBES)]


def _material(each: Slice, data: Path | None) -> Any:
    """What a slice reads, as JSON; for multiple choice the digests of its files."""
    where = f"slice {each.slice}"
    if isinstance(each, TextSlice):
        return documents(each.text, data, part="evaluation", field=each.field, where=where)
    if isinstance(each, AnswerSlice):
        asked = chats(each.answers, data, part="evaluation", field=each.field, where=where)
        return spread(asked, each.items, f"{where}: {each.answers}")
    return data_digests(each, data)


def _make(wanted: _Pass, into: Path, load: Load) -> None:
    model, tokenizer = load(wanted.folder)
    passages = _passages(wanted, into, model, tokenizer)
    choices = {}
    tasks = [each for each in wanted.suite.evaluation if isinstance(each, ChoiceSlice)]
    total = sum(map(len, passages.values())) + sum(each.items for each in tasks)
    with steps(total, "scoring the full model") as advance:
        for name, of_slice in passages.items():
            with (into / _logits_file(list(passages), name)).open("wb") as file:
                for passage in of_slice:
                    made = logits(model, passage, name).cpu().contiguous()
                    made.view(torch.int16).numpy().tofile(file)
                    advance()
        for each in tasks:
            cache = wanted.work / "datasets"
            choices[each.slice] = run_task(model, tokenizer, each, data=wanted.data, cache=cache, advance=advance)
    content = {
        "vocabulary": vocabulary(model),
        "probes": probes(tokenizer),
        "passages": {name: [asdict(passage) for passage in of_slice] for name, of_slice in passages.items()},
        "choices": {name: [asdict(item) for item in of_slice] for name, of_slice in choices.items()},
    }
    (into / "reference.json").write_text(json.dumps(content), encoding="utf-8")
    del model
    gc.collect()


def _passages(wanted: _Pass, into: Path, model: Any, tokenizer: Any) -> dict[str, list[Passage]]:
    """What is scored token by token, by slice; the answers are made here, what can fail is checked before."""
    texts = [each for each in wanted.suite.evaluation if isinstance(each, TextSlice)]
    chatted = [each for each in wanted.suite.evaluation if isinstance(each, AnswerSlice)]
    passages = {each.slice: _windows(each, tokenizer, wanted.material[each.slice]) for each in texts}
    tokens = sum(each.tokens for each in texts) + sum(each.items * each.answer_tokens for each in chatted)
    require_disk(into, tokens * vocabulary(model) * 2, "keeping the full model's logits")
    for each in chatted:
        given, cache = wanted.material[each.slice], wanted.work / "answers"
        passages[each.slice] = _answered(each, model, tokenizer, given, cache=cache, key=wanted.sha256)
    return passages


def _windows(each: TextSlice, tokenizer: Any, texts: Sequence[str]) -> list[Passage]:
    """Documents one after another, the end-of-text token between them, in windows that the model reads one by one.

    A tokenizer that starts texts with a token starts each window with it.
    """
    start = [tokenizer.bos_token_id] if tokenizer("").input_ids == [tokenizer.bos_token_id] else []
    between = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    count, step = each.tokens // each.window, each.window - len(start)
    ids: list[int] = []
    for text in texts:
        some = text[: each.tokens * _TOKEN_CHARACTERS_MAX]
        ids += tokenizer(some, add_special_tokens=False, verbose=False).input_ids + between
        if len(ids) >= count * step:
            break
    if len(ids) < count * step:
        raise CompressionError(
            f"slice {each.slice}: {each.text} has {len(ids)} tokens and {count * step} are wanted: lower its `tokens` "
            "or name a longer text"
        )
    windows = [ids[index * step : (index + 1) * step] for index in range(count)]
    return [
        Passage(ids=start + window, first=1, text=tokenizer.decode(window, skip_special_tokens=True))
        for window in windows
    ]


def _answered(
    each: AnswerSlice, model: Any, tokenizer: Any, given: Sequence[Chat], *, cache: Path, key: str
) -> list[Passage]:
    """Chats with the full model's own answers, which alone are scored."""
    made = answer(model, tokenizer, given, tokens=each.answer_tokens, cache=cache, key=key)
    return [Passage(ids=chat.prompt_ids + chat.answer_ids, first=len(chat.prompt_ids), text=chat.text) for chat in made]


def _bfloat16(raw: NDArray[np.int16], rows: slice) -> torch.Tensor:
    return torch.from_numpy(np.array(raw[rows])).view(torch.bfloat16)


def _logits_file(names: Sequence[str], name: str) -> str:
    """A slice's file is named by its place: a slice's name may hold what no file's name does."""
    return f"{list(names).index(name)}.logits"

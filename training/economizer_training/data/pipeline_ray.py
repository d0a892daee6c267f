"""The two passes over the text on Ray Data: all examples judged one by one, and those that were chosen written.

Between them lies what needs all examples in sight (`choosing`), for which the driver has no text, but about 600 bytes
an example. What is written is the same on any number of workers, since all order comes from ids and the seed.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from economizer_compression.errors import CompressionError
from economizer_compression.overlap import Hashes, ngrams
from pydantic import TypeAdapter

from economizer_training.data.chance import draw
from economizer_training.data.chat import NotRendered, chat_tokens, document_tokens
from economizer_training.data.choosing import Choice, Facts, Place, choose
from economizer_training.data.config import Preparation
from economizer_training.data.examples import Example
from economizer_training.data.judging import Judged, judge
from economizer_training.data.near import signature, text_key
from economizer_training.data.packing import pack
from economizer_training.data.readers import read, strings
from economizer_training.errors import TrainingError
from economizer_training.shards import Shard, Split, write_shard

_ROWS = 256  # in a batch: enough to make a call cheap, little enough to keep every worker busy

_OWN = {"include_dashboard": False}  # settings of a Ray of our own

_JUDGED = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "slice": pa.string(),
        "example": pa.string(),  # empty where it was dropped
        "stage": pa.string(),
        "rule": pa.string(),
        "sizes": pa.list_(pa.int64()),
        "masked": pa.string(),
        "characters": pa.int64(),
        "key": pa.binary(),
        "signature": pa.binary(),
    }
)
_TOKENS = pa.schema(
    {
        "file": pa.string(),
        "rank": pa.int64(),
        "slice": pa.string(),
        "rule": pa.string(),  # empty where it was not dropped
        "bytes": pa.int64(),
        "ids": pa.binary(),
        "asked": pa.string(),  # the messages that the teacher is to answer; empty where there are ids
        "text": pa.string(),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A shard, what its examples were by slice, and which were dropped by which rule; without any it has no file."""

    file: str
    split: Split
    shard: Shard | None
    examples: Mapping[str, int]
    size_bytes: int
    dropped: Mapping[str, int]
    answered: int


@contextmanager
def on_ray() -> Iterator[None]:
    """Ray for a while: the cluster that RAY_ADDRESS names, or this machine's cores.

    An error that a worker raises leaves the block as the TrainingError that it was.
    """
    # "local": else Ray joins any cluster that was started on this machine, such as a gateway's.
    address = os.environ.get("RAY_ADDRESS") or "local"
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **_OWN if address == "local" else {})
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    except ray.exceptions.RayError as error:
        told = _of_ours(error)
        if told is None:
            raise
        raise TrainingError(told) from None
    finally:
        ray.shutdown()


def _of_ours(error: BaseException) -> str | None:
    """The message of the error for users, or of the system, that an error of Ray's was caused by."""
    seen: set[int] = set()
    causes: list[BaseException | None] = [error]
    while causes:
        cause = causes.pop()
        if cause is None or id(cause) in seen:
            continue
        if type(cause) in (TrainingError, CompressionError):  # Ray's own are subclasses, with a worker's traceback
            return str(cause)
        if isinstance(cause, OSError) and not isinstance(cause, ray.exceptions.RayError):
            return f"a worker could not go on: {cause}"
        seen.add(id(cause))
        causes += [cause.__cause__, cause.__context__, getattr(cause, "cause", None)]
    return None


def evaluation_ngrams(urls: Sequence[str], words: int) -> Hashes:
    """The sorted hashes of all runs of ``words`` words in evaluation files."""
    if not urls:
        return np.empty(0, np.uint64)
    parts = ray.get([ray.remote(_ngrams_of).remote(url, words) for url in urls])
    return np.unique(np.concatenate(parts))


def _ngrams_of(url: str, words: int) -> Hashes:
    return ngrams(strings(url), words)


def judged(preparation: Preparation, files: Sequence[tuple[int, int, str]], seen: Hashes) -> ray.data.Dataset:
    """All examples of the files, each judged by itself. A file is the number of its source, its own and its URL."""
    rows = [{"source": source, "number": number, "url": url} for source, number, url in files]
    examples = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(partial(_read, preparation))
    spread = examples.repartition(target_num_rows_per_block=_ROWS)
    judging = partial(_judge_batch, preparation, ray.put(seen))
    return spread.map_batches(judging, batch_size=_ROWS, batch_format="pyarrow").materialize()


def _read(preparation: Preparation, file: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    source = preparation.sources[file["source"]]
    return ({"example": example.to_json()} for example in read(source, file["number"], file["url"]))


def _judge_batch(preparation: Preparation, seen_ref: Any, batch: pa.Table) -> pa.Table:
    seen = ray.get(seen_ref)
    prose = {source.name for source in preparation.sources if source.rules}
    rows = [
        _row(judge(Example.from_json(told), preparation, seen, prose), preparation)
        for told in batch.column("example").to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=_JUDGED)


def _row(found: Judged, preparation: Preparation) -> dict[str, Any]:
    example, duplicates = found.example, preparation.deduplication
    row: dict[str, Any] = {
        "id": example.id,
        "source": example.source,
        "slice": example.slice,
        "example": "",
        "stage": found.stage,
        "rule": found.rule,
        "sizes": list(found.sizes),
        "masked": json.dumps(found.masked),
        "characters": len(example.text),
    }
    if not found.rule:
        text = example.text
        row["example"] = example.to_json()
        row["key"] = text_key(text)
        if duplicates.near is not None:
            sketch = signature(text, words=duplicates.words, permutations=duplicates.permutations)
            row["signature"] = sketch.tobytes()
    return row


def facts(found: ray.data.Dataset) -> Iterator[tuple[dict[str, Any], Facts | None]]:
    """What the driver is to know of each judged example, and the Facts of those that were not dropped."""
    columns = [name for name in _JUDGED.names if name != "example"]
    for batch in found.select_columns(columns).iter_batches(batch_size=4096, batch_format="pyarrow"):
        for row in batch.to_pylist():
            if row["rule"]:
                yield row, None
                continue
            sketch = row["signature"]
            yield (
                row,
                Facts(
                    id=row["id"],
                    slice=row["slice"],
                    characters=row["characters"],
                    size_bytes=row["sizes"][-1],
                    key=row["key"],
                    signature=None if sketch is None else np.frombuffer(sketch, np.uint32),
                ),
            )


def chosen(found: Sequence[Facts], preparation: Preparation) -> Choice:
    """`choose`, on a worker: what the driver does itself is not metered."""
    choice: Choice = ray.get(ray.remote(choose).remote(found, preparation))
    return choice


def written(
    found: ray.data.Dataset, choice: Choice, preparation: Preparation, tokenizer: Path, folder: Path
) -> list[Written]:
    """Tokenises, packs and writes what was chosen, a worker a shard; all workers must see the ``folder``."""
    places = ray.put(choice.places)
    tokens = found.select_columns(["id", "example"]).map_batches(
        partial(_tokenise_batch, preparation, places, str(tokenizer)), batch_size=_ROWS, batch_format="pyarrow"
    )
    writing = partial(_write_group, preparation, str(tokenizer), str(folder))
    shards = tokens.groupby("file").map_groups(writing, batch_format="pyarrow").take_all()
    told = [json.loads(row["written"]) for row in shards]
    shard = TypeAdapter(Written)
    return sorted((shard.validate_python(each) for each in told), key=lambda each: each.file)


def _tokenise_batch(preparation: Preparation, places_ref: Any, tokenizer: str, batch: pa.Table) -> pa.Table:
    places: Mapping[str, Sequence[Place]] = ray.get(places_ref)
    rows = [
        _tokenised(Example.from_json(told), place, preparation, tokenizer)
        for id_, told in zip(batch.column("id").to_pylist(), batch.column("example").to_pylist(), strict=True)
        for place in places.get(id_, ())
    ]
    return pa.Table.from_pylist(rows, schema=_TOKENS)


def _tokenised(example: Example, place: Place, preparation: Preparation, folder: str) -> dict[str, Any]:
    tokenizer = _tokenizer(folder)
    row = {
        "file": f"{place.split}-{place.shard:05d}",
        "rank": place.rank,
        "slice": example.slice,
        "rule": "",
        "bytes": example.size_bytes,
        "ids": b"",
        "asked": "",
        "text": example.text,
    }
    templates = next(source.templates for source in preparation.sources if source.name == example.source)
    try:
        if example.kind == "text":
            ids = document_tokens(tokenizer, example.text)
        else:
            first = turn_of(example.id, preparation.seed, len(templates)) if templates else 0
            chat = example.chat(templates, first + place.copy)
            if preparation.answers is not None and chat[-1]["role"] == "user":
                return {**row, "asked": json.dumps(chat)}
            ids = chat_tokens(tokenizer, chat)
    except NotRendered as refused:
        return {**row, "rule": str(refused)}
    return {**row, "ids": ids.tobytes()}


def _write_group(preparation: Preparation, tokenizer: str, folder: str, group: pa.Table) -> pa.Table:
    rows = sorted(group.to_pylist(), key=lambda row: row["rank"])
    asked = [row for row in rows if row["asked"]]
    if asked and preparation.answers is not None:
        cache = Path(folder).parent / "answers" / rows[0]["file"]
        _answer(asked, Path(tokenizer), preparation.answers.tokens, cache)
    kept = [row for row in rows if not row["rule"]]
    path = Path(folder) / rows[0]["file"]
    split: Split = "train" if path.name.startswith("train") else "heldout"
    shard = None
    if kept:
        input_ids, segment_ids = pack(
            [np.frombuffer(row["ids"], np.int32) for row in kept],
            length=preparation.packing.tokens,
            pad=_padding(_tokenizer(tokenizer)),
            seed=preparation.seed + int(path.name.rpartition("-")[2]),
        )
        shard = write_shard(path.with_suffix(".parquet"), input_ids, segment_ids)
        if split == "train" and preparation.decontamination.keep_ngrams:
            np.save(path.with_suffix(".npy"), ngrams(row["text"] for row in kept))
    told = Written(
        file=path.name,
        split=split,
        shard=shard,
        examples=_counted(row["slice"] for row in kept),
        size_bytes=sum(row["bytes"] for row in kept),
        dropped=_counted(row["rule"] for row in rows if row["rule"]),
        answered=len(asked),
    )
    return pa.table({"written": [json.dumps(asdict(told))]})


def _answer(rows: Sequence[dict[str, Any]], folder: Path, tokens: int, cache: Path) -> None:
    """Gives the rows the ids of their chats with the teacher's answers.

    A shard's rows are always the same, so that they are answered in the same batches: in bfloat16 the neighbours in a
    batch may decide between two tokens that are all but equally probable. A run that is killed finds them in ``cache``.
    """
    from economizer_compression.answers import answer
    from economizer_compression.loading import load_model
    from economizer_compression.model_folder import ModelFolder

    made = answer(
        lambda: load_model(folder)[0],
        _tokenizer(str(folder)),
        [json.loads(row["asked"]) for row in rows],
        tokens=tokens,
        cache=cache,
        key=ModelFolder.open(folder).origin().sha256,
    )
    for row, answered in zip(rows, made, strict=True):
        ids = np.asarray([*answered.prompt_ids, *answered.answer_ids], np.int32)
        row.update(ids=ids.tobytes(), text=answered.text, bytes=len(answered.text.encode()))


def turn_of(id_: str, seed: int, count: int) -> int:
    """Which template an example begins with; its copies go on from there."""
    return int(draw(seed, "template", id_) * count)


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _padding(tokenizer: Any) -> int:
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


@cache
def _tokenizer(folder: str) -> Any:
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

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
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from economizer_compression.errors import CompressionError
from economizer_compression.overlap import Hashes, ngrams
from pydantic import TypeAdapter

from economizer_training.data.chat import NotRendered, Tokens
from economizer_training.data.choosing import Choice, Facts, Place, choose
from economizer_training.data.config import Preparation
from economizer_training.data.examples import Example
from economizer_training.data.judging import Judged, judge
from economizer_training.data.near import signature, text_key
from economizer_training.data.packing import pack
from economizer_training.data.readers import read, strings
from economizer_training.data.tokenising import COLUMNS, Row, padding, tokenised, whole_tokens
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
_TOKENS = pa.schema({name: getattr(pa, kind)() for name, kind in COLUMNS.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A shard, what its examples were by slice, and which were dropped by which rule; without any it has no file.

    ``paraphrased`` is how many paraphrases are among the examples, and how many were refused by which rule;
    ``paraphrased_bytes`` is theirs of ``size_bytes``.
    """

    file: str
    split: Split
    shard: Shard | None
    examples: Mapping[str, int]
    size_bytes: int
    dropped: Mapping[str, int]
    answered: int
    paraphrased: Mapping[str, int]
    paraphrased_bytes: int


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


def likelihoods(
    found: ray.data.Dataset, ids: Iterable[str], preparation: Preparation, tokenizer: Path
) -> dict[str, float]:
    """The teacher's mean negative log-likelihood a token, in nats, of these examples' first rows of tokens.

    Examples of one token have none, nor have chats that the template refuses.
    """
    scoring = partial(_score_batch, preparation, ray.put(frozenset(ids)), str(tokenizer))
    scored = found.select_columns(["id", "example"]).map_batches(scoring, batch_size=_ROWS, batch_format="pyarrow")
    return {row["id"]: row["nll"] for row in scored.iter_rows()}


def _score_batch(preparation: Preparation, ids_ref: Any, tokenizer: str, batch: pa.Table) -> pa.Table:
    from economizer_training.data.teacher import likelihood

    wanted: frozenset[str] = ray.get(ids_ref)
    scored: dict[str, list[Any]] = {"id": [], "nll": []}
    for id_, told in zip(batch.column("id").to_pylist(), batch.column("example").to_pylist(), strict=True):
        if id_ not in wanted:
            continue
        with suppress(NotRendered):
            ids = whole_tokens(Example.from_json(told), preparation, tokenizer).ids[: preparation.packing.tokens]
            if len(ids) > 1:
                scored["id"].append(id_)
                # One by one: in a batch the neighbours would have a say in bfloat16.
                scored["nll"].append(likelihood(tokenizer, ids))
    return pa.table(scored, schema=pa.schema({"id": pa.string(), "nll": pa.float64()}))


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
        tokenised(Example.from_json(told), place, preparation, tokenizer)
        for id_, told in zip(batch.column("id").to_pylist(), batch.column("example").to_pylist(), strict=True)
        for place in places.get(id_, ())
    ]
    return pa.Table.from_pylist(rows, schema=_TOKENS)


def _write_group(preparation: Preparation, tokenizer: str, folder: str, group: pa.Table) -> pa.Table:
    rows = sorted(group.to_pylist(), key=lambda row: row["rank"])
    path = Path(folder) / rows[0]["file"]
    split: Split = "train" if path.name.startswith("train") else "heldout"
    more, verdicts, answered = _taught(rows, preparation, tokenizer, path)
    kept = [row for row in [*rows, *more] if not row["rule"]]
    shard = None
    if kept:
        shard = _packed(kept, preparation, tokenizer, path)
        if split == "train" and preparation.decontamination.keep_ngrams:
            np.save(path.with_suffix(".npy"), ngrams(row["text"] for row in kept))
    told = Written(
        file=path.name,
        split=split,
        shard=shard,
        examples=_counted(row["slice"] for row in kept),
        size_bytes=sum(row["bytes"] for row in kept),
        dropped=_counted(row["rule"] for row in rows if row["rule"]),
        answered=answered,
        paraphrased=dict(sorted(verdicts.items())),
        paraphrased_bytes=sum(row["bytes"] for row in more),
    )
    return pa.table({"written": [json.dumps(asdict(told))]})


def _taught(
    rows: Sequence[Row], preparation: Preparation, tokenizer: str, path: Path
) -> tuple[list[Row], Mapping[str, int], int]:
    """Has a shard's chats answered; returns new rows, the paraphrases, how they fared, and how many were answered."""
    if not any(row["asked"] or row["otherwise"] for row in rows):
        return [], {}, 0
    from economizer_training.data.teacher import add_answers, paraphrased

    cache = path.parent.parent / "answers" / path.name
    answered = add_answers(rows, preparation, tokenizer, cache)
    more, verdicts = paraphrased([row for row in rows if not row["rule"]], preparation, tokenizer, cache)
    return more, verdicts, answered + add_answers(more, preparation, tokenizer, cache)


def _packed(rows: Sequence[Row], preparation: Preparation, tokenizer: str, path: Path) -> Shard:
    packed = pack(
        [Tokens(np.frombuffer(row["ids"], np.int32), np.frombuffer(row["counted"], np.bool_)) for row in rows],
        length=preparation.packing.tokens,
        pad=padding(tokenizer),
        seed=preparation.seed + int(path.name.rpartition("-")[2]),
    )
    counted = None if preparation.packing.counted == "all" else packed.counted
    return write_shard(path.with_suffix(".parquet"), packed.input_ids, packed.segment_ids, counted)


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))

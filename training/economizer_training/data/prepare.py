"""``economizer-train prepare``: from files to packed shards, and the card that says what became of the text."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import ray
from economizer.energy.choose import meter_for
from economizer.energy.meter import EmptyMeter, Meter
from economizer_compression import overlap
from economizer_compression.family import located
from economizer_compression.folders import whole_folder

from economizer_training.data import choosing, judging
from economizer_training.data.account import Account, Tally
from economizer_training.data.card import CARD, README, Card, Part, Read, Tokenizer, markdown
from economizer_training.data.choosing import Choice, Facts
from economizer_training.data.config import Preparation
from economizer_training.data.laps import Laps, lapped
from economizer_training.data.paraphrasing import KEPT
from economizer_training.data.pipeline_ray import (
    Written,
    chosen,
    evaluation_ngrams,
    facts,
    judged,
    likelihoods,
    on_ray,
    written,
)
from economizer_training.data.readers import urls
from economizer_training.data.tokenising import load_tokenizer
from economizer_training.errors import TrainingError
from economizer_training.shards import Index, Shard, Split, vocabulary_sha256, write_index

Say = Callable[[str], None]


def prepare(preparation: Preparation, *, out: Path, data: Path | None, say: Say) -> Card:
    """Makes the folder ``out``, whole or not at all; raises TrainingError, and FileExistsError where it exists."""
    files = [
        (number, index, url)
        for number, source in enumerate(preparation.sources)
        for index, url in enumerate(urls(source.files, data, f"sources.{number}.files"))
    ]
    against = urls(preparation.decontamination.against, data, "decontamination.against")
    folder = located(preparation.tokenizer).resolve()
    vocabulary = vocabulary_sha256(load_tokenizer(folder).get_vocab())
    meter = _meter(preparation)
    described = meter.describe()
    with whole_folder(out.resolve()) as partial, lapped(meter) as laps, on_ray():
        seen = evaluation_ngrams(against, preparation.decontamination.words)
        say(f"{len(files)} files to read; {len(seen)} runs of words of {len(against)} evaluation files to look for")
        examples = judged(preparation, files, seen)
        account, kept, masked, sources = _booked(examples, files, preparation)
        laps.lap("read and judge")
        choice = _chosen(examples, kept, preparation, folder, laps)
        _book_choice(account, kept, choice)
        if not choice.shards["train"]:
            raise TrainingError(f"nothing is left to learn from: {account.losses()}")
        say(f"{account.stages[-1].examples_out} of {account.stages[0].examples_out} examples to write")
        shards = written(examples, choice, preparation, folder, partial)
        _book_written(account, shards, paraphrasing=preparation.paraphrases is not None)
        files_of = _files(shards)
        if "train" not in files_of:
            raise TrainingError(f"nothing is left to learn from: {account.losses()}")
        _join_ngrams(partial)
        laps.lap("tokenise and write")
        card = Card(
            seed=preparation.seed,
            tokens=preparation.packing.tokens,
            tokenizer=Tokenizer(folder=preparation.tokenizer, sha256=vocabulary),
            sources=sources,
            stages=account.stages,
            masked=dict(sorted(masked.items())),
            answered=sum(shard.answered for shard in shards),
            paraphrased=_summed(shard.paraphrased for shard in shards),
            splits=_parts(shards, preparation.packing.tokens),
            meter=described,
            spans=laps.spans,
            settings=asdict(preparation),
        )
        (partial / CARD).write_text(json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (partial / README).write_text(markdown(card, out.name), encoding="utf-8")
        counted = preparation.packing.counted
        write_index(partial, Index(length=card.tokens, vocabulary_sha256=vocabulary, counted=counted, splits=files_of))
    took_s = sum(span.seconds for span in card.spans)
    say(f"{card.tokens_in_all:,} tokens in {out} after {took_s:.0f} s; {README} there says what became of the text")
    return card


def _meter(preparation: Preparation) -> Meter:
    """Of the workers, which are this process's children unless they are a cluster's."""
    if os.environ.get("RAY_ADDRESS"):
        return EmptyMeter("the workers are those of the cluster that RAY_ADDRESS names")
    return meter_for(preparation.meter, gpus=(), cores=len(os.sched_getaffinity(0)), idle_w=None)


def _booked(
    examples: ray.data.Dataset, files: Sequence[tuple[int, int, str]], preparation: Preparation
) -> tuple[Account, list[Facts], Counter[str], list[Read]]:
    """What was judged: the account, the Facts of what is left, what was masked, and what each source held."""
    tally = Tally(judging.STAGES)
    kept: list[Facts] = []
    masked: Counter[str] = Counter()
    found: dict[str, list[int]] = defaultdict(list)
    for row, known in facts(examples):
        tally.add(row["sizes"], row["stage"], row["rule"])
        masked.update(json.loads(row["masked"]))
        found[row["source"]].append(row["sizes"][0])
        if known is not None:
            kept.append(known)
    counts = Counter(number for number, _, _ in files)
    sources = [
        Read(name=s.name, files=counts[number], examples=len(found[s.name]), size_bytes=sum(found[s.name]))
        for number, s in enumerate(preparation.sources)
    ]
    return tally.account(), kept, masked, sources


def _chosen(
    examples: ray.data.Dataset, kept: Sequence[Facts], preparation: Preparation, folder: Path, laps: Laps
) -> Choice:
    """What is chosen of the examples; where likelihoods matter, the teacher says those of what is left without them."""
    choice = chosen(kept, preparation)
    laps.lap("compare and choose")
    if preparation.cleaning.perplexity_outliers is not None:
        nll = likelihoods(examples, choice.places, preparation, folder)
        # Once more over all: that costs next to nothing beside the teacher.
        choice = chosen([replace(known, nll=nll.get(known.id)) for known in kept], preparation)
        laps.lap("ask how likely")
    return choice


def _book_choice(account: Account, kept: Sequence[Facts], choice: Choice) -> None:
    sizes = {known.id: known.size_bytes for known in kept}
    left = sum(sizes.values())
    for stage in choosing.STAGES:
        gone = choice.dropped[stage]
        left -= sum(known.size_bytes for known in gone)
        account.add(stage, bytes_out=left, dropped=Counter(known.slice for known in gone))
    copies = sum(len(places) for places in choice.places.values())
    size = sum(sizes[id_] * len(places) for id_, places in choice.places.items())
    account.add("repeat rare slices", bytes_out=size, repeated=copies - len(choice.places))


def _book_written(account: Account, shards: Sequence[Written], *, paraphrasing: bool) -> None:
    size = sum(shard.size_bytes for shard in shards)
    more = sum(shard.paraphrased_bytes for shard in shards)
    account.add("tokenise", bytes_out=size - more, dropped=_summed(shard.dropped for shard in shards))
    if paraphrasing:
        account.add("paraphrase", bytes_out=size, repeated=sum(shard.paraphrased.get(KEPT, 0) for shard in shards))


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def _join_ngrams(folder: Path) -> None:
    """One file of the n-grams that the shards left, by which an evaluation leaves out what was learnt."""
    parts = sorted(folder.glob("*.npy"))
    if parts:
        overlap.save(np.unique(np.concatenate([np.load(part) for part in parts])), folder / overlap.FILE_NAME)
    for part in parts:
        part.unlink()


def _files(shards: Sequence[Written]) -> dict[Split, tuple[Shard, ...]]:
    """The files of each split that has any."""
    found: dict[Split, tuple[Shard, ...]] = {}
    for each in shards:
        if each.shard is not None:
            found[each.split] = (*found.get(each.split, ()), each.shard)
    return found


def _parts(shards: Sequence[Written], length: int) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for split, files in _files(shards).items():
        examples: Counter[str] = Counter()
        for each in shards:
            examples.update(each.examples if each.split == split else {})
        rows, tokens = sum(file.rows for file in files), sum(file.tokens for file in files)
        parts[split] = Part(
            examples=dict(sorted(examples.items())), rows=rows, tokens=tokens, padding=rows * length - tokens
        )
    return parts

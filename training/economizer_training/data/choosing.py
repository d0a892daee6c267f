"""What is decided with all examples in sight: duplicates, outliers, repeats, and who goes where."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

from economizer_training.data.chance import draw
from economizer_training.data.config import Preparation
from economizer_training.data.near import Signature, near_duplicates
from economizer_training.data.outliers import bounds
from economizer_training.data.sampling import copies, held_out, repeats

if TYPE_CHECKING:
    from economizer_training.shards import Split

# The stages of this module that drop examples, in their order, as the card names them.
STAGES = ("exact duplicates", "near duplicates", "length outliers", "perplexity outliers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is to be known of an example for that: no text. ``key`` is the same for texts of the same words.

    ``nll`` is the teacher's mean negative log-likelihood in nats a token; None where it was not asked.
    """

    id: str
    slice: str
    characters: int
    size_bytes: int
    key: bytes
    signature: Signature | None = None
    nll: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a copy of an example goes: its split, the number of its shard, and its rank there."""

    copy: int
    split: Split
    shard: int
    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """``dropped`` maps each stage to what it dropped, and ``places`` the ids of the rest to where they go."""

    dropped: dict[str, list[Facts]]
    places: dict[str, list[Place]]
    shards: dict[Split, int]


def choose(found: Sequence[Facts], preparation: Preparation) -> Choice:
    """The choice among examples in the order of their ids; where two are alike, the first of them stays."""
    left = sorted(found, key=lambda facts: facts.id)
    dropped: dict[str, list[Facts]] = {}
    for stage, gone in zip(STAGES, (_exact, _near, _odd_lengths, _odd_likelihoods), strict=True):
        which = gone(left, preparation)
        dropped[stage] = [facts for facts in left if facts.id in which]
        left = [facts for facts in left if facts.id not in which]
    places, shards = _places(left, preparation)
    return Choice(dropped=dropped, places=places, shards=shards)


def _exact(found: Sequence[Facts], preparation: Preparation) -> set[str]:
    if not preparation.deduplication.exact:
        return set()
    first: dict[bytes, str] = {}
    return {facts.id for facts in found if first.setdefault(facts.key, facts.id) != facts.id}


def _near(found: Sequence[Facts], preparation: Preparation) -> set[str]:
    similarity = preparation.deduplication.near
    if similarity is None:
        return set()
    signatures = [facts.signature for facts in found if facts.signature is not None]
    return {found[index].id for index in near_duplicates(signatures, similarity)}


def _odd_lengths(found: Sequence[Facts], preparation: Preparation) -> set[str]:
    lengths = {facts.id: log(facts.characters) for facts in found}
    return _outliers(found, lengths, preparation.cleaning.length_outliers)


def _odd_likelihoods(found: Sequence[Facts], preparation: Preparation) -> set[str]:
    likelihoods = {facts.id: facts.nll for facts in found if facts.nll is not None}
    return _outliers(found, likelihoods, preparation.cleaning.perplexity_outliers)


def _outliers(found: Sequence[Facts], values: Mapping[str, float], z_max: float | None) -> set[str]:
    """The ids of examples whose values are outliers in their slices; an example without a value is none."""
    if z_max is None:
        return set()
    by_slice: dict[str, list[float]] = defaultdict(list)
    for facts in found:
        if facts.id in values:
            by_slice[facts.slice].append(values[facts.id])
    limits = {name: bounds(those, z_max) for name, those in by_slice.items()}
    return {
        facts.id
        for facts in found
        if facts.id in values and not limits[facts.slice][0] <= values[facts.id] <= limits[facts.slice][1]
    }


def _places(found: Sequence[Facts], preparation: Preparation) -> tuple[dict[str, list[Place]], dict[Split, int]]:
    """Dealt to shards in a shuffled order, which is each shard's order, too: the same wherever the work is done."""
    seed, packing, sampling = preparation.seed, preparation.packing, preparation.sampling
    ids: dict[str, list[str]] = defaultdict(list)
    for facts in found:
        ids[facts.slice].append(facts.id)
    aside = held_out(ids, packing.held_out, seed)
    counts = Counter(facts.slice for facts in found if facts.id not in aside)
    rates = repeats(counts, alpha=sampling.alpha, repeats_max=sampling.repeats_max)
    taken: dict[Split, list[tuple[str, int]]] = {
        "train": [
            (facts.id, copy)
            for facts in found
            if facts.id not in aside
            for copy in range(copies(facts.id, rates[facts.slice], seed))
        ],
        "heldout": [(facts.id, 0) for facts in found if facts.id in aside],
    }
    shards: dict[Split, int] = {
        "train": min(packing.shards, len(taken["train"])),
        "heldout": min(1, len(taken["heldout"])),
    }
    places: dict[str, list[Place]] = defaultdict(list)
    for split, pairs in taken.items():
        shuffled = sorted(pairs, key=lambda pair: (draw(seed, "order", *pair), pair))
        for number, (id_, copy) in enumerate(shuffled):
            rank, shard = divmod(number, shards[split])
            places[id_].append(Place(copy=copy, split=split, shard=shard, rank=rank))
    return dict(places), shards

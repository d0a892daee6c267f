"""The fleet as the gateway sees it: what the engines report, joined with what this gateway itself has in flight.

A snapshot is read without I/O. Engines report about once a second; requests that this gateway sent since then are
counted here, so that a burst does not all go to the replica that looked idle a second ago.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from economizer.errors import Overloaded
from economizer.gateway.relay import Usage
from economizer.router.latency import LatencyModel
from economizer.router.lengths import OutputLengths
from economizer.router.replicas import AffinityIndex, rank_replicas
from economizer.router.types import ReplicaState, RequestProfile, VariantState
from economizer.variants.catalog import Catalog
from economizer.variants.types import Price, Variant

_SUSPECT_S = 3.0  # how long a replica that broke a connection is left out, until its own report says how it is
_PEAK_S = 2.0  # reports are at most about this old
_WANTED_S = 30.0  # how long a wish for a sleeping variant lasts
_LEARN_PERIOD_S = 0.01
_STARTING_RETRY_S = 10.0
_CACHED_WEIGHT = 0.05
_CHARS_PER_TOKEN = 4.0
_CHARS_PER_TOKEN_MOST = 8.0
_TPOT_TOKENS_MIN = 4  # of shorter answers the time per token is mostly noise


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """What was measured of one answer: seconds from sending to its first byte, and per later token of a stream; and
    when it ended."""

    ended_s: float
    first_byte_s: float
    tpot_s: float | None
    streamed: bool
    sequences: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaReport:
    """What one engine last said of itself. ``url`` and ``secret`` are empty until it is ready."""

    id: str
    state: str
    url: str = ""
    secret: str = ""
    running: int = 0
    waiting: int = 0
    kv_used: float | None = None

    @classmethod
    def read(cls, replica_id: str, stats: Mapping[str, Any]) -> ReplicaReport:
        """From what ``EngineReplica`` records for Serve; an empty mapping is a replica that has not reported yet."""
        return cls(
            id=replica_id,
            state=str(stats.get("state", "starting")),
            url=stats.get("endpoint", ""),
            secret=stats.get("secret", ""),
            running=int(stats.get("running") or 0),
            waiting=int(stats.get("waiting") or 0),
            kv_used=stats.get("kv_used"),
        )

    @property
    def ready(self) -> bool:
        """It takes requests."""
        return self.state == "ready" and bool(self.url)


class Choice(Protocol):
    """Orders the ids of a variant's replicas, best first; those that it leaves out are not used."""

    def __call__(self, replica_ids: Iterable[str]) -> list[str]: ...


class ReplicaSource(Protocol):
    """Where replicas come from: Ray Serve in production."""

    def choose_now(self, variant_id: str, choice: Choice) -> str | None:
        """The id of the replica that ``choice`` puts first, or None where it finds none."""
        ...

    async def choose(self, variant_id: str, choice: Choice) -> str:
        """The same, but waits while it finds none."""
        ...


class _Held:
    """What this gateway has on one replica."""

    __slots__ = ("in_flight", "peak", "peak_before", "queued_tokens", "suspect_until_s")

    def __init__(self) -> None:
        self.in_flight = 0
        self.queued_tokens = 0
        self.peak = 0
        self.peak_before = 0
        self.suspect_until_s = 0.0


class VariantRecord:
    """One variant's replicas, latency model and prefix affinity."""

    def __init__(self, variant: Variant, queue_max: int) -> None:
        self.variant = variant
        self.latency = LatencyModel(variant.speed, variant.concurrency_max)
        self.affinity = AffinityIndex()
        self.cached_share = 0.0
        self._waiting_to_wake = 0
        self._wanted_until_s = 0.0
        self._queue_max = queue_max
        self._reports: dict[str, ReplicaReport] = {}
        self._held: dict[str, _Held] = {}
        self._peaks_turned_s = 0.0
        self._learnt_s = float("-inf")
        self._states: dict[str, ReplicaState] = {}
        self._snapshot: VariantState | None = None

    def believe(self, variant: Variant) -> None:
        """From now on the variant is known to be so; another speed card is learnt from anew."""
        if (variant.speed, variant.concurrency_max) != (self.variant.speed, self.variant.concurrency_max):
            self.latency = LatencyModel(variant.speed, variant.concurrency_max)
        self.variant = variant
        self._snapshot = None

    def refresh(self, reports: Iterable[ReplicaReport], now_s: float) -> None:
        """Take in the latest reports; replicas no longer reported are forgotten."""
        self._reports = {report.id: report for report in reports}
        for gone in self._states.keys() - self._reports.keys():
            self.affinity.forget(gone)
        for gone in self._held.keys() - self._reports.keys():
            if self._held[gone].in_flight == 0:
                del self._held[gone]
        if now_s - self._peaks_turned_s >= _PEAK_S:
            self._peaks_turned_s = now_s
            for held in self._held.values():
                held.peak_before, held.peak = held.peak, held.in_flight
        self._states = {report.id: self._replica_state(report, now_s) for report in self._reports.values()}
        self._snapshot = None

    def _replica_state(self, report: ReplicaReport, now_s: float) -> ReplicaState:
        held = self._held.get(report.id)
        reported = report.running + report.waiting
        if held is None:
            load, queued, ready = reported, 0, report.ready
        else:
            others = max(0, reported - max(held.peak, held.peak_before))
            load, queued = held.in_flight + others, held.queued_tokens
            ready = report.ready and now_s >= held.suspect_until_s
        running = min(load, self.variant.concurrency_max)
        return ReplicaState(
            id=report.id,
            ready=ready,
            running=running,
            waiting=load - running,
            queued_tokens=queued,
            kv_used=report.kv_used,
        )

    def snapshot(self) -> VariantState:
        """The variant as it stands now."""
        if self._snapshot is None:
            self._snapshot = VariantState(
                variant=self.variant,
                replicas=tuple(self._states[key] for key in sorted(self._states)),
                latency=self.latency,
                cached_share=self.cached_share,
                queue_max=self._queue_max,
            )
        return self._snapshot

    def replica(self, replica_id: str) -> ReplicaState | None:
        """One replica's state, or None when it is gone."""
        return self._states.get(replica_id)

    def report(self, replica_id: str) -> ReplicaReport | None:
        """One replica's latest report, or None when it is gone."""
        return self._reports.get(replica_id)

    def reports(self) -> Iterable[ReplicaReport]:
        """Every replica's latest report."""
        return self._reports.values()

    def rank(self, replica_ids: Iterable[str], profile: RequestProfile, avoid: str = "") -> list[str]:
        """The ready ones among these replicas but the one to avoid, best first for this request."""
        states = self._states
        known = [states[key] for key in replica_ids if key in states and key != avoid]
        return rank_replicas(known, self.affinity, profile, self.latency)

    def any_ready_but(self, avoid: str) -> bool:
        """Some other replica takes requests."""
        return any(state.ready and state.id != avoid for state in self._states.values())

    @property
    def in_flight(self) -> int:
        """Requests that this gateway has on the variant's replicas."""
        return sum(held.in_flight for held in self._held.values())

    @property
    def any_ready(self) -> bool:
        """Some replica takes requests."""
        return any(state.ready for state in self._states.values())

    def name_at_engine(self, profile: RequestProfile) -> str:
        """The model's name as the engine knows it."""
        return profile.lora or self.variant.id

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A request waits for a replica; it counts as demand while the variant has none. Raises Overloaded when as
        many wait already as one replica could take."""
        asleep = not self.any_ready
        most = self.variant.concurrency_max + self._queue_max
        if self._waiting_to_wake >= most:
            raise Overloaded(f"{most} requests wait for {self.variant.id} to start.", retry_after_s=_STARTING_RETRY_S)
        self._waiting_to_wake += asleep
        try:
            yield
        finally:
            self._waiting_to_wake -= asleep

    def dispatch(self, replica_id: str, profile: RequestProfile, now_s: float) -> Dispatch:
        """A request goes to a replica; its prompt waits to be prefilled."""
        held = self._held.setdefault(replica_id, _Held())
        held.in_flight += 1
        held.queued_tokens += profile.prompt_tokens
        held.peak = max(held.peak, held.in_flight)
        self.affinity.note(replica_id, profile.prefix_hashes, profile.session)
        self.changed(replica_id, now_s)
        return Dispatch(self, replica_id, held, profile.prompt_tokens)

    def changed(self, replica_id: str, now_s: float) -> None:
        """What is held on a replica changed."""
        report = self._reports.get(replica_id)
        if report is not None:
            self._states[replica_id] = self._replica_state(report, now_s)
            self._snapshot = None

    def learn(self, usage: Usage, state: ReplicaState, timing: Timing) -> None:
        """Teach the latency model what a request took on a replica that stood so when it was sent.

        The answer that came whole shows no first token, so its time is split by what was predicted. Of many answers a
        second, some are enough.
        """
        if timing.ended_s - self._learnt_s < _LEARN_PERIOD_S:
            return
        self._learnt_s = timing.ended_s
        prompt, tokens = usage.prompt_tokens, usage.output_tokens
        cached = min(1.0, (usage.cached_tokens or 0) / prompt) if prompt else 0.0
        if usage.cached_tokens is not None:
            self.cached_share += _CACHED_WEIGHT * (cached - self.cached_share)
        ttft_s, tpot_s = timing.first_byte_s, timing.tpot_s
        if not timing.streamed and timing.sequences > 1:
            return
        if not timing.streamed and tokens > 1:
            guess = self.latency.predict(prompt_tokens=prompt, cached_share=cached, replica=state)
            if guess is None:
                return
            share = guess.ttft_s.p50 / (guess.ttft_s.p50 + (tokens - 1) * guess.tpot_s.p50)
            ttft_s, tpot_s = timing.first_byte_s * share, timing.first_byte_s * (1 - share) / (tokens - 1)
        self.latency.observe_ttft(prompt_tokens=prompt, cached_share=cached, replica=state, actual_s=ttft_s)
        if tpot_s is not None and tokens >= _TPOT_TOKENS_MIN:
            self.latency.observe_tpot(replica=state, actual_s=tpot_s)

    def want(self, now_s: float) -> None:
        """Someone would have been better served by this variant had it been awake."""
        self._wanted_until_s = now_s + _WANTED_S

    def demand(self, now_s: float) -> int:
        """Requests that wait for a first replica, or one when some request lately wished for it."""
        return max(self._waiting_to_wake, int(now_s < self._wanted_until_s and not self.any_ready))


class Dispatch:
    """One request on one replica, from its sending to its end."""

    __slots__ = ("_ended", "_held", "_queued_tokens", "_record", "_replica_id")

    def __init__(self, record: VariantRecord, replica_id: str, held: _Held, queued_tokens: int) -> None:
        self._record = record
        self._replica_id = replica_id
        self._held = held
        self._queued_tokens = queued_tokens
        self._ended = False

    def prefilled(self, now_s: float) -> None:
        """The first byte of the answer came, so the prompt waits no longer."""
        self._held.queued_tokens -= self._queued_tokens
        self._queued_tokens = 0
        self._record.changed(self._replica_id, now_s)

    def ended(self, now_s: float, *, failed: bool) -> None:
        """The request left the replica; one that broke its connection is not trusted for a moment. Only the first call
        counts."""
        if self._ended:
            return
        self._ended = True
        self._held.in_flight -= 1
        if failed:
            self._held.suspect_until_s = now_s + _SUSPECT_S
        self.prefilled(now_s)


class Fleet:
    """Every variant's record, and what was learnt of callers' prompts and answers."""

    def __init__(self, catalog: Catalog, queue_max: int) -> None:
        self._records = {
            family.name: {variant.name: VariantRecord(variant, queue_max) for variant in family.variants}
            for family in catalog.families
        }
        self._by_id = {record.variant.id: record for record in self.records()}
        self._chars_per_token = dict.fromkeys(self._records, _CHARS_PER_TOKEN)
        self.lengths = OutputLengths()

    def believe(self, catalog: Catalog) -> None:
        """From now on the same variants are known to be as this catalog says."""
        for family in catalog.families:
            for variant in family.variants:
                self._by_id[variant.id].believe(variant)

    def reprice(self, prices: Mapping[str, Price]) -> None:
        """From now on variants cost so, by their ids."""
        for variant_id, price in prices.items():
            record = self._by_id.get(variant_id)
            if record is not None:
                record.believe(replace(record.variant, price=price))

    def snapshot(self, family: str) -> tuple[VariantState, ...]:
        """The family's variants as they stand now; no I/O."""
        return tuple([record.snapshot() for record in self._records[family].values()])

    def record(self, family: str, variant: str) -> VariantRecord:
        """One variant's record."""
        return self._records[family][variant]

    def records(self) -> Iterable[VariantRecord]:
        """All records, in the catalog's order."""
        for records in self._records.values():
            yield from records.values()

    def refresh(self, variant_id: str, reports: Iterable[ReplicaReport], now_s: float) -> None:
        """Take in the latest report of each of a variant's replicas."""
        self._by_id[variant_id].refresh(reports, now_s)

    def prompt_tokens(self, family: str, chars: int) -> int:
        """A prompt's length in tokens, guessed from its characters and what earlier prompts of the family took."""
        return int(chars / self._chars_per_token[family]) + 1

    def prompt_tokens_least(self, chars: int) -> int:
        """What a prompt's tokens surely are at least."""
        return int(chars / _CHARS_PER_TOKEN_MOST)

    def learn(self, family: str, caller: str, chars: int, usage: Usage, sequences: int = 1) -> None:
        """A prompt of so many characters and its answers took so many tokens; an embedding (0) is no answer."""
        if chars > 0 and usage.prompt_tokens > 0 and not usage.counted:
            ratio = min(16.0, max(0.5, chars / usage.prompt_tokens))
            self._chars_per_token[family] += 0.05 * (ratio - self._chars_per_token[family])
        if sequences:
            self.lengths.observe(caller, family, round(usage.output_tokens / sequences))

    def output_tokens(self, caller: str, family: str, cap: int | None) -> float:
        """The answer's expected length, from what this caller and family have used."""
        return self.lengths.predict(caller, family, cap)

"""The one writer of the ledger: gateways and engines tell it what happened, it settles, writes, and answers.

Nothing is acknowledged before it is on disk: in the database, or, while that cannot be reached, in the spool. Whoever
is not answered keeps what it told and tells it again; all of it is known by number, so that twice is as good as once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic, time

from economizer.admission.keys import KeyRecord, Role, new_key, rotate
from economizer.admission.limits import Ask, Limits, Use, Verdict
from economizer.admission.tenants import window_began_s
from economizer.energy.step_model import Coefficients, StepModel, prior_from
from economizer.energy.types import Window
from economizer.errors import InvalidRequest
from economizer.ledger.books import Books, Drawn
from economizer.ledger.counterfactual import counterfactual
from economizer.ledger.price_map import Basis, PriceMap, price_map, token_weights
from economizer.ledger.prices import PriceList
from economizer.ledger.spool import Spool, SpoolFull
from economizer.ledger.store import LedgerUnusable, Store
from economizer.ledger.types import UNKNOWN, Amounts, Batch, Booking, Charge, Posting, Report
from economizer.variants.types import Price, Variant

_WRITE_S = 0.5
_PRUNE_S = 3600.0
_KEYS_S = 0.5
_RETRY_S = 2.0
_LOOK_S = 0.05
_SET_S = 0.5  # a clock that is only slewed moves less between two looks
_TYPICAL_BATCH = 4.0  # by which a step's energy is laid on the tokens of it
_DAY_S = 86_400.0
_FINISH_S = 4.0  # after a request ended its use is booked, and its reservation is released
_PENDING_MAX = 200  # batches kept in memory where neither the database nor the spool takes them

logger = logging.getLogger("economizer.ledger")


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Which versions of the keys and of the prices a gateway has; -1 is none."""

    keys: int = -1
    prices: int = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a gateway gets for its report.

    ``epoch`` names the bookkeeper that answers: another one knows nothing that is not on disk. ``acknowledged`` is the
    number up to which the gateway's reports are. ``keys`` and ``prices`` (by variant, as of this hour) are all there
    are, where they changed since what the gateway has seen; ``seen`` is what it has now. ``posted`` is what was booked
    lately and no other gateway was told, for its metrics. ``well`` is False while nothing can be put on disk.
    """

    epoch: str
    acknowledged: int
    charges: tuple[Charge, ...]
    posted: tuple[Posting, ...]
    seen: Seen
    keys: tuple[KeyRecord, ...] | None
    prices: Mapping[str, Price] | None
    well: bool


class Bookkeeper:
    """Settles and writes. ``await run()`` keeps it going; its other methods may be called meanwhile."""

    def __init__(
        self, *, url: str, spool: Path, spool_bytes_max: int, keep_days: float, variants: Sequence[Variant]
    ) -> None:
        self._epoch = secrets.token_hex(6)
        self._url = url
        self._spool = Spool(spool, bytes_max=spool_bytes_max)
        if self._spool.torn:
            logger.warning("%d batches were being spooled when the last bookkeeper died", self._spool.torn)
        self._keep_s = keep_days * _DAY_S
        self._store: Store | None = None
        self._books = Books(PriceList.of(()), began_s=time())
        self._limits = Limits()
        self._variants: Mapping[str, Variant] = {}
        self._acknowledged_reports: dict[str, int] = {}
        self._acknowledged_windows: dict[str, int] = {}
        self._unwritten: list[tuple[Batch, Drawn]] = []
        self._posted: list[Posting] = []
        self._keys: tuple[KeyRecord, ...] | None = None
        self._versions = Seen()
        self._prices: Mapping[str, Price] = {}
        self._seen: dict[str, Seen] = {}
        self._finishing: deque[tuple[float, str, int | None]] = deque()
        self._well = True
        self._offset_s = time() - monotonic()
        self._writing = asyncio.Lock()
        self._pruning: asyncio.Task[None] | None = None
        self.believe(variants)

    def believe(self, variants: Sequence[Variant]) -> None:
        """From now on these are the prices, and what is known of energy before anything was metered."""
        self._variants = {variant.id: variant for variant in variants}
        self._books.prices, self._prices = PriceList.of(variants), {}
        self._books.priors = {variant.id: prior for variant in variants if (prior := _prior(variant)) is not None}

    async def run(self) -> None:
        """Open the ledger, then settle, write and look after it until cancelled."""
        await self._open()
        pruned_s = float("-inf")
        while True:
            await asyncio.sleep(_WRITE_S)
            await self.write()
            if self._store is None:
                await self._open()
            await self._read_keys()
            await self._refresh_prices()
            if monotonic() - pruned_s > _PRUNE_S and self._store is not None and not self._spool.pending():
                pruned_s = monotonic()
                self._pruning = asyncio.create_task(self._prune(self._store))

    async def close(self) -> None:
        """Write what there is."""
        await self.write()
        if self._store is not None:
            self._store.close()

    async def report(self, report: Report, seen: Seen) -> Reply:
        """Take in what a gateway tells; see :class:`Reply`."""
        now_s = self._now_s()
        self._books.report(report, now_s)
        due_s = monotonic() + _FINISH_S
        self._finishing.extend(
            (due_s, one.request_id, _tokens(one.prompt_tokens, one.output_tokens)) for one in report.bookings
        )
        for request_id in report.released:
            self._limits.finished(request_id, 0, now_s)
        self._settle(now_s)
        self._seen[report.gateway] = seen
        posted, self._posted = tuple(self._posted), []
        return Reply(
            epoch=self._epoch,
            acknowledged=self._acknowledged_reports.get(report.gateway, -1),
            charges=self._books.charges(report.gateway),
            posted=posted,
            seen=self._versions,
            keys=self._keys if seen.keys != self._versions.keys else None,
            prices=self._prices if seen.prices != self._versions.prices else None,
            well=self._well,
        )

    async def windows(self, engine: str, windows: Sequence[Window]) -> int:
        """Take in an engine's windows; returns the number up to which they are on disk, -1 for none."""
        now_s = self._now_s()
        for window in windows:
            self._books.window(window, now_s)
        self._settle(now_s)
        return self._acknowledged_windows.get(engine, -1)

    async def admit(self, ask: Ask) -> Verdict:
        """May this request be sent, by its tenant's rate and budget?"""
        return self._limits.admit(ask, time())

    @property
    def store(self) -> Store:
        """The open ledger; raises LedgerUnusable where it cannot be reached."""
        if self._store is None:
            raise LedgerUnusable("The ledger's database cannot be reached now.")
        return self._store

    async def price_map(self, basis: Basis) -> PriceMap:
        """Prices per token by what was booked in the last 24 hours, in the ratio of the energies learnt here."""
        now_s = time()
        weights = {}
        for name, variant in self._variants.items():
            model = self._books.learnt(name)
            known = model.coefficients if model is not None else _prior(variant)
            if known is not None:
                weights[name] = token_weights(known.values(), _TYPICAL_BATCH)
        accounts = await asyncio.to_thread(self.store.accounts, now_s - _DAY_S, now_s)
        return await asyncio.to_thread(price_map, accounts, self._variants.values(), weights, basis)

    async def create_key(self, tenant: str, role: Role, expires_s: float | None, note: str) -> tuple[str, KeyRecord]:
        """A new key's text, which is kept nowhere, and its record. Every gateway knows it on return."""
        text, record = new_key(tenant, role, now_s=time(), expires_s=expires_s, note=note)
        await asyncio.to_thread(self.store.add_key, record)
        await self.keys_changed()
        return text, record

    async def rotate_key(self, key_id: str, grace_s: float) -> tuple[str, KeyRecord]:
        """A new key in the place of one that works for ``grace_s`` more; raises InvalidRequest where it works no more,
        or does not exist."""
        keys = await asyncio.to_thread(self.store.keys)
        old = next((record for record in keys if record.id == key_id), None)
        if old is None:
            raise InvalidRequest(f"There is no key {key_id[:100]!r} that works.", param="id")
        text, new, ending = rotate(old, now_s=time(), grace_s=grace_s)
        await asyncio.to_thread(partial(self.store.add_key, new, replaced=ending))
        await self.keys_changed()
        return text, new

    async def revoke_key(self, key_id: str) -> bool:
        """Whether there was such a key that worked. Every gateway refuses it on return."""
        revoked = await asyncio.to_thread(self.store.revoke_key, key_id, time())
        await self.keys_changed()
        return revoked

    async def keys_changed(self) -> None:
        """Returns once every gateway that reports has the keys as they are now, so that a revoked one is refused."""
        await self._read_keys()
        deadline_s = monotonic() + _RETRY_S
        while any(seen.keys != self._versions.keys for seen in self._seen.values()):
            if monotonic() > deadline_s:
                logger.warning("a gateway has not heard of the changed keys")
                return
            await asyncio.sleep(_LOOK_S)

    def _now_s(self) -> float:
        """Seconds since the epoch. Where that clock was set, or the machine slept, nobody was silent meanwhile."""
        now_s, steady_s = time(), monotonic()
        set_by_s = now_s - steady_s - self._offset_s
        if abs(set_by_s) > _SET_S:
            logger.warning("the clock was set by %.1f s", set_by_s)
            self._books.clock_set(set_by_s)
        self._offset_s += set_by_s
        return now_s

    def _settle(self, now_s: float) -> None:
        for gateway in self._books.gone(now_s):
            self._limits.gone(gateway)
            self._seen.pop(gateway, None)
        before = len(self._books.settled)
        self._books.settle(now_s)
        for settled in self._books.settled[before:]:
            self._posted += settled.postings
            for posting in settled.postings:
                self._limits.spent(posting.account.tenant, _use(posting.amounts), settled.window.ended_s)
        while self._finishing and self._finishing[0][0] <= monotonic():
            _, request_id, tokens = self._finishing.popleft()
            self._limits.finished(request_id, tokens, now_s)

    async def write(self) -> None:
        """Write what is settled, and what could not be written before."""
        async with self._writing:
            self._settle(self._now_s())
            drawn = self._books.draw()
            batch = Batch(
                id=secrets.token_hex(12),
                settled=drawn.settled,
                bookings=tuple(self._with_full(booking) for booking in drawn.bookings),
                transfers=drawn.transfers,
                coefficients=drawn.coefficients,
            )
            if not batch.empty or drawn.reports:
                self._unwritten.append((batch, drawn))
            await asyncio.to_thread(self._write_all)
            self._well = len(self._unwritten) < _PENDING_MAX

    def _write_all(self) -> None:
        """In order: what the spool holds, then what is new; what the database does not take goes to the spool."""
        if self._store is not None and self._spool.pending():
            try:
                self._replay(self._store)
            except LedgerUnusable as error:
                logger.warning("the ledger cannot be written now: %s", error.message)
        while self._unwritten:
            batch, drawn = self._unwritten[0]
            if not batch.empty and not self._put(batch):
                return
            self._unwritten.pop(0)
            self._acknowledged_reports.update(drawn.reports)
            self._acknowledged_windows.update(drawn.windows)

    def _replay(self, store: Store) -> None:
        replayed = self._spool.replay(store.write)
        if replayed.written:
            logger.info("%d spooled batches are written", replayed.written)
        for path in replayed.aside:
            logger.error("the ledger refuses a spooled batch, which is put aside: %s", path)

    def _put(self, batch: Batch) -> bool:
        """The batch is on disk, in the database or in the spool."""
        if self._store is not None and self._spool.pending() == 0:
            try:
                self._store.write(batch)
                return True
            except LedgerUnusable as error:
                logger.warning("the ledger cannot be written now, bookings are spooled: %s", error.message)
        try:
            self._spool.append(batch)
        except SpoolFull as error:
            logger.error("bookings can neither be written nor spooled: %s", error.message)
            return False
        return True

    async def _open(self) -> None:
        try:
            self._store = await asyncio.to_thread(Store.open, self._url)
        except LedgerUnusable as error:
            logger.error("the ledger cannot be opened, bookings are spooled: %s", error.message)
            return
        try:
            await self._recall(self._store)
        except LedgerUnusable as error:
            logger.warning("the ledger cannot be read now: %s", error.message)
        await self._read_keys()

    async def _recall(self, store: Store) -> None:
        """What an earlier bookkeeper knew and this one needs. What is spooled is written first, to be counted too."""
        await asyncio.to_thread(self._replay, store)
        now_s = self._now_s()
        for latest in await asyncio.to_thread(store.unfinished):
            self._books.recall(latest, now_s)
        for key, state in (await asyncio.to_thread(store.coefficients)).items():
            self._books.models.setdefault(key, StepModel.from_state(state))
        day_s, month_s = window_began_s("day", now_s), window_began_s("month", now_s)
        today = await asyncio.to_thread(store.spent, day_s)
        for tenant, amounts in (await asyncio.to_thread(store.spent, month_s)).items():
            of_today = today.get(tenant, UNKNOWN)
            self._limits.spent(tenant, _use(of_today), now_s)
            self._limits.spent(tenant, _use(amounts + -of_today), month_s)

    async def _read_keys(self) -> None:
        if self._store is None:
            return
        try:
            version = await asyncio.to_thread(self._store.keys_version)
            if version != self._versions.keys:
                self._keys = tuple(await asyncio.to_thread(self._store.keys, False))
                self._versions = replace(self._versions, keys=version)
        except LedgerUnusable as error:
            logger.warning("keys cannot be read now: %s", error.message)

    async def _refresh_prices(self) -> None:
        """Ask the grid's providers that are due, and note what routers must know of this hour's prices."""
        prices, now_s = self._books.prices, time()
        for trouble in await asyncio.to_thread(prices.refresh, now_s):
            logger.warning("%s", trouble)
        current = {name: price for name in prices.prices if (price := prices.at(name, now_s)) is not None}
        if current != self._prices:
            self._prices = current
            self._versions = replace(self._versions, prices=self._versions.prices + 1)

    async def _prune(self, store: Store) -> None:
        try:
            await asyncio.to_thread(store.prune, time() - self._keep_s)
        except LedgerUnusable as error:
            logger.warning("old bookings cannot be pruned now: %s", error.message)

    def _with_full(self, booking: Booking) -> Booking:
        """With what it would have taken on the full model, by what was learnt of that one's engine here."""
        if booking.full is None or booking.prompt_tokens is None or booking.output_tokens is None:
            return booking
        variant = self._variants.get(f"{booking.family}@{booking.full.variant}")
        if variant is None:
            return booking
        model = self._books.learnt(variant.id)
        full = counterfactual(
            full=variant,
            prompt_tokens=booking.prompt_tokens,
            cached_tokens=booking.cached_tokens or 0,
            output_tokens=booking.output_tokens,
            batch=booking.batch or 1.0,
            coefficients=model.coefficients.values() if model is not None and model.coefficients is not None else None,
            relative_error=model.relative_error if model is not None else None,
        )
        return replace(booking, full=full)


def _prior(variant: Variant) -> Coefficients | None:
    """What the variant's cards say, before anything was metered."""
    energy, power, speed = variant.energy, variant.power, variant.speed
    if energy is not None:
        return prior_from(energy.prefill_j_per_token, energy.decode_j_per_token)
    if power is not None and speed is not None:
        added_w = power.active_w - power.idle_w
        decode = {batch: added_w / rate for batch, rate in speed.decode_tokens_per_s.items()}
        return prior_from(added_w / speed.prefill_tokens_per_s, decode)
    return None


def _use(amounts: Amounts) -> Use:
    return Use(uusd=amounts.cost_uusd, uj=amounts.energy_uj, ug=amounts.carbon_ug)


def _tokens(prompt: int | None, output: int | None) -> int | None:
    return None if prompt is None or output is None else prompt + output

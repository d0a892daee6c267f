"""The one writer of the ledger: gateways and engines tell it what happened, it settles, writes, and answers.

Nothing is acknowledged before it is on disk: in the database, or, while that cannot be reached, in the spool. Whoever
is not answered keeps what it told and tells it again; all of it is known by number, so that twice is as good as once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, time
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from economizer.admission.keys import KeyRecord, Role, new_key, rotate
from economizer.admission.limits import Ask, Limits, Use, Verdict
from economizer.admission.tenants import window_began_s
from economizer.energy.step_model import Coefficients, StepModel, prior_from
from economizer.energy.types import Window
from economizer.errors import InvalidRequest
from economizer.ledger.books import Books
from economizer.ledger.counterfactual import counterfactual
from economizer.ledger.outbox import Outbox
from economizer.ledger.posted import Posted
from economizer.ledger.price_map import Basis, PriceMap, price_map, token_weights
from economizer.ledger.prices import PriceList
from economizer.ledger.store import LedgerUnusable, Store
from economizer.ledger.types import Amounts, Batch, Booking, Charge, Posting, Report
from economizer.variants.types import Price, Variant

_STEP_S = 0.5  # between two looks at what is to be written, keys, prices, a database that is away
_PRUNE_S = 3600.0
_RETRY_S = 2.0
_LOOK_S = 0.05
_SET_S = 0.5  # a clock that is only slewed moves less between two looks
_STOOD_S = 2.0  # it looks some times a second
_TYPICAL_BATCH = 4.0  # by which a step's energy is laid on the tokens of it
_HOUR_S = 3600
_DAY_S = 86_400.0
_FINISH_S = 4.0  # after a request ended its use is booked, and its reservation is released

logger = logging.getLogger("economizer.ledger")

Result = TypeVar("Result")


class Seen(Struct, frozen=True, kw_only=True):
    """What a gateway has: which versions of the keys and of the prices (-1 is none), and up to which number its
    charges. The numbers are of the bookkeeper that ``epoch`` names."""

    epoch: str = ""
    keys: int = -1
    prices: int = -1
    charges: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _OnDisk:
    """What an earlier bookkeeper knew and this one needs, as of ``read_s``."""

    read_s: float
    latest: Sequence[Window]
    coefficients: Mapping[str, Sequence[float]]
    day: Mapping[str, Amounts]
    month: Mapping[str, Amounts]


class Reply(Struct, frozen=True, kw_only=True):
    """What a gateway gets for its report.

    ``epoch`` names the bookkeeper that answers: another one knows nothing that is not on disk. ``acknowledged`` is the
    number up to which the gateway's reports are. ``charges`` are those since what the gateway has seen. ``keys`` and
    ``prices`` (by variant, as of this hour) are all there are, where they changed since then; ``seen`` is what it has
    now, and says with its next report. ``posted`` is what was booked lately and no other gateway was told, for its
    metrics: sums over hours. ``well`` is False while nothing can be put on disk.
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
        self._outbox = Outbox(spool, spool_bytes_max)
        self._keep_s = keep_days * _DAY_S
        self._prune_due_s = 0.0
        self._recalled = False
        self._books = Books(PriceList.of(()), began_s=time())
        self._limits = Limits()
        self._variants: Mapping[str, Variant] = {}
        self._posted = Posted()
        self._keys: tuple[KeyRecord, ...] | None = None
        self._versions = Seen(epoch=self._epoch)
        self._prices: Mapping[str, Price] = {}
        self._seen: dict[str, Seen] = {}
        self._finishing: deque[tuple[float, str, int | None]] = deque()
        self._offset_s = time() - monotonic()
        self._looked_s = monotonic()
        self._writing = asyncio.Lock()
        self._reading_keys = asyncio.Lock()
        self._believe(variants, PriceList.of(variants))

    async def believe(self, variants: Sequence[Variant]) -> None:
        """From now on these are the prices, and what is known of energy before anything was metered."""
        self._believe(variants, await asyncio.to_thread(PriceList.of, variants))  # it reads tables

    def _believe(self, variants: Sequence[Variant], prices: PriceList) -> None:
        self._variants = {variant.id: variant for variant in variants}
        self._books.prices, self._prices = prices, {}
        self._books.priors = {variant.id: prior for variant in variants if (prior := _prior(variant)) is not None}

    async def run(self) -> None:
        """Open the ledger, settle, write and look after it until cancelled. None of it waits for another."""
        async with asyncio.TaskGroup() as tasks:
            for step in (self.write, self._look_after, self._refresh_prices, self._prune):
                tasks.create_task(_again_and_again(step))

    async def close(self) -> None:
        """Write what there is."""
        await self.write()
        if self._outbox.store is not None:
            self._outbox.store.close()

    async def report(self, report: Report, seen: Seen) -> Reply:
        """Take in what a gateway tells; see :class:`Reply`. Raises LedgerUnusable where there is no room for it."""
        now_s = self._now_s()
        self._books.gateways.heard(report.gateway, now_s)
        self._need_room()
        self._books.report(report, now_s)
        due_s = monotonic() + _FINISH_S
        self._finishing.extend(
            (due_s, one.request_id, _tokens(one.prompt_tokens, one.output_tokens)) for one in report.bookings
        )
        for request_id in report.released:
            self._limits.finished(request_id, 0, now_s)
        self._settle(now_s)
        if seen.epoch != self._epoch:
            seen = Seen()
        self._seen[report.gateway] = seen
        charged, charges = self._books.gateways.charges(report.gateway, seen.charges)
        return Reply(
            epoch=self._epoch,
            acknowledged=self._outbox.reports.get(report.gateway, -1),
            charges=charges,
            posted=self._posted.take(),
            seen=replace(self._versions, charges=charged),
            keys=self._keys if seen.keys != self._versions.keys else None,
            prices=self._prices if seen.prices != self._versions.prices else None,
            well=self._outbox.well,
        )

    async def windows(self, engine: str, windows: Sequence[Window]) -> int:
        """Take in an engine's windows; returns the number up to which they are on disk, -1 for none. Raises
        LedgerUnusable where there is no room for them."""
        now_s = self._now_s()
        if windows:
            self._books.heard_engine(engine, now_s)
            self._need_room()
        for window in windows:
            self._books.window(window, now_s)
        self._settle(now_s)
        return self._outbox.windows.get(engine, -1)

    async def admit(self, ask: Ask) -> Verdict:
        """May this request be sent, by its tenant's rate and budget?"""
        return self._limits.admit(ask, time())

    @property
    def store(self) -> Store:
        """The open ledger; raises LedgerUnusable where it cannot be reached."""
        if self._outbox.store is None:
            raise LedgerUnusable("The ledger's database cannot be reached now.")
        return self._outbox.store

    async def price_map(self, basis: Basis) -> PriceMap:
        """Prices per token by what was booked in the last 24 hours, in the ratio of the energies learnt here."""
        now_s = time()
        weights = {}
        for name, variant in self._variants.items():
            model = self._books.learnt(name)
            known = model.coefficients if model is not None else _prior(variant)
            if known is not None:
                weights[name] = token_weights(known, _TYPICAL_BATCH)
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
        while not self._keys_are_known():
            if monotonic() > deadline_s:
                logger.warning("a gateway has not heard of the changed keys")
                return
            await asyncio.sleep(_LOOK_S)

    def _keys_are_known(self) -> bool:
        awaited = set(self._books.gateways.awaited(self._now_s()))
        return all(seen.keys == self._versions.keys for name, seen in self._seen.items() if name in awaited)

    def _need_room(self) -> None:
        if self._outbox.full:
            raise LedgerUnusable("Neither the ledger's database nor its spool takes anything, and memory is full.")

    def _now_s(self) -> float:
        """Seconds since the epoch. While that clock was set, or this process stood still, nobody was silent."""
        now_s, steady_s = time(), monotonic()
        set_by_s = now_s - steady_s - self._offset_s
        stood_s = steady_s - self._looked_s
        if abs(set_by_s) > _SET_S:
            logger.warning("the clock was set by %.1f s", set_by_s)
            self._books.nobody_was_silent(set_by_s)
        if stood_s > _STOOD_S:
            logger.warning("the bookkeeper has heard nobody for %.1f s", stood_s)
            self._books.nobody_was_silent(stood_s)
        self._offset_s += set_by_s
        self._looked_s = steady_s
        return now_s

    def _settle(self, now_s: float) -> None:
        for gateway in self._books.gateways.gone(now_s):
            self._limits.gone(gateway)
            self._seen.pop(gateway, None)
        postings = self._books.settle(now_s)
        self._posted.add(postings)
        self._spend(postings)
        while self._finishing and self._finishing[0][0] <= monotonic():
            _, request_id, tokens = self._finishing.popleft()
            self._limits.finished(request_id, tokens, now_s)

    def _spend(self, postings: Iterable[Posting]) -> None:
        """Count it towards its tenant's budgets."""
        for posting in postings:
            if posting.account.kind == "active":
                account = posting.account
                self._limits.spent(account.tenant, _use(posting.amounts), account.hour * _HOUR_S)

    async def write(self) -> None:
        """Write what is settled, and what could not be written before."""
        async with self._writing:
            self._settle(self._now_s())
            self._outbox.forget(self._books.gateways.names, self._books.engines)
            drawn = self._books.draw()
            models = {name: self._books.learnt(name) for name in self._variants}
            batch = Batch(
                id=secrets.token_hex(12),
                epoch=self._epoch,
                settled=drawn.settled,
                bookings=tuple(self._with_full(booking, models) for booking in drawn.bookings),
                transfers=drawn.transfers,
                # Until it is known what an earlier bookkeeper learnt, that is not written over.
                coefficients=drawn.coefficients if self._recalled else {},
            )
            self._outbox.add(batch, drawn)
            await _whole(self._outbox.write)

    async def _look_after(self) -> None:
        if self._outbox.store is None:
            await self._open()
        if self._outbox.store is not None and not self._recalled:
            await self._recall(self._outbox.store)
        await self._read_keys()

    async def _open(self) -> None:
        try:
            self._outbox.store = await asyncio.to_thread(Store.open, self._url)
        except LedgerUnusable as error:
            logger.error("the ledger cannot be opened, bookings are spooled: %s", error.message)

    async def _recall(self, store: Store) -> None:
        """Go on where an earlier bookkeeper ended. Nothing is written between the reading and what follows from it."""
        async with self._writing:
            try:
                found = await _whole(partial(self._read_back, store, self._now_s()))
            except LedgerUnusable as error:
                logger.warning("the ledger cannot be read now: %s", error.message)
                return
            self._recalled = True
            self._books.recall(found.latest, self._now_s())
            for key, state in found.coefficients.items():
                self._learn_again(key, state)
            self._limits.begin_with({"day": _uses(found.day), "month": _uses(found.month)}, found.read_s)
            self._spend((*self._outbox.waiting(), *self._books.waiting()))

    def _read_back(self, store: Store, now_s: float) -> _OnDisk:
        self._outbox.replay()  # to be counted too
        return _OnDisk(
            read_s=now_s,
            latest=store.unfinished(),
            coefficients=store.coefficients(),
            day=store.spent(window_began_s("day", now_s)),
            month=store.spent(window_began_s("month", now_s)),
        )

    def _learn_again(self, key: str, state: Sequence[float]) -> None:
        try:
            self._books.models[key] = StepModel.from_state(state)
        except ValueError as error:
            logger.warning("what was learnt of %s is of another form, and is learnt anew: %s", key, error)

    async def _read_keys(self) -> None:
        async with self._reading_keys:  # or what was read earlier might come later
            if self._outbox.store is None:
                return
            store = self._outbox.store
            try:
                version = await asyncio.to_thread(store.keys_version)
                if version != self._versions.keys:
                    self._keys = tuple(await asyncio.to_thread(store.keys, False))
                    self._versions = replace(self._versions, keys=version)
            except LedgerUnusable as error:
                logger.warning("keys cannot be read now: %s", error.message)

    async def _refresh_prices(self) -> None:
        """Ask the grid's providers that are due, and note what routers must know of this hour's prices."""
        for trouble in await asyncio.to_thread(self._books.prices.refresh, time()):
            logger.warning("%s", trouble)
        prices, now_s = self._books.prices, time()
        current = {name: price for name in prices.prices if (price := prices.at(name, now_s)) is not None}
        if current != self._prices:
            self._prices = current
            self._versions = replace(self._versions, prices=self._versions.prices + 1)

    async def _prune(self) -> None:
        """What is old, each hour, and never before what is spooled is written."""
        store, now_s = self._outbox.store, monotonic()
        if store is None or not self._recalled or self._outbox.spooled or now_s < self._prune_due_s:
            return
        self._prune_due_s = now_s + _PRUNE_S
        try:
            await asyncio.to_thread(store.prune, time() - self._keep_s)
        except LedgerUnusable as error:
            logger.warning("old bookings cannot be pruned now: %s", error.message)

    def _with_full(self, booking: Booking, models: Mapping[str, StepModel | None]) -> Booking:
        """With what it would have taken on the full model, by what was learnt of that one's engine here."""
        if booking.full is None or booking.prompt_tokens is None or booking.output_tokens is None:
            return booking
        variant = self._variants.get(f"{booking.family}@{booking.full.variant}")
        if variant is None:
            return booking
        model = models[variant.id]
        try:
            full = counterfactual(
                full=variant,
                prompt_tokens=booking.prompt_tokens,
                cached_tokens=booking.cached_tokens or 0,
                output_tokens=booking.output_tokens,
                batch=booking.batch or 1.0,
                coefficients=model.coefficients if model is not None else None,
                relative_error=model.relative_error if model is not None else None,
            )
        except Exception:  # whatever it is, it is this request's alone: what was drawn with it must be written
            logger.exception("request %s is booked without its counterfactual", booking.request_id)
            return replace(booking, full=None)
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


async def _again_and_again(step: Callable[[], Awaitable[None]]) -> None:
    while True:
        await step()
        await asyncio.sleep(_STEP_S)


async def _whole(work: Callable[[], Result]) -> Result:
    """In a thread, which cannot be cancelled: who is cancelled here waits for its end, and so nobody is in its way."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def _uses(spent: Mapping[str, Amounts]) -> dict[str, Use]:
    return {tenant: _use(amounts) for tenant, amounts in spent.items()}


def _use(amounts: Amounts) -> Use:
    return Use(uusd=amounts.cost_uusd, uj=amounts.energy_uj, ug=amounts.carbon_ug)


def _tokens(prompt: int | None, output: int | None) -> int | None:
    return None if prompt is None or output is None else prompt + output

"""The gateway's side of the books: what it tells the bookkeeper some times a second, and what it is told back."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from time import monotonic, time
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from economizer.admission.keys import KeyRecord
from economizer.admission.limits import Ask, Verdict
from economizer.gateway.organization import Books
from economizer.gateway.receipts import Receipt
from economizer.gateway.work import AttemptWork
from economizer.ledger.bookkeeper import Reply, Seen
from economizer.ledger.types import Booking, Charge, Posting, Report, RequestRow, Slice
from economizer.variants.types import Price

_REST_S = 1.0  # between reports while nothing happens
_GONE_S = 5.0  # without an answer from the bookkeeper
_KEPT_MAX = 200_000  # slices, bookings and releases that are not on disk yet; some ten minutes, and 100 MiB
_OPEN_MAX = 20_000  # receipts that wait for their last charge

logger = logging.getLogger("economizer.gateway")


class Ledger(Books, Protocol):
    """The bookkeeper as a gateway calls it; ``report`` and ``admit`` may raise whatever Ray raises."""

    async def report(self, report: Report, seen: Seen) -> Reply: ...

    async def admit(self, ask: Ask) -> Verdict: ...

    async def request(self, request_id: str) -> RequestRow | None:
        """The request as it is booked; raises LedgerGone where that cannot be asked."""


class _Kept(NamedTuple):
    """A report, and the receipts of the attempts that it tells of."""

    report: Report
    receipts: tuple[Receipt, ...]

    @property
    def weight(self) -> int:
        """How much there is to keep; 1 is a report that says nothing but that all was told."""
        return 1 + len(self.report.slices) + len(self.report.bookings) + len(self.report.released)


class Reporter:
    """Tells the bookkeeper of every attempt and every request, in order, until each is on disk."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        period_s: float,
        on_keys: Callable[[tuple[KeyRecord, ...]], None],
        on_prices: Callable[[Mapping[str, Price]], None],
        on_posted: Callable[[tuple[Posting, ...]], None],
        kept_max: int = _KEPT_MAX,
    ) -> None:
        self.name = secrets.token_hex(6)
        self._ledger = ledger
        self._period_s = period_s
        self._kept_max = kept_max
        self._on_keys = on_keys
        self._on_prices = on_prices
        self._on_posted = on_posted
        self._works: list[tuple[AttemptWork, Receipt]] = []
        self._ended: list[Receipt] = []
        self._released: list[str] = []
        self._open: OrderedDict[str, Receipt] = OrderedDict()
        self._kept: deque[_Kept] = deque()  # until they are on disk, of which the first ``_sent`` are sent
        self._sent = 0
        self._weight = 0
        self._number = 0
        self._epoch = ""
        self._seen = Seen()
        self._answered_s = monotonic()
        self._well = True
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Report from now on."""
        self._task = asyncio.create_task(self._keep_reporting())

    async def stop(self) -> None:
        """Tell what there is for the last time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            await self._try_to_report()

    @property
    def gone(self) -> bool:
        """Nothing has been put on disk for a while."""
        return not self._well or monotonic() - self._answered_s > _GONE_S

    def begin(self, work: AttemptWork, receipt: Receipt) -> None:
        """An attempt was sent to its engine."""
        self._works.append((work, receipt))
        receipt.open_attempts += 1
        if not receipt.given_up:
            self._open[receipt.id] = receipt
        if len(self._open) > _OPEN_MAX:
            self._give_up(next(iter(self._open.values())))
        self._news.set()

    def ended(self, receipt: Receipt) -> None:
        """A request ended, and is to be booked."""
        self._ended.append(receipt)
        self._news.set()

    def released(self, request_id: str) -> None:
        """A request that may have been admitted will not be booked."""
        self._released.append(request_id)
        self._news.set()

    async def admit(self, ask: Ask) -> Verdict:
        """May this request be sent? Raises what Ray raises where the bookkeeper does not answer."""
        async with asyncio.timeout(_GONE_S):
            return await self._ledger.admit(ask)

    async def until_answered(self) -> None:
        """Returns once the bookkeeper has answered for the first time, so that keys are known."""
        while not self._epoch:  # noqa: ASYNC110 - it happens once, at the start
            await asyncio.sleep(0.05)

    async def _keep_reporting(self) -> None:
        while True:
            await self._try_to_report()
            if self._at_rest():
                self._news.clear()
                try:
                    async with asyncio.timeout(_REST_S):
                        await self._news.wait()
                except TimeoutError:
                    continue
            await asyncio.sleep(self._period_s)

    async def _try_to_report(self) -> None:
        try:
            await self._report()
        except Exception:  # the outermost boundary: one mistake must not end the books
            logger.exception("a report failed, and the next one goes on")

    def _at_rest(self) -> bool:
        return not (self._works or self._ended or self._released or self._open or self._sent < len(self._kept))

    async def _report(self) -> None:
        self._keep(self._next())
        while self._sent < len(self._kept):
            report = replace(self._kept[self._sent].report, oldest=self._kept[0].report.number)
            try:
                async with asyncio.timeout(_GONE_S):
                    reply = await self._ledger.report(report, self._seen)
            except Exception as error:  # noqa: BLE001 - Ray and Serve raise many things while the bookkeeper is replaced
                logger.warning("%d reports wait for the ledger: %s", len(self._kept), type(error).__name__)
                await asyncio.sleep(self._period_s)
                return
            self._sent += 1
            self._take(reply)

    def _keep(self, one: _Kept) -> None:
        """Until it is on disk. One that says nothing is for a bookkeeper that listens: it does not queue for another,
        and the next one takes its number."""
        if one.weight == 1 and self._sent < len(self._kept):
            return
        self._number = one.report.number
        self._kept.append(one)
        self._weight += one.weight
        if self._weight > self._kept_max:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        missing = 0
        while self._weight > self._kept_max:
            missing += len(self._forget_oldest().report.bookings)
        logger.error(
            "the ledger has taken nothing for too long: the books will miss %d requests, and work of others", missing
        )

    def _forget_oldest(self) -> _Kept:
        one = self._kept.popleft()
        self._weight -= one.weight
        self._sent = max(0, self._sent - 1)
        return one

    def _next(self) -> _Kept:
        """What happened since the one before, which may be nothing."""
        now_s = monotonic()
        epoch_s = time() - now_s
        receipts = tuple(receipt for _, receipt in self._works)
        slices, bookings = tuple(self._slices(now_s, epoch_s)), tuple(self._bookings())
        released, self._released = tuple(self._released), []
        report = Report(
            gateway=self.name,
            number=self._number + 1,
            now_s=now_s + epoch_s,
            slices=slices,
            bookings=bookings,
            released=released,
        )
        return _Kept(report, receipts)

    def _slices(self, now_s: float, epoch_s: float) -> Iterator[Slice]:
        works, self._works = self._works, []
        for work, receipt in works:
            try:
                yield from work.tell(now_s, epoch_s)
            except Exception:  # whatever it is, it is this attempt's alone
                logger.exception("an attempt of request %s is told no more", receipt.id)
                self._give_up(receipt)  # it will not be measured whole
                continue
            if work.ended_s is None:
                self._works.append((work, receipt))

    def _bookings(self) -> Iterator[Booking]:
        ended, self._ended = self._ended, []
        for receipt in ended:
            try:
                yield receipt.booking()
            except Exception:  # whatever it is, it is this request's alone
                logger.exception("request %s is not booked", receipt.id)
                self._released.append(receipt.id)

    def _take(self, reply: Reply) -> None:
        if reply.epoch != self._epoch:
            if self._epoch:
                self._begin_again()
            self._epoch = reply.epoch
        while self._kept and self._kept[0].report.number <= reply.acknowledged:
            self._forget_oldest()
        self._answered_s, self._well = monotonic(), reply.well
        if reply.keys is not None:
            self._on_keys(reply.keys)
        if reply.prices is not None:
            self._on_prices(reply.prices)
        self._seen = reply.seen  # only now: where these were not taken, they are told again; charges are not
        for charge in reply.charges:
            self._charge(charge)
        if reply.posted:
            self._on_posted(reply.posted)

    def _begin_again(self) -> None:
        """Another bookkeeper: what the one before had not put on disk is told again, and split and charged anew. How
        much of what was charged here is among it, nobody knows."""
        self._sent = 0
        told = (receipt for one in self._kept for receipt in one.receipts)
        for receipt in (*self._open.values(), *told):
            self._give_up(receipt)

    def _give_up(self, receipt: Receipt) -> None:
        self._open.pop(receipt.id, None)
        receipt.give_up()

    def _charge(self, charge: Charge) -> None:
        receipt = self._open.get(charge.request_id)
        if receipt is not None:
            receipt.charge(charge)
            if receipt.open_attempts == 0:
                del self._open[charge.request_id]

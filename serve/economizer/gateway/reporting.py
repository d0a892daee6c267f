"""The gateway's side of the books: what it tells the bookkeeper some times a second, and what it is told back."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from time import monotonic, time
from typing import Protocol

from economizer.admission.keys import KeyRecord
from economizer.admission.limits import Ask, Verdict
from economizer.gateway.organization import Books
from economizer.gateway.receipts import Receipt
from economizer.gateway.work import AttemptWork
from economizer.ledger.bookkeeper import Reply, Seen
from economizer.ledger.types import Charge, Posting, Report, RequestRow
from economizer.variants.types import Price

_REST_S = 1.0  # between reports while nothing happens
_GONE_S = 5.0  # without an answer from the bookkeeper
_REPORTS_MAX = 2400  # kept without an answer; some ten minutes
_OPEN_MAX = 20_000  # receipts that wait for their last charge

logger = logging.getLogger("economizer.gateway")


class Ledger(Books, Protocol):
    """The bookkeeper as a gateway calls it; ``report`` and ``admit`` may raise whatever Ray raises."""

    async def report(self, report: Report, seen: Seen) -> Reply: ...

    async def admit(self, ask: Ask) -> Verdict: ...

    async def request(self, request_id: str) -> RequestRow | None:
        """The request as it is booked; raises LedgerGone where that cannot be asked."""


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
    ) -> None:
        self.name = secrets.token_hex(6)
        self._ledger = ledger
        self._period_s = period_s
        self._on_keys = on_keys
        self._on_prices = on_prices
        self._on_posted = on_posted
        self._works: list[AttemptWork] = []
        self._ended: list[Receipt] = []
        self._released: list[str] = []
        self._open: OrderedDict[str, Receipt] = OrderedDict()
        self._unacknowledged: deque[Report] = deque()
        self._to_send: deque[Report] = deque()
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
            await self._report()

    @property
    def gone(self) -> bool:
        """Nothing has been put on disk for a while."""
        return not self._well or monotonic() - self._answered_s > _GONE_S

    def begin(self, work: AttemptWork, receipt: Receipt) -> None:
        """An attempt was sent to its engine."""
        self._works.append(work)
        receipt.open_attempts += 1
        self._open[receipt.id] = receipt
        if len(self._open) > _OPEN_MAX:
            self._open.popitem(last=False)
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
            await self._report()
            if not self._works and not self._ended and not self._to_send and not self._open:
                self._news.clear()
                try:
                    async with asyncio.timeout(_REST_S):
                        await self._news.wait()
                except TimeoutError:
                    continue
            await asyncio.sleep(self._period_s)

    async def _report(self) -> None:
        report = self._next()
        self._unacknowledged.append(report)
        self._to_send.append(report)
        while len(self._unacknowledged) > _REPORTS_MAX:
            dropped = self._unacknowledged.popleft()
            logger.error("the books will miss %d requests: the ledger has not answered", len(dropped.bookings))
        try:
            while self._to_send:
                async with asyncio.timeout(_GONE_S):
                    oldest = self._unacknowledged[0].number
                    reply = await self._ledger.report(replace(self._to_send[0], oldest=oldest), self._seen)
                self._to_send.popleft()
                self._take(reply)
        except Exception as error:  # noqa: BLE001 - Ray and Serve raise many things while the bookkeeper is replaced
            logger.warning("%d reports wait for the ledger: %s", len(self._unacknowledged), type(error).__name__)
            await asyncio.sleep(self._period_s)

    def _next(self) -> Report:
        now_s = monotonic()
        epoch_s = time() - now_s
        slices = [one for work in self._works for one in work.tell(now_s, epoch_s)]
        self._works = [work for work in self._works if work.ended_s is None]
        bookings, self._ended = tuple([receipt.booking() for receipt in self._ended]), []
        released, self._released = tuple(self._released), []
        self._number += 1
        return Report(
            gateway=self.name,
            number=self._number,
            now_s=now_s + epoch_s,
            slices=tuple(slices),
            bookings=bookings,
            released=released,
        )

    def _take(self, reply: Reply) -> None:
        if reply.epoch != self._epoch:
            if self._epoch:  # another bookkeeper: what the one before had not put on disk is told again
                self._to_send = deque(self._unacknowledged)
            self._epoch = reply.epoch
        while self._unacknowledged and self._unacknowledged[0].number <= reply.acknowledged:
            self._unacknowledged.popleft()
        self._answered_s, self._well, self._seen = monotonic(), reply.well, reply.seen
        if reply.keys is not None:
            self._on_keys(reply.keys)
        if reply.prices is not None:
            self._on_prices(reply.prices)
        for charge in reply.charges:
            self._charge(charge)
        if reply.posted:
            self._on_posted(reply.posted)

    def _charge(self, charge: Charge) -> None:
        receipt = self._open.get(charge.request_id)
        if receipt is not None:
            receipt.charge(charge)
            if receipt.open_attempts == 0:
                del self._open[charge.request_id]

"""Batches on their way to disk: into the database, or, while that takes none, into the spool."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection
from pathlib import Path

from economizer.ledger.books import Drawn
from economizer.ledger.spool import Spool, SpoolFull
from economizer.ledger.store import LedgerRefused, LedgerUnusable, Store
from economizer.ledger.types import Batch, Posting, postings_of

_WELL_MAX = 200  # batches kept in memory where neither the database nor the spool takes them, until somebody is told
_KEPT_MAX = 1000  # until no more are to come

logger = logging.getLogger("economizer.ledger")


class Outbox:
    """``store`` is None while the database cannot be opened. ``reports`` and ``windows`` are the numbers up to which
    gateways' reports and engines' windows are on disk. One thread at a time may write or replay; the rest may be used
    meanwhile.
    """

    def __init__(self, folder: Path, bytes_max: int) -> None:
        self.store: Store | None = None
        self.reports: dict[str, int] = {}
        self.windows: dict[str, int] = {}
        self._folder = folder
        self._bytes_max = bytes_max
        self._spool: Spool | None = None
        self._cut_off = False  # the spool holds batches, and its folder cannot be used now
        self._trouble: str | None = None
        self._waiting: deque[tuple[Batch, Drawn]] = deque()

    @property
    def well(self) -> bool:
        """What is written soon is on disk."""
        return len(self._waiting) < _WELL_MAX

    @property
    def full(self) -> bool:
        """There is no memory for more."""
        return len(self._waiting) >= _KEPT_MAX

    @property
    def spooled(self) -> bool:
        """Something waits in the spool, as far as is known."""
        return self._cut_off if self._spool is None else self._spool.pending() > 0

    def waiting(self) -> list[Posting]:
        """What is posted in batches that are nowhere on disk."""
        return [each for batch, _ in self._waiting for each in postings_of(batch.settled, batch.transfers)]

    def forget(self, gateways: Collection[str], engines: Collection[str]) -> None:
        """Only these are still asked for."""
        self.reports = {name: number for name, number in self.reports.items() if name in gateways}
        self.windows = {name: number for name, number in self.windows.items() if name in engines}

    def add(self, batch: Batch, drawn: Drawn) -> None:
        """To be written next."""
        if not batch.empty or drawn.reports or drawn.windows:
            self._waiting.append((batch, drawn))

    def write(self) -> None:
        """In order: what the spool holds, then what is new; what the database does not take goes to the spool."""
        try:
            self.replay()
        except LedgerUnusable as error:
            logger.warning("the ledger cannot be written now: %s", error.message)
        while self._waiting:
            batch, drawn = self._waiting[0]
            if not batch.empty and not self._put(batch):
                return
            self._waiting.popleft()
            self.reports.update(drawn.reports)
            self.windows.update(drawn.windows)

    def replay(self) -> None:
        """Write what the spool holds; raises LedgerUnusable where the database does not take it."""
        spool = self._opened()
        if self.store is None or spool is None or not spool.pending():
            return
        try:
            replayed = spool.replay(self._written)
        except OSError as error:
            self._unusable(error)
            return
        if replayed.written:
            logger.info("%d spooled batches are written", replayed.written)
        for path in replayed.aside:
            logger.error("a spooled batch is damaged, and put aside: %s", path)

    def _put(self, batch: Batch) -> bool:
        """The batch is on disk, in the database or in the spool. Whatever waits in the spool comes first."""
        if self.store is not None and not self.spooled:
            try:
                self._written(batch)
                return True
            except LedgerUnusable as error:
                logger.warning("the ledger cannot be written now, bookings are spooled: %s", error.message)
        if self._spool is None:
            return False
        try:
            self._spool.append(batch)
        except SpoolFull as error:
            logger.error("bookings can neither be written nor spooled: %s", error.message)
            return False
        return True

    def _written(self, batch: Batch) -> None:
        """Into the database; in parts where that refuses it for good, and the parts that it refuses are put aside."""
        assert self.store is not None
        try:
            self.store.write(batch)
        except LedgerRefused:
            for part in batch.parts():
                try:
                    self.store.write(part)
                except LedgerRefused as error:
                    self._put_aside(part, error)

    def _put_aside(self, part: Batch, refused: LedgerRefused) -> None:
        try:
            where = str(self._spool.put_aside(part)) if self._spool is not None else f"only here: {part}"
        except SpoolFull as error:
            where = f"only here, since {error.message} {part}"
        names = [booking.request_id for booking in part.bookings] or [one.window.engine for one in part.settled]
        logger.error("a part of a batch %s is put aside, %s: %s", names, where, refused.message)

    def _opened(self) -> Spool | None:
        """The spool, or None while its folder cannot be used: the database is written to all the same."""
        if self._spool is None:
            try:
                self._spool = Spool(self._folder, bytes_max=self._bytes_max)
            except OSError as error:
                self._unusable(error)
                return None
            self._trouble, self._cut_off = None, False
            if self._spool.torn:
                logger.warning("%d batches were being spooled when the last bookkeeper died", self._spool.torn)
        return self._spool

    def _unusable(self, error: OSError) -> None:
        """Said once, and tried again."""
        self._cut_off = self._cut_off or self._spool is not None
        self._spool = None
        if self._trouble != str(error):
            self._trouble = str(error)
            waits = "what it holds comes first, and bookings wait" if self._cut_off else "bookings need the database"
            logger.error("the spool %s cannot be used, so %s: %s", self._folder, waits, error)

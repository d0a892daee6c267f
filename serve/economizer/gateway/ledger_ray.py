"""The bookkeeper as a Ray Serve replica, one in the whole application, and the way a gateway calls it.

Reports are of every request, so they and their replies go as MessagePack: pickled they took longer than all else that
booking takes of a gateway.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import msgpack
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from economizer.admission.keys import KeyRecord, Role
from economizer.admission.limits import Ask, Verdict
from economizer.config import LedgerSettings
from economizer.energy.types import Window
from economizer.engine.replica_ray import log_with_serve
from economizer.errors import EconomizerError, LedgerGone
from economizer.ledger.bookkeeper import Bookkeeper, Reply, Seen
from economizer.ledger.price_map import Basis, PriceMap
from economizer.ledger.store import LedgerUnusable
from economizer.ledger.types import AccountRow, MeterRow, Report, RequestRow
from economizer.variants.types import Variant

_MIB = 2**20
_ANSWER_S = 30.0
_RETRY_S = 2.0

_wire = msgpack.Encoder()
_told = msgpack.Decoder(tuple[Report, Seen])
_replied = msgpack.Decoder(Reply)

logger = logging.getLogger("economizer.gateway")


class LedgerReplica:
    """Serve's constructor and destructor around a :class:`Bookkeeper`, and its methods by the same names."""

    async def __init__(self, settings: LedgerSettings, variants: tuple[Variant, ...]) -> None:  # type: ignore[misc]  # Serve awaits it
        """``settings`` are located already. The database need not be reachable."""
        log_with_serve()
        self._bookkeeper = Bookkeeper(
            url=settings.url,
            spool=Path(settings.spool),
            spool_bytes_max=settings.spool_mib_max * _MIB,
            keep_days=settings.keep_days,
            variants=variants,
        )
        self._task = asyncio.create_task(self._bookkeeper.run())

    async def check_health(self) -> None:
        """Raise once it no longer runs, so that Serve starts another."""
        if self._task.done():
            self._task.result()

    async def report(self, told: bytes) -> bytes:
        return _wire.encode(await self._bookkeeper.report(*_told.decode(told)))

    async def windows(self, engine: str, windows: Sequence[Window]) -> int:
        return await self._bookkeeper.windows(engine, windows)

    async def admit(self, ask: Ask) -> Verdict:
        return await self._bookkeeper.admit(ask)

    async def believe(self, variants: tuple[Variant, ...]) -> None:
        await self._bookkeeper.believe(variants)

    async def request(self, request_id: str) -> RequestRow | None:
        return await asyncio.to_thread(self._bookkeeper.store.request, request_id)

    async def accounts(self, since_s: float, until_s: float) -> list[AccountRow]:
        return await asyncio.to_thread(self._bookkeeper.store.accounts, since_s, until_s)

    async def meters(self, since_s: float, until_s: float) -> list[MeterRow]:
        return await asyncio.to_thread(self._bookkeeper.store.meters, since_s, until_s)

    async def price_map(self, basis: Basis) -> PriceMap:
        return await self._bookkeeper.price_map(basis)

    async def keys(self, include_revoked: bool) -> list[KeyRecord]:
        return await asyncio.to_thread(self._bookkeeper.store.keys, include_revoked)

    async def create_key(self, tenant: str, role: Role, expires_s: float | None, note: str) -> tuple[str, KeyRecord]:
        return await self._bookkeeper.create_key(tenant, role, expires_s, note)

    async def revoke_key(self, key_id: str) -> bool:
        return await self._bookkeeper.revoke_key(key_id)

    async def rotate_key(self, key_id: str, grace_s: float) -> tuple[str, KeyRecord]:
        return await self._bookkeeper.rotate_key(key_id, grace_s)

    async def __del__(self) -> None:
        if hasattr(self, "_task"):
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({self._task})
            await self._bookkeeper.close()


class ServeLedger:
    """The bookkeeper, called through its handle. What only reads raises LedgerGone where it does not answer."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def report(self, report: Report, seen: Seen) -> Reply:
        return _replied.decode(await self._handle.report.remote(_wire.encode((report, seen))))

    async def admit(self, ask: Ask) -> Verdict:
        verdict: Verdict = await self._handle.admit.remote(ask)
        return verdict

    async def believe(self, variants: tuple[Variant, ...]) -> None:
        """From now on these are the prices and the cards."""
        await self._handle.believe.remote(variants)

    async def request(self, request_id: str) -> RequestRow | None:
        row: RequestRow | None = await self._asked("request", request_id)
        return row

    async def accounts(self, since_s: float, until_s: float) -> Sequence[AccountRow]:
        rows: Sequence[AccountRow] = await self._asked("accounts", since_s, until_s)
        return rows

    async def meters(self, since_s: float, until_s: float) -> Sequence[MeterRow]:
        rows: Sequence[MeterRow] = await self._asked("meters", since_s, until_s)
        return rows

    async def price_map(self, basis: Basis) -> PriceMap:
        prices: PriceMap = await self._asked("price_map", basis)
        return prices

    async def keys(self, include_revoked: bool) -> Sequence[KeyRecord]:
        keys: Sequence[KeyRecord] = await self._asked("keys", include_revoked)
        return keys

    async def create_key(self, tenant: str, role: Role, expires_s: float | None, note: str) -> tuple[str, KeyRecord]:
        made: tuple[str, KeyRecord] = await self._asked("create_key", tenant, role, expires_s, note)
        return made

    async def revoke_key(self, key_id: str) -> bool:
        revoked: bool = await self._asked("revoke_key", key_id)
        return revoked

    async def rotate_key(self, key_id: str, grace_s: float) -> tuple[str, KeyRecord]:
        made: tuple[str, KeyRecord] = await self._asked("rotate_key", key_id, grace_s)
        return made

    async def _asked(self, method: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await getattr(self._handle, method).remote(*arguments)
        except RayTaskError as error:  # what the bookkeeper itself raised
            cause = error.cause
            if isinstance(cause, LedgerUnusable) or not isinstance(cause, EconomizerError | ValueError):
                raise _gone(method, error) from None
            raise cause from None
        except (RayError, RayServeException, TimeoutError) as error:
            raise _gone(method, error) from None


def _gone(method: str, error: Exception) -> LedgerGone:
    logger.warning("the bookkeeper did not answer %s: %s", method, error)
    return LedgerGone("The ledger does not answer now.", retry_after_s=_RETRY_S)

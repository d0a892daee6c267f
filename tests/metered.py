"""A fleet that is billed: tenants with keys, rates and budgets, two gateways, and engines that burn CPU time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from economizer.admission.keys import new_key
from economizer.ledger.store import Store
from economizer.ledger.types import Amounts, Kind, RequestRow
from fleet import Fleet, configuration, variant
from replies import Caller

ADMIN = "ops"
EVER_S = 4e9
NOTHING = Amounts(energy_uj=0, cost_uusd=0, carbon_ug=0)
_BURN = ("--burn-s-per-token", "0.003")
_WATTS = {"kind": "cpu", "watts_per_core": 10, "watts_per_core_idle": 2}
_PRICES = {
    "dear": {"usd_per_hour": 36.0, "carbon_g_per_kwh": 400, "source": "assumed"},
    "usual": {"usd_per_hour": 3.6, "carbon_g_per_kwh": 400, "source": "assumed"},
    "spot": {"usd_per_hour": 0.36, "carbon_g_per_kwh": 400, "source": "assumed"},
}

# Every one has a key that all gateways know from the start. Those without an entry have no limits.
TENANTS: Mapping[str, Mapping[str, Any]] = {
    "walled": {"families": ["plain"]},
    "floored": {"quality_min": 0.85},
    "greens": {"policy": "green"},
    "lenient": {"on_unmet": "degrade"},
    "quick": {"requests_per_minute": 5},
    "wordy": {"tokens_per_minute": 200},
    "chatty": {"tokens_per_minute": 3000},
    "poor": {"budgets": [{"per": "day", "usd": 0.002}]},
    "thrifty": {"quality_min": 0.75, "budgets": [{"per": "month", "usd": 100, "soft": 1e-7}]},
    "frugal": {"budgets": [{"per": "day", "joules": 0.001, "hard": False}]},
}
UNLIMITED = ("acme", "beta", "gamma", "ada", "bob", "carol")


def _assumed(score: float) -> dict[str, Any]:
    return {"score": score, "source": "assumed"}


def _families() -> dict[str, Any]:
    return {
        "plain": {"full": "one", "variants": {"one": variant(*_BURN, hardware="usual")}},
        # Where the policy and the floor decide. The full one sleeps, so that no request of it is held out.
        "choice": {
            "full": "full",
            "policy": "cheap",
            "variants": {
                "full": variant(hardware="dear", replicas={"min": 0, "max": 1}),
                "good": variant(
                    *_BURN, hardware="usual", quality=_assumed(0.9), power={"active_w": 5, "source": "assumed"}
                ),
                "small": variant(
                    *_BURN, hardware="spot", quality=_assumed(0.8), power={"active_w": 500, "source": "assumed"}
                ),
            },
        },
        # Two replicas, for what fails at one of them.
        "twins": {"full": "one", "variants": {"one": variant(*_BURN, hardware="usual", replicas={"min": 2, "max": 2})}},
        # Every answer has 20 tokens, and takes and costs less than its card says.
        "steady": {
            "full": "one",
            "variants": {
                "one": variant(
                    *("--tokens", "20", "--tpot-s", "0.02"),
                    hardware="usual",
                    speed={"prefill_tokens_per_s": 5000, "decode_tokens_per_s": {1: 30}, "source": "assumed"},
                )
            },
        },
        "held": {
            "full": "full",
            "policy": "cheap",
            "variants": {"full": variant(hardware="dear"), "small": variant(hardware="spot", quality=_assumed(0.8))},
        },
    }


class Metered:
    """The fleet, everyone's keys, and what its books hold."""

    def __init__(self, folder: Path) -> None:
        content = configuration(_families(), replicas=2)
        arguments = content["applications"][0]["args"]
        arguments["prices"] = _PRICES
        arguments["ledger"] = {"window_s": 0.5, "report_s": 0.1, "meter": _WATTS}
        arguments["admission"] = {"tenants": {name: dict(limits) for name, limits in TENANTS.items()}}
        arguments["savings"] = {"share": 0.5}
        path = folder / "metered-ledger" / "ledger.db"
        self.store = Store.open(f"sqlite:///{path}")
        self.keys = {name: self._made(name) for name in (*TENANTS, *UNLIMITED, ADMIN)}
        self.fleet = Fleet(folder / "metered.yaml", content)
        assert self.fleet.ledger == path

    def _made(self, name: str) -> str:
        text, record = new_key(name, "admin" if name == ADMIN else "tenant", now_s=time.time())
        self.store.add_key(record)
        return text

    @asynccontextmanager
    async def caller(self, name: str) -> AsyncIterator[Caller]:
        """One of the tenants, or the administrator."""
        async with self.fleet.caller(self.keys[name]) as caller:
            yield caller

    def rows(self, tenant: str | None = None) -> dict[str, RequestRow]:
        """Every request that is in the books, by its id."""
        return {row.request_id: row for row in self.store.requests(0, EVER_S, tenant=tenant)}

    def spent(self, kind: Kind, tenant: str | None = None) -> Amounts:
        """What all accounts of a kind hold, or those of one tenant."""
        accounts = [row for row in self.store.accounts(0, EVER_S) if row.account.kind == kind]
        return sum((row.amounts for row in accounts if tenant in (None, row.account.tenant)), NOTHING)

    async def at_rest(self, request_ids: Iterable[str]) -> dict[str, RequestRow]:
        """Every request in the books, once these are booked and nothing more is charged to any."""
        deadline_s, missing, seen = time.monotonic() + 40, set(request_ids), None
        while True:
            rows = self.rows()
            missing -= {name for name, row in rows.items() if row.booking is not None}
            now = (len(rows), self.spent("active"), self.spent("lost"))
            if not missing and now == seen:
                return rows
            assert time.monotonic() < deadline_s, f"{missing} are not booked" if missing else "the books do not rest"
            seen = now
            await asyncio.sleep(2.0)  # the longest that a window waits for a gateway at rest to tell, and to be written

    def bill(self, *words: str) -> dict[str, Any]:
        """What ``economizer bill --json`` says, which must close."""
        said = self.fleet.economizer("bill", str(self.fleet.file), "--since", "24h", "--json", *words)
        assert said.returncode == 0, said.stderr
        found: dict[str, Any] = json.loads(said.stdout)
        return found

"""The ledger in the shapes of OpenAI's ``/v1/organization/costs`` and ``/v1/organization/usage/completions``. Pure.

A project is a tenant; a model and a line item are ``family@variant``. Overhead is nobody's project, and a line item of
its own, so that a bucket of costs adds up to all that is to be paid for. Source: OpenAI's API reference on Usage.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from economizer.admission.keys import KeyRecord
from economizer.errors import InvalidRequest
from economizer.ledger.bill import MICRO, NOTHING, Spent, variant_id
from economizer.ledger.types import Account, AccountRow
from economizer.ledger.when import HOUR_S

WIDTH_HOURS = {"1h": 1, "1d": 24}

CostGroup = Literal["project_id", "line_item"]
UsageGroup = Literal["project_id", "model"]

_CURSOR = re.compile(r"page_([0-9]{1,12})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Some buckets of equal width, in hours since the epoch (UTC). ``more`` says that others follow."""

    first_hour: int
    width_hours: int
    buckets: int
    more: bool

    @classmethod
    def of(cls, *, start_s: float, end_s: float, width: str, limit: int, cursor: str | None = None) -> Page:
        """The buckets that the time touches, whole ones, from where the cursor says; times in epoch seconds.

        Raises:
            InvalidRequest: where the end is not after the start, or the cursor is none of a page before this.
        """
        if end_s <= start_s:
            raise InvalidRequest(f"end_time is {end_s:g}: must be after start_time ({start_s:g})", param="end_time")
        width_hours = WIDTH_HOURS[width]
        first, last = int(start_s // HOUR_S) // width_hours, -int(-end_s // (HOUR_S * width_hours))
        if cursor is not None:
            found = _CURSOR.fullmatch(cursor)
            bucket, beyond = divmod(int(found[1]), HOUR_S * width_hours) if found else (-1, 0)
            if beyond or not first <= bucket < last:
                raise InvalidRequest(f"page is {cursor[:100]!r}: must be the next_page of an answer", param="page")
            first = bucket
        count = min(limit, last - first)
        return cls(first_hour=first * width_hours, width_hours=width_hours, buckets=count, more=first + count < last)

    @property
    def since_s(self) -> int:
        """When the first bucket begins, in seconds since the epoch."""
        return self.first_hour * HOUR_S

    @property
    def until_s(self) -> int:
        """When the last bucket ends, in seconds since the epoch."""
        return (self.first_hour + self.buckets * self.width_hours) * HOUR_S


def costs(accounts: Iterable[AccountRow], page: Page, group_by: Collection[CostGroup] = ()) -> dict[str, Any]:
    """What was billed in each bucket, in dollars; what has no known price is left out."""

    def key(account: Account) -> tuple[str | None, str | None]:
        active = account.kind == "active"
        item = variant_id(account.family, account.variant) + ("" if active else " idle")
        return (
            account.tenant if active and "project_id" in group_by else None,
            item if "line_item" in group_by else None,
        )

    def result(group: tuple[str | None, str | None], spent: Spent) -> dict[str, Any] | None:
        uusd = spent.with_idle.cost_uusd
        if uusd is None:
            return None
        return {
            "object": "organization.costs.result",
            "amount": {"value": uusd / MICRO, "currency": "usd"},
            "line_item": group[1],
            "project_id": group[0],
        }

    return _document(accounts, page, key, result)


def completions(accounts: Iterable[AccountRow], page: Page, group_by: Collection[UsageGroup] = ()) -> dict[str, Any]:
    """Requests and tokens of each bucket, and in ``economizer`` what they caused (the basis ``usage``)."""

    def key(account: Account) -> tuple[str | None, str | None]:
        return (
            account.tenant if "project_id" in group_by else None,
            variant_id(account.family, account.variant) if "model" in group_by else None,
        )

    def result(group: tuple[str | None, str | None], spent: Spent) -> dict[str, Any]:
        usage = spent.usage
        return {
            "object": "organization.usage.completions.result",
            "input_tokens": spent.prompt_tokens,
            "output_tokens": spent.output_tokens,
            "input_cached_tokens": spent.cached_tokens,
            "num_model_requests": spent.requests,
            "project_id": group[0],
            "model": group[1],
            "economizer": {
                "energy_j": _units(usage.energy_uj),
                "cost_usd": _units(usage.cost_uusd),
                "carbon_g": _units(usage.carbon_ug),
            },
        }

    return _document((row for row in accounts if row.account.kind == "active"), page, key, result)


def key_object(key: KeyRecord) -> dict[str, Any]:
    """What may be shown of an API key: all but its hash."""
    return {
        "object": "economizer.key",
        "id": key.id,
        "tenant": key.tenant,
        "role": key.role,
        "prefix": key.prefix,
        "created_s": key.created_s,
        "expires_s": key.expires_s,
        "revoked_s": key.revoked_s,
        "replaced_by": key.replaced_by,
        "note": key.note,
    }


def _units(micro: int | None) -> float | None:
    return None if micro is None else micro / MICRO


_Group = tuple[str | None, str | None]


def _document(
    accounts: Iterable[AccountRow],
    page: Page,
    key: Callable[[Account], _Group],
    result: Callable[[_Group, Spent], dict[str, Any] | None],
) -> dict[str, Any]:
    """OpenAI's page: a bucket for every span, with a result for each group that is in it."""
    sums: defaultdict[int, defaultdict[_Group, Spent]] = defaultdict(lambda: defaultdict(lambda: NOTHING))
    for row in accounts:
        bucket = (row.account.hour - page.first_hour) // page.width_hours
        sums[bucket][key(row.account)] += Spent.of_account(row)
    data = []
    for bucket in range(page.buckets):
        start_s = page.since_s + bucket * page.width_hours * HOUR_S
        groups = sorted(sums[bucket].items(), key=lambda item: [(part is None, part or "") for part in item[0]])
        results = [found for group, spent in groups if (found := result(group, spent))]
        data.append(
            {
                "object": "bucket",
                "start_time": start_s,
                "end_time": start_s + page.width_hours * HOUR_S,
                "results": results,
            }
        )
    return {
        "object": "page",
        "data": data,
        "has_more": page.more,
        "next_page": f"page_{page.until_s}" if page.more else None,
    }

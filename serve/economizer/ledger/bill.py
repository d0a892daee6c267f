"""A bill: hourly accounts added up by tenant, variant and time, on two bases, and held against the meters. Pure.

``usage`` is what requests caused. ``with_idle`` is that and a part of what the engines took beyond it (idle, startup,
lost and unclaimed), so that the rows add up to all that was measured. The part is by hour and variant: what was beyond
goes to the tenants that were active there, in proportion to what they caused; where nobody was, it stays nobody's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from economizer.energy.attribution import split
from economizer.errors import require
from economizer.ledger.types import KINDS, NOBODY, UNKNOWN, Account, AccountRow, Amounts, Kind, MeterRow
from economizer.ledger.when import HOUR_S

MICRO = 1_000_000  # whole units of the books in a joule, a dollar and a gram

WORDS = ("tenant", "family", "variant", "hour", "day", "month")
_TIMES: Mapping[str, str] = {"hour": "%Y-%m-%dT%H:00Z", "day": "%Y-%m-%d", "month": "%Y-%m"}


def variant_id(family: str, variant: str) -> str:
    """``family@variant``, or the family alone where a request came to no variant."""
    return f"{family}@{variant}" if variant else family


ZERO = Amounts(energy_uj=0, cost_uusd=0, carbon_ug=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Requests, tokens, and amounts by what they were for. A kind that is not there took nothing."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    by_kind: Mapping[Kind, Amounts]

    @classmethod
    def of_account(cls, row: AccountRow) -> Spent:
        """What one account holds."""
        return cls(
            requests=row.requests,
            prompt_tokens=row.prompt_tokens,
            cached_tokens=row.cached_tokens,
            output_tokens=row.output_tokens,
            by_kind={row.account.kind: row.amounts},
        )

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            requests=self.requests + other.requests,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            by_kind={
                **self.by_kind,
                **{kind: self.by_kind.get(kind, UNKNOWN) + amounts for kind, amounts in other.by_kind.items()},
            },
        )

    def of(self, *kinds: Kind) -> Amounts:
        """What was spent for these."""
        there = [self.by_kind[kind] for kind in kinds if kind in self.by_kind]
        return sum(there, UNKNOWN) if there else ZERO

    @property
    def usage(self) -> Amounts:
        """What requests caused."""
        return self.of("active")

    @property
    def with_idle(self) -> Amounts:
        """That, and the part of what engines took beyond it."""
        return self.of(*KINDS)


NOTHING = Spent(by_kind={})


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of a bill. ``group`` has a value for each word of the bill's ``by``; times are UTC in ISO 8601, and the
    tenant is NOBODY for overhead of hours in which no tenant used the variant."""

    group: tuple[str, ...]
    spent: Spent


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """What was spent from ``since_s`` until ``until_s`` (whole hours, seconds since the epoch).

    ``total`` is the sum of the rows. ``measured`` is what the meters and the price list came to; unknown where the bill
    is one tenant's, since no meter reads one tenant. ``meters`` are of the filter's family. ``difference`` is what the
    meters and the price list came to beyond the accounts, of the whole, whatever the filter; a bill without one closes.
    """

    since_s: int
    until_s: int
    by: tuple[str, ...]
    tenant: str | None
    family: str | None
    rows: tuple[Row, ...]
    total: Spent
    measured: Amounts
    meters: tuple[MeterRow, ...]
    difference: Amounts

    @classmethod
    def of(
        cls,
        accounts: Iterable[AccountRow],
        meters: Iterable[MeterRow],
        since_s: int,
        until_s: int,
        *,
        by: Sequence[str] = ("tenant", "family", "variant", "hour"),
        tenant: str | None = None,
        family: str | None = None,
    ) -> Bill:
        """The bill of these accounts and meters, which are all of that time.

        Raises:
            ValueError: where ``by`` is not a list of different words, with one of hour, day and month at most.
        """
        _require_by(by)
        accounts = list(accounts)
        meters = sorted(meters, key=lambda row: (row.hour, row.family, row.variant, row.engine, row.method))
        kept = [row for row in meters if family in (None, row.family)]
        rows: defaultdict[tuple[str, ...], Spent] = defaultdict(lambda: NOTHING)
        for account, spent in _spread(accounts).items():
            if tenant in (None, account.tenant) and family in (None, account.family):
                rows[tuple(_value(account, word) for word in by)] += spent
        posted = sum((row.amounts for row in accounts), UNKNOWN)
        return cls(
            since_s=since_s,
            until_s=until_s,
            by=tuple(by),
            tenant=tenant,
            family=family,
            # What is nobody's comes last.
            rows=tuple(
                Row(group=group, spent=rows[group])
                for group in sorted(rows, key=lambda group: [(value == "", value) for value in group])
            ),
            total=sum(rows.values(), NOTHING),
            measured=sum((row.total for row in kept), UNKNOWN) if tenant is None else UNKNOWN,
            meters=tuple(kept),
            difference=sum((row.total for row in meters), ZERO) + -posted,
        )

    @property
    def closes(self) -> bool:
        """Attributed, idle and overhead add up to what was measured and to what the price list says, to the unit."""
        return self.difference == ZERO

    @property
    def unmeasured_s(self) -> float:
        """Engine time whose energy is not known, in seconds."""
        return sum(row.unmeasured_s for row in self.meters)

    @property
    def gaps(self) -> int:
        """Times that a meter missed something."""
        return sum(row.gaps for row in self.meters)


def _require_by(by: Sequence[str]) -> None:
    holds = bool(by) and len({*by}) == len(by) and {*by} <= {*WORDS} and len({*by} & {*_TIMES}) <= 1
    rule = f"must be different words of {', '.join(WORDS)}, with one of {', '.join(_TIMES)} at most"
    require(holds, "by", ",".join(by), rule)


def _value(account: Account, word: str) -> str:
    if word in _TIMES:
        return datetime.fromtimestamp(account.hour * HOUR_S, UTC).strftime(_TIMES[word])
    if word == "variant":
        return variant_id(account.family, account.variant)
    return account.tenant if word == "tenant" else account.family


def _spread(accounts: Iterable[AccountRow]) -> dict[Account, Spent]:
    """By tenant, variant and hour (accounts of kind ``active``), each with its part of the overhead there."""
    active: defaultdict[Account, Spent] = defaultdict(lambda: NOTHING)
    overhead: defaultdict[Account, Amounts] = defaultdict(lambda: UNKNOWN)
    there: defaultdict[tuple[int, str, str], set[Account]] = defaultdict(set)
    for row in accounts:
        account = row.account
        if account.kind == "active":
            active[account] += Spent.of_account(row)
            there[account.hour, account.family, account.variant].add(account)
        else:
            overhead[account] += row.amounts
    for account, amounts in overhead.items():
        nobody = Account(
            hour=account.hour, tenant=NOBODY, family=account.family, variant=account.variant, kind="active"
        )
        # Sorted, so that the order of the accounts does not decide who gets the last unit.
        users = sorted(there[account.hour, account.family, account.variant], key=lambda user: user.tenant)
        weights = _weights([active[user] for user in users])
        for user, part in _split(amounts, users, weights) if any(weights) else [(nobody, amounts)]:
            active[user] += Spent(by_kind={account.kind: part})
    return dict(active)


def _weights(users: Sequence[Spent]) -> list[int]:
    """By the energy that they caused, by the cost where no energy is known, by their requests where neither is."""
    energies = [max(0, user.usage.energy_uj or 0) for user in users]
    costs = [max(0, user.usage.cost_uusd or 0) for user in users]
    return next((weights for weights in (energies, costs) if any(weights)), [user.requests for user in users])


def _split(amounts: Amounts, users: Sequence[Account], weights: Sequence[int]) -> list[tuple[Account, Amounts]]:
    def parts(total: int | None) -> Sequence[int | None]:
        return [None] * len(weights) if total is None else split(total, weights)

    energies, costs, carbons = parts(amounts.energy_uj), parts(amounts.cost_uusd), parts(amounts.carbon_ug)
    return [
        (user, Amounts(energy_uj=energy, cost_uusd=cost, carbon_ug=carbon))
        for user, energy, cost, carbon in zip(users, energies, costs, carbons, strict=True)
    ]

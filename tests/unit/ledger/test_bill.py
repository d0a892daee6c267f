import csv
import json
from io import StringIO

import pytest
from economizer.ledger.bill import WORDS, ZERO, Bill, Row, Spent
from economizer.ledger.bill_forms import as_csv, as_json, difference, table
from economizer.ledger.types import KINDS, NOBODY, UNKNOWN, Account, AccountRow, Amounts, Kind, MeterRow
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

HOUR = 490_000  # 2025-11-24, 16 to 17 h
SINCE_S, UNTIL_S = HOUR * 3600, (HOUR + 3) * 3600


def amounts(energy_uj: int | None, cost_uusd: int | None = None, carbon_ug: int | None = None) -> Amounts:
    return Amounts(energy_uj=energy_uj, cost_uusd=cost_uusd, carbon_ug=carbon_ug)


def account(
    tenant: str, what: Amounts, kind: Kind = "active", *, variant: str = "int8", hour: int = HOUR, requests: int = 0
) -> AccountRow:
    return AccountRow(
        account=Account(hour=hour, tenant=tenant, family="m", variant=variant, kind=kind),
        amounts=what,
        requests=requests,
        prompt_tokens=10 * requests,
        cached_tokens=requests,
        output_tokens=5 * requests,
    )


def meter(total: Amounts, *, variant: str = "int8", engine: str = "e1", hour: int = HOUR) -> MeterRow:
    return MeterRow(
        hour=hour,
        engine=engine,
        family="m",
        variant=variant,
        method="rapl",
        windows=3600,
        seconds=3600.0,
        unmeasured_s=1.5,
        gaps=1,
        total=total,
    )


ACCOUNTS = [
    account("acme", amounts(300, 30, 3), requests=2),
    account("beta", amounts(100, 10, 1), requests=1),
    account(NOBODY, amounts(1001, 101, 11), "idle"),
    account(NOBODY, amounts(7, 7, 7), "startup"),
    account(NOBODY, amounts(5000, 50, 5), "idle", variant="full"),
]
METERS = [meter(amounts(1408, 148, 22)), meter(amounts(5000, 50, 5), variant="full", engine="e2")]


def test_overhead_goes_to_those_who_were_there_by_their_energy_and_else_stays_nobodys() -> None:
    bill = Bill.of(ACCOUNTS, METERS, SINCE_S, UNTIL_S, by=("tenant", "variant"))
    counts = {"prompt_tokens": 20, "cached_tokens": 2, "output_tokens": 10}
    assert bill.rows == (
        # 3 of 4 parts, each of idle (1001, 101, 11) and startup (7, 7, 7) by largest remainder.
        Row(
            group=("acme", "m@int8"),
            spent=Spent(
                requests=2,
                **counts,
                by_kind={"active": amounts(300, 30, 3), "idle": amounts(751, 76, 8), "startup": amounts(5, 5, 5)},
            ),
        ),
        Row(
            group=("beta", "m@int8"),
            spent=Spent(
                requests=1,
                prompt_tokens=10,
                cached_tokens=1,
                output_tokens=5,
                by_kind={"active": amounts(100, 10, 1), "idle": amounts(250, 25, 3), "startup": amounts(2, 2, 2)},
            ),
        ),
        Row(group=(NOBODY, "m@full"), spent=Spent(by_kind={"idle": amounts(5000, 50, 5)})),
    )
    assert bill.rows[0].spent.usage == amounts(300, 30, 3)
    assert bill.rows[0].spent.with_idle == amounts(1056, 111, 16)
    assert bill.rows[2].spent.usage == ZERO
    assert (bill.total.usage, bill.total.with_idle) == (amounts(400, 40, 4), amounts(6408, 198, 27))
    assert (bill.measured, bill.closes, bill.unmeasured_s, bill.gaps) == (amounts(6408, 198, 27), True, 3.0, 2)


@pytest.mark.parametrize(
    ("acme", "beta", "idle"),
    [
        (amounts(300), amounts(100), (75, 25)),
        (amounts(None, 1), amounts(None, 3), (25, 75)),
        (amounts(None), amounts(None), (67, 33)),
        (amounts(0, 0), amounts(0, 1), (0, 100)),
        (amounts(0, 0), amounts(0, 0), (67, 33)),
    ],
)
def test_idle_time_is_shared_by_energy_else_by_cost_else_by_requests(
    acme: Amounts, beta: Amounts, idle: tuple[int, int]
) -> None:
    accounts = [
        account("acme", acme, requests=2),
        account("beta", beta, requests=1),
        account("", amounts(100), "idle"),
    ]
    rows = Bill.of(accounts, [], SINCE_S, UNTIL_S, by=("tenant",)).rows
    assert tuple(row.spent.of("idle").energy_uj for row in rows) == idle


def test_idle_time_of_another_hour_is_not_ones_own() -> None:
    accounts = [account("acme", amounts(300)), account(NOBODY, amounts(100), "idle", hour=HOUR + 1)]
    bill = Bill.of(accounts, [], SINCE_S, UNTIL_S, by=("tenant",))
    assert [(row.group, row.spent.with_idle.energy_uj) for row in bill.rows] == [(("acme",), 300), ((NOBODY,), 100)]


def test_what_is_unknown_stays_unknown_and_what_is_not_there_is_nothing() -> None:
    bill = Bill.of([account("acme", UNKNOWN, requests=1)], [meter(UNKNOWN)], SINCE_S, UNTIL_S, by=("tenant",))
    assert (bill.total.usage, bill.total.of("idle"), bill.total.with_idle) == (UNKNOWN, ZERO, UNKNOWN)
    assert (bill.measured, bill.closes) == (UNKNOWN, True)


def test_a_bill_of_one_tenant_or_family_closes_with_the_whole() -> None:
    bill = Bill.of(ACCOUNTS, METERS, SINCE_S, UNTIL_S, by=("tenant",), tenant="beta")
    assert [row.group for row in bill.rows] == [("beta",)]
    assert (bill.total.with_idle, bill.measured, bill.closes) == (amounts(352, 37, 6), UNKNOWN, True)
    bill = Bill.of(ACCOUNTS, METERS, SINCE_S, UNTIL_S, by=("tenant",), family="other")
    assert (bill.rows, bill.meters, bill.total.with_idle, bill.closes) == ((), (), ZERO, True)


def test_a_bill_that_does_not_close_says_by_how_much() -> None:
    bill = Bill.of(ACCOUNTS, METERS[:1], SINCE_S, UNTIL_S)
    assert not bill.closes
    assert bill.difference == amounts(-5000, -50, -5)
    assert difference(bill) == "-5000 uJ, -50 uUSD, -5 ug"


@pytest.mark.parametrize(
    ("by", "group"),
    [
        ("hour", "2025-11-24T16:00Z"),
        ("day", "2025-11-24"),
        ("month", "2025-11"),
        ("family", "m"),
        ("variant", "m@int8"),
    ],
)
def test_rows_are_by_the_words_that_are_asked_for(by: str, group: str) -> None:
    assert Bill.of(ACCOUNTS[:1], [], SINCE_S, UNTIL_S, by=(by,)).rows[0].group == (group,)


@pytest.mark.parametrize("by", [(), ("tenant", "tenant"), ("hour", "day"), ("user",), ("",)])
def test_other_groupings_are_refused(by: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"^by is '.*': must be different words of tenant, family, variant, hour"):
        Bill.of([], [], SINCE_S, UNTIL_S, by=by)


MICROS = st.none() | st.integers(min_value=0, max_value=10**15)
SOME = st.builds(Amounts, energy_uj=MICROS, cost_uusd=MICROS, carbon_ug=MICROS)
COUNT = st.integers(min_value=0, max_value=1000)


@st.composite
def account_rows(draw: st.DrawFn) -> AccountRow:
    kind = draw(st.sampled_from(KINDS))
    made = Account(
        hour=HOUR + draw(st.integers(min_value=0, max_value=30)),
        tenant=draw(st.sampled_from(["a", "b", "c"])) if kind == "active" else NOBODY,
        family=draw(st.sampled_from(["m", "n"])),
        variant=draw(st.sampled_from(["full", "int8"])),
        kind=kind,
    )
    counts = draw(st.tuples(COUNT, COUNT, COUNT, COUNT)) if kind == "active" else (0, 0, 0, 0)
    names = ("requests", "prompt_tokens", "cached_tokens", "output_tokens")
    return AccountRow(account=made, amounts=draw(SOME), **dict(zip(names, counts, strict=True)))


ROWS = st.lists(account_rows(), max_size=12, unique_by=lambda row: row.account)
BYS = (
    st.lists(st.sampled_from(WORDS), min_size=1, unique=True)
    .map(tuple)
    .filter(lambda by: len({*by} & {"hour", "day", "month"}) <= 1)
)


def whole(amounts: Amounts) -> Amounts:
    return ZERO + amounts


def measured(rows: list[AccountRow]) -> list[MeterRow]:
    return [
        meter(row.amounts, variant=row.account.variant, hour=row.account.hour, engine=f"e{index}")
        for index, row in enumerate(rows)
    ]


@given(rows=ROWS, by=BYS)
def test_rows_add_up_to_the_totals_and_these_to_the_meters_in_every_grouping(
    rows: list[AccountRow], by: tuple[str, ...]
) -> None:
    bill = Bill.of(rows, measured(rows), SINCE_S, UNTIL_S, by=by)
    assert bill.closes
    assert whole(sum((row.spent.usage for row in bill.rows), UNKNOWN)) == whole(bill.total.usage)
    assert whole(bill.total.usage) == whole(sum((row.amounts for row in rows if row.account.kind == "active"), UNKNOWN))
    assert whole(sum((row.spent.with_idle for row in bill.rows), UNKNOWN)) == whole(bill.measured)
    assert whole(sum((bill.total.of(kind) for kind in KINDS), UNKNOWN)) == whole(bill.measured)
    for name in ("requests", "prompt_tokens", "cached_tokens", "output_tokens"):
        assert sum(getattr(row.spent, name) for row in bill.rows) == sum(getattr(row, name) for row in rows)
    assert len({row.group for row in bill.rows}) == len(bill.rows)


@given(rows=ROWS, by=BYS, data=st.data())
def test_the_order_of_accounts_and_meters_does_not_matter(
    rows: list[AccountRow], by: tuple[str, ...], data: st.DataObject
) -> None:
    meters = measured(rows)
    shuffled = data.draw(st.permutations(rows)), data.draw(st.permutations(meters))
    assert Bill.of(*shuffled, SINCE_S, UNTIL_S, by=by) == Bill.of(rows, meters, SINCE_S, UNTIL_S, by=by)


@given(rows=ROWS)
def test_the_bills_of_all_tenants_add_up_to_the_whole(rows: list[AccountRow]) -> None:
    whole_bill = Bill.of(rows, [], SINCE_S, UNTIL_S)
    tenants = {row.account.tenant for row in rows} | {NOBODY}
    parts = [Bill.of(rows, [], SINCE_S, UNTIL_S, tenant=tenant).total.with_idle for tenant in sorted(tenants)]
    assert whole(sum(parts, UNKNOWN)) == whole(whole_bill.total.with_idle)


def test_a_bill_for_people() -> None:
    accounts = [*ACCOUNTS, account("acme", amounts(20_000 * 10**6, 1_250_000, None), hour=HOUR + 1, requests=7)]
    meters = [*METERS, meter(amounts(20_000 * 10**6, 1_250_000), hour=HOUR + 1)]
    assert table(Bill.of(accounts, meters, SINCE_S, UNTIL_S, by=("tenant", "variant"))) == (
        "2025-11-24T16:00Z to 2025-11-24T19:00Z\n"
        "\n"
        "tenant    variant  requests  prompt  cached  output  energy kJ  with idle  cost USD  with idle  carbon g"
        "  with idle\n"
        "acme      m@int8          9      90       9      45     20.000     20.000  1.250030   1.250111  0.000003"
        "   0.000016\n"
        "beta      m@int8          1      10       1       5      0.000      0.000  0.000010   0.000037  0.000001"
        "   0.000006\n"
        "(nobody)  m@full          0       0       0       0      0.000      0.000  0.000000   0.000050  0.000000"
        "   0.000005\n"
        "total                    10     100      10      50     20.000     20.000  1.250040   1.250198  0.000004"
        "   0.000027\n"
        "\n"
        "           attributed      idle   startup      lost  unclaimed       sum  measured\n"
        "energy kJ      20.000     0.000     0.000     0.000      0.000    20.000    20.000\n"
        "cost USD     1.250040  0.000151  0.000007  0.000000   0.000000  1.250198  1.250198\n"
        "carbon g     0.000004  0.000016  0.000007  0.000000   0.000000  0.000027  0.000027\n"
        "\n"
        "meters: rapl; 4.5 s unmeasured, 3 gaps\n"
        "the bill closes"
    )


def test_people_see_the_unknown_named_and_a_bill_that_does_not_close() -> None:
    lines = table(Bill.of([account("acme", UNKNOWN)], METERS[:1], SINCE_S, UNTIL_S, by=("tenant",))).splitlines()
    assert lines[3].split() == ["acme", "0", "0", "0", "0", *["unknown"] * 6]
    assert lines[-1] == "the bill does not close: meters less accounts +1408 uJ, +148 uUSD, +22 ug"


def test_csv_has_whole_units_and_leaves_the_unknown_empty() -> None:
    accounts = [*ACCOUNTS[:2], account("acme", UNKNOWN, variant="full", requests=1)]
    text = as_csv(Bill.of(accounts, [], SINCE_S, UNTIL_S, by=("tenant", "variant")))
    assert text == (
        "tenant,variant,requests,prompt_tokens,cached_tokens,output_tokens,energy_uj,cost_uusd,carbon_ug,"
        "with_idle_energy_uj,with_idle_cost_uusd,with_idle_carbon_ug\n"
        "acme,m@full,1,10,1,5,,,,,,\n"
        "acme,m@int8,2,20,2,10,300,30,3,300,30,3\n"
        "beta,m@int8,1,10,1,5,100,10,1,100,10,1\n"
    )
    assert len(list(csv.DictReader(StringIO(text)))) == 3


def test_json_has_whole_units_and_floats_and_survives_the_wire() -> None:
    found = json.loads(json.dumps(as_json(Bill.of(ACCOUNTS, METERS, SINCE_S, UNTIL_S, by=("tenant",)))))
    assert [*found] == ["since", "until", "tenant", "family", "totals", "rows", "meters", "closes", "difference"]
    assert (found["since"], found["until"]) == ("2025-11-24T16:00Z", "2025-11-24T19:00Z")
    assert found["rows"][1] == {
        "tenant": "beta",
        "requests": 1,
        "prompt_tokens": 10,
        "cached_tokens": 1,
        "output_tokens": 5,
        "usage": {
            "energy_uj": 100,
            "energy_j": 0.0001,
            "cost_uusd": 10,
            "cost_usd": 1e-05,
            "carbon_ug": 1,
            "carbon_g": 1e-06,
        },
        "with_idle": {
            "energy_uj": 352,
            "energy_j": 0.000352,
            "cost_uusd": 37,
            "cost_usd": 3.7e-05,
            "carbon_ug": 6,
            "carbon_g": 6e-06,
        },
    }
    totals = found["totals"]
    assert {name: totals[f"{name}_uj"] for name in ("measured", "attributed", "idle", "overhead")} == {
        "measured": 6408,
        "attributed": 400,
        "idle": 6001,
        "overhead": 7,
    }
    assert (totals["billed_uusd"], totals["billed_usd"], totals["emitted_ug"]) == (198, 0.000198, 27)
    assert (totals["unmeasured_s"], totals["gaps"]) == (3.0, 2)
    assert found["meters"][0]["engine"] == "e2"
    assert (found["meters"][0]["hour"], found["meters"][0]["energy_uj"]) == ("2025-11-24T16:00Z", 5000)
    assert found["closes"] is True


def test_a_changed_account_is_noticed() -> None:
    changed = [replace(ACCOUNTS[0], amounts=amounts(301, 30, 3)), *ACCOUNTS[1:]]
    assert difference(Bill.of(changed, METERS, SINCE_S, UNTIL_S)) == "-1 uJ"

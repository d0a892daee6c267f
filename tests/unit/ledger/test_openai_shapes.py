from math import isclose
from typing import Any

import pytest
from economizer.admission.keys import new_key
from economizer.errors import InvalidRequest
from economizer.ledger.openai_shapes import CostGroup, Page, completions, costs, key_object
from economizer.ledger.types import KINDS, NOBODY, Account, AccountRow, Amounts, Kind
from hypothesis import given
from hypothesis import strategies as st
from openai.types.admin.organization import UsageCompletionsResponse, UsageCostsResponse

DAY = 20_000  # days since the epoch: 2024-10-04
HOUR = DAY * 24
DAY_S = 86_400
TWO_DAYS = Page(first_hour=HOUR, width_hours=24, buckets=2, more=False)


def account(
    tenant: str,
    cost_uusd: int | None,
    kind: Kind = "active",
    *,
    variant: str = "int8",
    hour: int = HOUR,
    requests: int = 0,
) -> AccountRow:
    return AccountRow(
        account=Account(hour=hour, tenant=tenant, family="m", variant=variant, kind=kind),
        amounts=Amounts(energy_uj=2_500_000 if kind == "active" else 1, cost_uusd=cost_uusd),
        requests=requests,
        prompt_tokens=10 * requests,
        cached_tokens=requests,
        output_tokens=5 * requests,
    )


ACCOUNTS = [
    account("acme", 1_000_000, requests=2),
    account("acme", 500_000, hour=HOUR + 23, requests=1),
    account("beta", 250_000, variant="full", requests=1),
    account(NOBODY, 125_000, "idle"),
    account(NOBODY, 125_000, "startup"),
    account("acme", 7, hour=HOUR + 24),
]


def results(document: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return [bucket["results"] for bucket in document["data"]]


def cost(value: float, project: str | None, item: str | None) -> dict[str, Any]:
    return {
        "object": "organization.costs.result",
        "amount": {"value": value, "currency": "usd"},
        "line_item": item,
        "project_id": project,
    }


def test_costs_are_openais_page_of_buckets() -> None:
    assert costs(ACCOUNTS, TWO_DAYS) == {
        "object": "page",
        "data": [
            {
                "object": "bucket",
                "start_time": DAY * DAY_S,
                "end_time": (DAY + 1) * DAY_S,
                "results": [cost(2.0, None, None)],
            },
            {
                "object": "bucket",
                "start_time": (DAY + 1) * DAY_S,
                "end_time": (DAY + 2) * DAY_S,
                "results": [cost(7e-06, None, None)],
            },
        ],
        "has_more": False,
        "next_page": None,
    }


@pytest.mark.parametrize(
    ("group_by", "first_day"),
    [
        (["project_id"], [cost(1.5, "acme", None), cost(0.25, "beta", None), cost(0.25, None, None)]),
        (["line_item"], [cost(0.25, None, "m@full"), cost(1.5, None, "m@int8"), cost(0.25, None, "m@int8 idle")]),
        (
            ["line_item", "project_id"],
            [cost(1.5, "acme", "m@int8"), cost(0.25, "beta", "m@full"), cost(0.25, None, "m@int8 idle")],
        ),
    ],
)
def test_costs_by_tenant_and_variant_have_overhead_as_nobodys_line_item(
    group_by: list[CostGroup], first_day: list[dict[str, Any]]
) -> None:
    assert results(costs(ACCOUNTS, TWO_DAYS, group_by))[0] == first_day


def test_what_has_no_known_price_is_left_out_of_costs() -> None:
    assert results(costs([account("acme", None)], TWO_DAYS)) == [[], []]


COSTS = st.lists(
    st.builds(
        account,
        st.sampled_from(["a", "b"]),
        st.none() | st.integers(min_value=0, max_value=10**12),
        st.sampled_from(KINDS),
        variant=st.sampled_from(["full", "int8"]),
        hour=st.integers(min_value=HOUR, max_value=HOUR + 47),
    ),
    max_size=20,
)


@given(accounts=COSTS, group_by=st.lists(st.sampled_from(["project_id", "line_item"]), unique=True))
def test_a_page_of_costs_adds_up_to_the_whole_bill_in_every_grouping(
    accounts: list[AccountRow], group_by: list[CostGroup]
) -> None:
    found = results(costs(accounts, TWO_DAYS, group_by))
    usd = sum(result["amount"]["value"] for bucket in found for result in bucket)
    assert isclose(usd, sum(row.amounts.cost_uusd or 0 for row in accounts) / 1e6, rel_tol=1e-12)


def test_usage_counts_requests_and_tokens_and_says_what_they_took() -> None:
    hours = Page(first_hour=HOUR, width_hours=1, buckets=2, more=True)
    document = completions(ACCOUNTS, hours, ["project_id", "model"])
    acme = {
        "object": "organization.usage.completions.result",
        "input_tokens": 20,
        "output_tokens": 10,
        "input_cached_tokens": 2,
        "num_model_requests": 2,
        "project_id": "acme",
        "model": "m@int8",
        "economizer": {"energy_j": 2.5, "cost_usd": 1.0, "carbon_g": None},
    }
    beta = {
        **acme,
        "input_tokens": 10,
        "output_tokens": 5,
        "input_cached_tokens": 1,
        "num_model_requests": 1,
        "project_id": "beta",
        "model": "m@full",
        "economizer": {"energy_j": 2.5, "cost_usd": 0.25, "carbon_g": None},
    }
    assert results(document) == [[acme, beta], []]
    assert (document["has_more"], document["next_page"]) == (True, f"page_{(HOUR + 2) * 3600}")


def test_usage_by_nothing_is_one_result_per_bucket() -> None:
    first, second = results(completions(ACCOUNTS, TWO_DAYS))
    assert [(one["project_id"], one["model"], one["num_model_requests"]) for one in first] == [(None, None, 4)]
    assert first[0]["economizer"] == {"energy_j": 7.5, "cost_usd": 1.75, "carbon_g": None}
    assert second[0]["economizer"]["cost_usd"] == 7e-06


def test_openais_own_types_take_both() -> None:
    page = UsageCostsResponse.model_validate(costs(ACCOUNTS, TWO_DAYS, ["project_id", "line_item"]))
    kinds = {type(result).__name__ for bucket in page.data for result in bucket.results}
    assert kinds == {"DataResultOrganizationCostsResult"}
    usage = UsageCompletionsResponse.model_validate(completions(ACCOUNTS, TWO_DAYS, ["project_id"]))
    kinds = {type(result).__name__ for bucket in usage.data for result in bucket.results}
    assert kinds == {"DataResultOrganizationUsageCompletionsResult"}


def test_buckets_are_whole_days_or_hours_in_utc() -> None:
    start_s, end_s = DAY * DAY_S + 3700, (DAY + 2) * DAY_S + 1
    days = Page.of(start_s=start_s, end_s=end_s, width="1d", limit=7)
    assert days == Page(first_hour=HOUR, width_hours=24, buckets=3, more=False)
    assert (days.since_s, days.until_s) == (DAY * DAY_S, (DAY + 3) * DAY_S)
    hours = Page.of(start_s=start_s, end_s=end_s, width="1h", limit=24)
    assert hours == Page(first_hour=HOUR + 1, width_hours=1, buckets=24, more=True)


@given(
    start_s=st.integers(min_value=0, max_value=10**10),
    buckets=st.integers(min_value=1, max_value=50),
    limit=st.integers(min_value=1, max_value=31),
    width=st.sampled_from(["1h", "1d"]),
)
def test_following_the_cursor_visits_every_bucket_once(start_s: int, buckets: int, limit: int, width: str) -> None:
    width_s = {"1h": 3600, "1d": DAY_S}[width]
    end_s = (start_s // width_s + buckets) * width_s
    seen: list[int] = []
    cursor: str | None = None
    while True:
        page = Page.of(start_s=start_s, end_s=end_s, width=width, limit=limit, cursor=cursor)
        document = costs([], page)
        seen += [bucket["start_time"] for bucket in document["data"]]
        cursor = document["next_page"]
        if not document["has_more"]:
            break
    first_s = start_s // width_s * width_s
    assert seen == [first_s + index * width_s for index in range(buckets)]
    assert cursor is None


@pytest.mark.parametrize(
    "cursor", ["", "2", "page_", "page_x", "page_7", f"page_{(DAY - 1) * DAY_S}", "page_" + "9" * 20]
)
def test_a_cursor_of_no_answer_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidRequest, match=r"must be the next_page of an answer$") as refused:
        Page.of(start_s=DAY * DAY_S, end_s=(DAY + 9) * DAY_S, width="1d", limit=7, cursor=cursor)
    assert refused.value.param == "page"


def test_an_end_before_the_start_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"^end_time is 5: must be after start_time \(5\)$") as refused:
        Page.of(start_s=5, end_s=5, width="1d", limit=7)
    assert refused.value.param == "end_time"


def test_a_keys_hash_is_never_shown() -> None:
    text, key = new_key("acme", "tenant", now_s=1.0, expires_s=2.0, note="for CI")
    assert key_object(key) == {
        "object": "economizer.key",
        "id": key.id,
        "tenant": "acme",
        "role": "tenant",
        "prefix": f"eco-{key.id}",
        "created_s": 1.0,
        "expires_s": 2.0,
        "revoked_s": None,
        "replaced_by": None,
        "note": "for CI",
    }
    assert text.startswith(f"eco-{key.id}-")

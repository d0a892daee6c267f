"""Tenants: their settings from YAML's values, their part in a request's terms, and their budgets' windows."""

from datetime import UTC, datetime

import pytest
from economizer.admission.tenants import (
    ANONYMOUS,
    AdmissionSettings,
    Budget,
    Per,
    Tenant,
    allowed,
    degraded,
    require_tenant,
    window_began_s,
    window_ends_s,
    with_tenant,
)
from economizer.ledger import types as ledger
from economizer.router.policies import POLICIES
from economizer.router.types import Terms
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from pydantic import TypeAdapter, ValidationError

FLOORS = st.none() | st.floats(0, 1)


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_settings_are_read_from_a_file_s_values() -> None:
    found = TypeAdapter(AdmissionSettings).validate_python(
        {
            "keys": "required",
            "on_ledger_gone": "refuse",
            "anonymous": {"requests_per_minute": 5},
            "tenants": {
                "acme": {
                    "policy": "green",
                    "families": ["smollm2-135m"],
                    "quality_min": 0.9,
                    "on_unmet": "degrade",
                    "tokens_per_minute": 60_000,
                    "budgets": [
                        {"per": "month", "usd": 100, "soft": 0.8},
                        {"per": "day", "joules": 5e6, "hard": False},
                    ],
                }
            },
        }
    )
    acme = Tenant(
        policy="green",
        families=("smollm2-135m",),
        quality_min=0.9,
        on_unmet="degrade",
        tokens_per_minute=60_000,
        budgets=(Budget(per="month", usd=100.0, soft=0.8), Budget(per="day", joules=5e6, hard=False)),
    )
    assert found == AdmissionSettings(
        keys="required",
        on_ledger_gone="refuse",
        anonymous=Tenant(requests_per_minute=5),
        tenants={"acme": acme},
    )
    assert found.tenant("acme") == acme
    assert found.tenant("anonymous") == Tenant(requests_per_minute=5)
    assert found.tenant("beta") == Tenant()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tenants": {"anonymous": {}}}, "tenant is 'anonymous': must be 1 to 64"),
        ({"tenants": {"Acme": {}}}, "tenant is 'Acme': must be 1 to 64"),
        ({"tenants": {"acme": {"rpm": 5}}}, "rpm"),
        ({"tenants": {"acme": {"requests_per_minute": 0}}}, "requests_per_minute is 0: must be 1 or more"),
        ({"tenants": {"acme": {"quality_min": 1.1}}}, r"quality_min is 1\.1: must be between 0 and 1"),
        ({"tenants": {"acme": {"families": []}}}, r"families is \(\): must name at least one family"),
        ({"anonymous": {"budgets": [{"per": "week", "usd": 1}]}}, "'day' or 'month'"),
        ({"anonymous": {"budgets": [{"per": "day"}]}}, r"budget is \{\}: must be in one unit: usd, joules, grams_co2"),
        ({"anonymous": {"budgets": [{"per": "day", "usd": 1, "joules": 1}]}}, "must be in one unit"),
        ({"anonymous": {"budgets": [{"per": "day", "usd": 0}]}}, r"usd is 0\.0: must be at least one millionth"),
        ({"anonymous": {"budgets": [{"per": "day", "joules": "inf"}]}}, "joules is inf"),
        ({"anonymous": {"budgets": [{"per": "day", "usd": 1, "soft": 0}]}}, r"soft is 0\.0: must be above 0"),
        ({"anonymous": {"budgets": [{"per": "day", "usd": 1}, {"per": "day", "usd": 2}]}}, "each unit once a day"),
        ({"keys": "maybe"}, "'optional' or 'required'"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(AdmissionSettings).validate_python(values)


@pytest.mark.parametrize("name", ["a", "acme", "acme.eu-west_1", "0", "a" * 64])
def test_what_a_tenant_may_be_named(name: str) -> None:
    require_tenant(name)


@pytest.mark.parametrize("name", ["", "anonymous", "Acme", "a b", "a/b", "acme\n", "a" * 65, "ä"])
def test_what_a_tenant_may_not_be_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"^tenant is "):
        require_tenant(name)


def test_the_names_that_the_books_reserve_are_nobody_else_s() -> None:
    assert ANONYMOUS == ledger.ANONYMOUS
    for name in (ledger.ANONYMOUS, ledger.NOBODY):
        with pytest.raises(ValueError, match=r"^tenant is "):
            require_tenant(name)


def test_a_budget_is_counted_in_millionths_of_its_one_unit() -> None:
    budget = Budget(per="day", grams_co2=0.25)
    assert (budget.unit, budget.amount_micro, budget.name) == ("grams_co2", 250_000, "grams_co2 per day")


def test_a_tenant_without_a_list_of_families_may_use_all() -> None:
    assert allowed(Tenant(), "smollm2-135m")
    assert allowed(Tenant(families=("smollm2-135m",)), "smollm2-135m")
    assert not allowed(Tenant(families=("smollm2-135m",)), "llama")


def test_a_tenant_s_wishes_hold_where_the_request_names_none() -> None:
    tenant = Tenant(policy="green", on_unmet="degrade", quality_min=0.9)
    assert with_tenant(Terms(ttft_s_max=0.5), tenant, names_on_unmet=False) == Terms(
        ttft_s_max=0.5, policy="green", on_unmet="degrade", quality_min=0.9
    )
    asked = Terms(policy="fast", on_unmet="refuse", quality_min=0.95)
    assert with_tenant(asked, tenant, names_on_unmet=True) == asked


@given(asked=FLOORS, floor=FLOORS)
def test_a_tenant_s_floor_is_never_undercut_and_never_lowers_what_is_asked(
    asked: float | None, floor: float | None
) -> None:
    found = with_tenant(Terms(quality_min=asked), Tenant(quality_min=floor), names_on_unmet=False).quality_min
    assert (found or 0.0) == max(asked or 0.0, floor or 0.0)
    assert (found is None) == (asked is None and floor is None)


def test_a_tenant_that_says_nothing_changes_no_terms() -> None:
    asked = Terms(cost_usd_max=0.1, policy="fast", on_unmet="degrade", quality_min=0.5)
    assert with_tenant(asked, Tenant(), names_on_unmet=False) == asked


@pytest.mark.parametrize(
    ("budget", "policy"),
    [
        (Budget(per="day", usd=1.0), "cheap"),
        (Budget(per="day", joules=1.0), "green"),
        (Budget(per="day", grams_co2=1.0), "green"),
    ],
)
def test_past_a_soft_end_the_tenant_s_own_floor_and_the_saving_policy_hold(budget: Budget, policy: str) -> None:
    asked = Terms(ttft_s_max=0.5, cost_usd_max=0.1, energy_j_max=9.0, quality_min=0.99, policy="fast")
    saving = Terms(ttft_s_max=0.5, cost_usd_max=0.1, energy_j_max=9.0, policy=policy)
    assert degraded(asked, Tenant(quality_min=0.8), budget.unit) == replace(saving, quality_min=0.8)
    assert degraded(asked, Tenant(), budget.unit) == saving
    assert policy in POLICIES


@pytest.mark.parametrize(
    ("per", "now", "began", "ends"),
    [
        ("day", "2024-02-28T23:59:59.9Z", "2024-02-28T00:00:00Z", "2024-02-29T00:00:00Z"),
        ("day", "2024-03-01T00:00:00Z", "2024-03-01T00:00:00Z", "2024-03-02T00:00:00Z"),
        ("month", "2024-02-29T12:00:00Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"),
        ("month", "2023-12-31T23:59:59Z", "2023-12-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("month", "2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z"),
    ],
)
def test_windows_are_utc_days_and_months(per: Per, now: str, began: str, ends: str) -> None:
    assert (window_began_s(per, at(now)), window_ends_s(per, at(now))) == (at(began), at(ends))


@given(per=st.sampled_from(["day", "month"]), now_s=st.floats(0, 4e9))
def test_windows_follow_each_other_without_a_gap(per: Per, now_s: float) -> None:
    began_s, ends_s = window_began_s(per, now_s), window_ends_s(per, now_s)
    assert began_s <= now_s < ends_s
    assert window_began_s(per, ends_s) == ends_s
    assert window_ends_s(per, began_s) == ends_s
    assert datetime.fromtimestamp(ends_s, UTC).hour == 0

from math import isclose

import pytest
from economizer.energy.step_model import Coefficients
from economizer.ledger.price_map import Basis, price_map, token_weights
from economizer.ledger.types import NOBODY, Account, AccountRow, Amounts, Kind
from economizer.variants.types import Variant
from hypothesis import given
from hypothesis import strategies as st

HOUR = 490_000


def variant(name: str, **changes: object) -> Variant:
    known = {"context_tokens_max": 2048, "concurrency_max": 8, "hardware": "cpu", "features": frozenset({"chat"})}
    return Variant(family="m", name=name, **{**known, **changes})  # type: ignore[arg-type]  # a test's own defaults


def account(
    name: str,
    cost_uusd: int | None,
    kind: Kind = "active",
    *,
    prompt: int = 0,
    cached: int = 0,
    output: int = 0,
    tenant: str = "acme",
    hour: int = HOUR,
) -> AccountRow:
    return AccountRow(
        account=Account(hour=hour, tenant=tenant if kind == "active" else NOBODY, family="m", variant=name, kind=kind),
        amounts=Amounts(cost_uusd=cost_uusd),
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=output,
    )


FULL, INT8 = variant("full"), variant("int8", context_tokens_max=1024, features=frozenset({"chat", "tools", "json"}))
ACCOUNTS = [
    account("full", 3_000_000, prompt=1100, cached=100, output=500),
    account("full", 1_000_000, "idle"),
    account("int8", 900_000, prompt=300, output=150),
]
# By prompt and output token: an output token takes four times as much on either.
WEIGHTS = {"m@full": (1.0, 4.0), "m@int8": (0.5, 2.0)}


def test_the_map_is_litellms_with_measured_prices() -> None:
    found = price_map(ACCOUNTS, [INT8, FULL], WEIGHTS, "usage")
    assert found.left_out == {}
    assert [*found.entries] == ["m", "m@full", "m@int8"]
    # 3 USD over 1000 * 1 + 500 * 4 parts, and 0.9 USD over 300 * 0.5 + 150 * 2 parts.
    assert found.entries["m@full"] == {
        "input_cost_per_token": pytest.approx(0.001),
        "output_cost_per_token": pytest.approx(0.004),
        "cache_read_input_token_cost": 0.0,
        "litellm_provider": "openai",
        "mode": "chat",
        "max_input_tokens": 2048,
        "max_output_tokens": 2048,
        "max_tokens": 2048,
        "supports_function_calling": False,
        "supports_response_schema": False,
        "supports_vision": False,
    }
    int8 = found.entries["m@int8"]
    assert (int8["input_cost_per_token"], int8["output_cost_per_token"]) == pytest.approx((0.001, 0.004))
    assert (int8["max_tokens"], int8["supports_function_calling"]) == (1024, True)
    assert (found.entries["m"]["max_tokens"], found.entries["m"]["supports_function_calling"]) == (2048, True)


def test_with_idle_time_the_price_is_higher() -> None:
    found = price_map(ACCOUNTS, [FULL], WEIGHTS).entries["m@full"]
    assert found["output_cost_per_token"] == pytest.approx(0.004 * 4 / 3)


def test_a_familys_price_is_its_variants_by_their_tokens() -> None:
    accounts = [account("full", 3_000_000, prompt=1000), account("int8", 1_000_000, prompt=3000, output=10)]
    found = price_map(accounts, [FULL, INT8], {"m@full": (1, 1), "m@int8": (1, 0)}).entries
    assert found["m"]["input_cost_per_token"] == pytest.approx(4 / 4000)
    assert found["m"]["output_cost_per_token"] == 0.0
    assert found["m@full"]["output_cost_per_token"] == pytest.approx(0.003)  # has a price before it has tokens


@pytest.mark.parametrize(
    ("accounts", "reason"),
    [
        ([], "no tokens were computed"),
        ([account("full", None, prompt=10)], "no cost is known"),
        ([account("full", 5, "idle")], "no tokens were computed"),
        ([account("full", 5, prompt=10, cached=10)], "no tokens were computed"),
    ],
)
def test_a_variant_without_a_price_is_left_out_with_a_reason(accounts: list[AccountRow], reason: str) -> None:
    found = price_map(accounts, [FULL], WEIGHTS)
    assert (found.entries, found.left_out) == ({}, {"m@full": reason})


def test_a_variant_without_weights_is_left_out() -> None:
    found = price_map(ACCOUNTS, [FULL, INT8], {"m@int8": (1, 1)})
    assert [*found.entries] == ["m", "m@int8"]
    assert found.left_out == {"m@full": "nothing is known of how the energy of its prompt and output tokens compare"}


@pytest.mark.parametrize(
    ("features", "mode"),
    [({"embeddings"}, "embedding"), ({"completions"}, "completion"), ({"chat", "completions"}, "chat")],
)
def test_the_mode_is_litellms(features: set[str], mode: str) -> None:
    found = price_map(ACCOUNTS, [variant("full", features=frozenset(features))], WEIGHTS)
    assert found.entries["m@full"]["mode"] == mode


def test_weights_are_of_a_prompt_of_1000_tokens_with_the_step_shared_by_the_batch() -> None:
    learnt = Coefficients.of((100.0, 2.0, 50.0, 3.0, 800.0, 7.0))
    assert token_weights(learnt, 4.0) == (1100.0, 50 + 3000 + 200)
    assert token_weights(learnt, 0.0) == (1100.0, 50 + 3000 + 800)


TOKENS = st.integers(min_value=0, max_value=10**9)
SPENT = st.builds(
    account,
    st.sampled_from(["full", "int8"]),
    st.integers(min_value=0, max_value=10**12),
    prompt=TOKENS,
    output=TOKENS.filter(bool),
    tenant=st.sampled_from(["a", "b"]),
    hour=st.integers(min_value=HOUR, max_value=HOUR + 2),
)
IDLE = st.builds(account, st.sampled_from(["full", "int8"]), st.integers(min_value=0, max_value=10**9), st.just("idle"))
JOULES = st.floats(min_value=1e-6, max_value=1e3)


@given(
    spent=st.lists(SPENT, max_size=6),
    idle=st.lists(IDLE, max_size=3),
    cached=st.floats(min_value=0, max_value=1),
    weights=st.fixed_dictionaries({"m@full": st.tuples(JOULES, JOULES), "m@int8": st.tuples(JOULES, JOULES)}),
    basis=st.sampled_from(["usage", "allocation"]),
)
def test_tokens_times_prices_are_the_booked_cost(
    spent: list[AccountRow],
    idle: list[AccountRow],
    cached: float,
    weights: dict[str, tuple[float, float]],
    basis: Basis,
) -> None:
    spent = [
        account(
            row.account.variant,
            row.amounts.cost_uusd,
            prompt=row.prompt_tokens,
            cached=int(row.prompt_tokens * cached),
            output=row.output_tokens,
        )
        for row in spent
    ]
    entries = price_map([*spent, *idle], [FULL, INT8], weights, basis).entries
    names = {row.account.variant for row in spent}
    assert {*entries} == {f"m@{name}" for name in names} | ({"m"} if names else set())
    for model in entries:
        rows = [row for row in spent if model in ("m", f"m@{row.account.variant}")]
        there = {row.account.variant for row in rows}
        paid = rows if basis == "usage" else [*rows, *(row for row in idle if row.account.variant in there)]
        entry = entries[model]
        usd = (
            sum(row.prompt_tokens - row.cached_tokens for row in rows) * entry["input_cost_per_token"]
            + sum(row.cached_tokens for row in rows) * entry["cache_read_input_token_cost"]
            + sum(row.output_tokens for row in rows) * entry["output_cost_per_token"]
        )
        assert isclose(usd, sum(row.amounts.cost_uusd or 0 for row in paid) / 1e6, rel_tol=1e-9)

from dataclasses import replace
from typing import Any

from economizer.energy.step_model import Coefficients
from economizer.ledger.counterfactual import counterfactual
from economizer.ledger.types import UNKNOWN, Amounts, Counterfactual
from examples import variant
from hypothesis import given
from hypothesis import strategies as st

# 128 prompt tokens and 9 of answer take 25 J and 0.25 USD by the cards of examples.py, 3600 g/kWh make 25 mg of it.
FULL = variant("full", carbon_g_per_kwh=3600.0)
LEARNT = Coefficients.of((1000.0, 0.5, 2000.0, 10.0, 8000.0, 7.0))


def test_without_a_step_model_the_cards_say_what_the_full_model_would_have_taken() -> None:
    assert counterfactual(
        full=FULL,
        prompt_tokens=192,
        cached_tokens=64,
        output_tokens=9,
        batch=1.0,
        coefficients=None,
        relative_error=None,
    ) == Counterfactual(
        variant="full",
        amounts=Amounts(energy_uj=25_000_000, cost_uusd=250_000, carbon_ug=25_000),
        low_uj=17_500_000,
        high_uj=32_500_000,
        low_uusd=175_000,
        high_uusd=325_000,
    )


def test_energy_is_by_the_step_model_that_was_learnt_here_and_its_error_gives_the_interval() -> None:
    """1024 tokens prefilled, of 1536 tokens each; 10 decoded, of 2053 each; 10 steps and half a one, shared by 4."""
    found = counterfactual(
        full=FULL,
        prompt_tokens=2048,
        cached_tokens=1024,
        output_tokens=10,
        batch=4.0,
        coefficients=LEARNT,
        relative_error=0.1,
    )
    energy_uj = 1_024_000 + 786_432 + 20_000 + 205_300 + 21_000
    assert (found.amounts.energy_uj, found.amounts.carbon_ug) == (energy_uj, round(energy_uj / 1000))
    assert (found.low_uj, found.high_uj) == (round(energy_uj * 0.8040036), round(energy_uj * 1.1959964))
    assert found.amounts.cost_uusd == 1_140_625  # by the cards: 1024 / 1024 s and 9 / 64 s


def test_a_step_model_that_does_not_know_its_error_has_that_of_a_card() -> None:
    found = counterfactual(
        full=FULL,
        prompt_tokens=10,
        cached_tokens=0,
        output_tokens=0,
        batch=1.0,
        coefficients=Coefficients.of((100.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
        relative_error=None,
    )
    assert (found.amounts.energy_uj, found.low_uj, found.high_uj) == (1000, 700, 1300)


def test_what_no_card_knows_is_unknown() -> None:
    bare = replace(FULL, speed=None, power=None)
    nothing = Counterfactual(variant="full", amounts=UNKNOWN)
    tokens: dict[str, Any] = {"prompt_tokens": 10, "cached_tokens": 0, "output_tokens": 10, "batch": 1.0}
    assert counterfactual(full=bare, coefficients=None, relative_error=None, **tokens) == nothing


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 10_000), st.floats(0, 64), st.floats(0, 3))
def test_an_interval_holds_its_amount_and_a_fuller_batch_never_takes_more(
    prompt: int, cached: int, output: int, batch: float, error: float
) -> None:
    def at(batch: float) -> Counterfactual:
        return counterfactual(
            full=FULL,
            prompt_tokens=prompt,
            cached_tokens=min(cached, prompt),
            output_tokens=output,
            batch=batch,
            coefficients=LEARNT,
            relative_error=error,
        )

    found, fuller = at(batch), at(batch + 1)
    assert found.amounts.energy_uj is not None
    assert fuller.amounts.energy_uj is not None
    assert found.low_uj is not None
    assert found.high_uj is not None
    assert 0 <= found.low_uj <= found.amounts.energy_uj <= found.high_uj
    assert fuller.amounts.energy_uj <= found.amounts.energy_uj

from __future__ import annotations

import pytest
from economizer.energy.cpu_power import CpuPower
from economizer.variants.price import Price
from load.delivered import Delivered, Qualities, Quality, delivered
from load.savings import Bill, Measured, Ran, Side, in_time, paired, ratio
from load.savings_tables import Compared, Step, comparison, result, steps, verdict
from load.spending import Machine, Reading, Spending, cut, engine_seconds, spending
from load.types import Outcome, Terms
from msgspec.structs import replace

MACHINE = Machine(active_w=5.0, idle_w=1.0, usd_per_core_hour=0.36, cores_per_engine=1.0, source="a test's")
TERMS = Terms(ttft_s_max=1.0, tpot_s_max=0.1, quality_min=0.9)


def reading(at_s: float, cpu_s: float, engines_cpu_s: float = 0.0, engines: int = 1) -> Reading:
    return Reading(at_s=at_s, cpu_s=cpu_s, engines_cpu_s=engines_cpu_s, engines=engines)


def steady(seconds: int, cores: float, engines: int = 2, engine_share: float = 1.0) -> tuple[Reading, ...]:
    """A reading a second of a fleet that always uses as many cores."""
    return tuple(reading(at, at * cores, at * cores * engine_share, engines) for at in range(seconds + 1))


def outcome(number: int, due_s: float, **fields: object) -> Outcome:
    whole = Outcome(
        number=number,
        kind="chat",
        model="boiler",
        tenant="default",
        terms=TERMS,
        due_s=due_s,
        sent_s=due_s,
        first_s=due_s + 0.5,
        ended_s=due_s + 1.5,
        status=200,
        prompt_tokens=100,
        output_tokens=21,
    )
    return replace(whole, **fields)  # type: ignore[type-var]


def run(
    cores: float,
    *,
    number: int = 1,
    fleet: str = "full",
    seconds: int = 120,
    engine_share: float = 1.0,
    engines: int = 2,
    gateway_cores: float = 0.0,
    variant: str = "bf16",
    bill: Bill | None = None,
    **fields: object,
) -> Measured:
    """A run of one request a second."""
    ran = Ran(
        round=number,
        mix="strict",
        fleet=fleet,
        policy="" if fleet == "full" else "green",
        variant=variant,
        engines=engines,
        began="2026-01-01T00:00:00+00:00",
        seconds=float(seconds),
        planned=seconds,
        gateway_cores=gateway_cores,
        readings=steady(seconds, cores, engines, engine_share),
        bill=bill,
    )
    return Measured(ran=ran, outcomes=tuple(outcome(at, float(at), **fields) for at in range(seconds)))


def side(*runs: Measured) -> Side:
    return Side(runs=runs, machine=MACHINE)


def compared(full: Side, ours: Side, kept: float | None = 1.0) -> Compared:
    found = Delivered(answers=120, mean=0.93, with_floor=120, kept=kept, kept_for_sure=0.9, unknown=0)
    return Compared(
        mix="strict", policy="green", full=full, ours=ours, delivered=found, quality_source="replayed prompts"
    )


def test_usage_is_what_working_adds_and_allocation_what_every_kept_core_draws_besides() -> None:
    spent = spending((reading(0, 10, 10, 2), reading(100, 130, 120, 2)), MACHINE, 0.2)
    assert spent == Spending(
        seconds=100,
        cpu_s=120,
        engines_cpu_s=110,
        kept_core_s=220,  # two engines, and two tenths of a core booked for the rest, which used a tenth
        usage_j=480,
        gateway_j=pytest.approx(40),
        idle_j=220,
        usage_usd=pytest.approx(0.012),
        allocation_usd=pytest.approx(0.022),
    )
    assert spent.allocation_j == 700


def test_what_is_no_engine_keeps_the_cores_that_it_uses_where_these_are_more_than_it_is_booked_with() -> None:
    spent = spending((reading(0, 0, 0, 1), reading(100, 150, 100, 1)), MACHINE, 0.2)
    assert spent.kept_core_s == 150


def test_electricity_that_is_paid_on_top_is_in_the_dollars() -> None:
    price = Price(usd_per_hour=0.2, electricity_usd_per_kwh=0.36, pue=2.0, source="a test's")
    machine = Machine.of(CpuPower(active_w=5.0, idle_w=1.0, source="a test's"), price, 2.0)
    spent = spending((reading(0, 0, 0, 1), reading(3600, 3600, 3600, 1)), machine, 0.0)
    assert (machine.usd_per_core_hour, machine.usd_per_j) == (0.1, pytest.approx(2e-7))
    assert spent.usage_usd == pytest.approx(0.1 + 4 * 3600 * 2e-7)


def test_an_engine_that_comes_and_goes_is_kept_for_as_long_as_it_was_there() -> None:
    readings = [reading(at, 0, 0, 1 if at < 10 else 2) for at in range(21)]
    assert engine_seconds(readings) == pytest.approx(20 + 10.5)


def test_pieces_of_a_run_take_together_what_the_run_took() -> None:
    readings = steady(95, 1.7, engine_share=0.8)
    parts = [spending(part, MACHINE, 0.2) for part in cut(readings, [0.0, 10.0, 37.5, 95.0])]
    whole = spending(readings, MACHINE, 0.2)
    for amount in ("usage_j", "gateway_j", "idle_j", "usage_usd", "allocation_usd", "kept_core_s"):
        assert sum(getattr(part, amount) for part in parts) == pytest.approx(getattr(whole, amount))


def test_half_the_cpu_time_for_the_same_answers_is_a_ratio_of_two() -> None:
    found = ratio(side(run(1.6), run(1.4, number=2)), side(run(0.8), run(0.7, number=2)), "usage_j")
    assert found.value == pytest.approx(2.0)
    assert found.samples == 24  # blocks of ten seconds of two rounds of two minutes


def test_a_ratio_has_an_interval_around_it_where_blocks_differ() -> None:
    uneven = run(1.0)
    jumps = tuple(replace(each, cpu_s=each.at_s + 3.0 * (int(each.at_s / 20))) for each in uneven.ran.readings)
    uneven = Measured(ran=replace(uneven.ran, readings=jumps), outcomes=uneven.outcomes)
    found = ratio(side(uneven), side(run(0.5)), "usage_j")
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high  # type: ignore[operator]


def test_requests_that_were_not_answered_carry_no_joules() -> None:
    half = run(1.0)
    outcomes = tuple(one if one.number % 2 else replace(one, error="terms_unmet", status=422) for one in half.outcomes)
    found = side(Measured(ran=half.ran, outcomes=outcomes))
    assert found.per_request("usage_j").value() == pytest.approx(8.0)
    assert found.each_round("usage_j") == [pytest.approx(8.0)]
    assert found.in_time().value() == 0.5


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, True),
        ({"quality": 0.1}, True),  # a floor is no matter of time
        ({"first_s": 1.2}, False),
        ({"ended_s": 10.0}, False),
        ({"error": "engine_failed"}, False),
    ],
)
def test_in_time_is_a_whole_answer_within_its_latency_terms_whatever_its_quality(
    fields: dict[str, object], kept: bool
) -> None:
    assert in_time(outcome(0, 0.0, **fields)) is kept


def test_only_rounds_that_both_fleets_have_are_compared() -> None:
    full, ours = paired([run(1.0, number=2), run(1.0)], [run(0.5, number=2)])
    assert [each.ran.round for each in full] == [each.ran.round for each in ours] == [2]


def test_floors_are_held_against_the_quality_of_the_variant_that_answered() -> None:
    qualities = Qualities(
        source="replayed prompts",
        of={"bf16": Quality(value=1.0), "int8": Quality(value=0.92, low=0.89), "cut": Quality(value=0.7)},
    )
    outcomes = [
        outcome(0, 0.0, variant="bf16"),
        outcome(1, 0.0, variant="int8"),
        outcome(2, 0.0, variant="cut"),
        outcome(3, 0.0, variant="new"),
        outcome(4, 0.0, variant="cut", terms=Terms()),
        outcome(5, 0.0, variant="cut", error="stream_cut"),
    ]
    assert delivered(outcomes, qualities) == Delivered(
        answers=5, mean=pytest.approx(0.83), with_floor=4, kept=0.5, kept_for_sure=0.25, unknown=1
    )


def test_a_mix_without_floors_keeps_none_and_breaks_none() -> None:
    found = delivered([outcome(0, 0.0, variant="a", terms=Terms())], Qualities(source="published", of={}))
    assert (found.kept, found.with_floor, found.mean, found.unknown) == (None, 0, None, 1)


def test_the_last_line_names_ratio_and_interval_on_both_bases_and_who_kept_the_terms() -> None:
    ours = side(run(1.0, fleet="economizer", engines=1, engine_share=0.8, gateway_cores=0.2, variant="int8"))
    found = result(compared(side(run(1.5)), ours))
    assert found["energy_ratio"] == 1.5
    assert found["energy_ratio_allocation"] == pytest.approx((1.5 * 4 + 2) / (4 + 1.2), abs=1e-3)
    assert found["cost_ratio"] == 1.5
    assert found["cost_ratio_allocation"] == pytest.approx(2 / 1.2, abs=1e-3)
    assert found["energy_ratio_engines"] == pytest.approx(1.5 / 0.8, abs=1e-3)
    assert (found["slo_full"], found["slo_ours"], found["floors_kept"]) == (1.0, 1.0, 1.0)
    assert found["reached"] is True


@pytest.mark.parametrize(("cores", "kept", "fields"), [(1.4, 1.0, {}), (1.0, 0.99, {}), (1.0, 1.0, {"first_s": 900.0})])
def test_a_saving_is_not_reached_by_less_joules_alone(cores: float, kept: float, fields: dict[str, object]) -> None:
    ours = side(run(cores, fleet="economizer", **fields))
    found = compared(side(run(1.5)), ours, kept)
    assert found.reached is False
    assert "not reached" in verdict(found)


def test_the_table_shows_what_is_not_known_as_not_known() -> None:
    bill = Bill(energy_j=480.0, with_idle_j=None, cost_usd=0.01, with_idle_usd=0.02, closes=True)
    ours = side(run(1.0, fleet="economizer", variant="int8", bill=bill))
    text = comparison([compared(side(run(1.5)), ours)])
    assert "| J per request, usage | 6 | 4 | 1.50x |" in text
    assert "| its own bill: J per request, usage |  | 4 |  |" in text
    assert "| its own bill: with idle |  | not known |  |" in text
    assert "| answers by variant, % | bf16 100 | int8 100 |  |" in text


def test_the_chain_shows_what_each_change_made() -> None:
    chain = [
        Step(name="bf16 x 2, round robin", change="", side=side(run(1.5))),
        Step(name="bf16 x 1", change="fewer engines, fuller batches", side=side(run(1.0, engines=1))),
    ]
    lines = steps(chain).splitlines()
    assert lines[2].startswith("| bf16 x 2, round robin |  | 6 |  | 2 |  | 0.286 | 100 |")
    assert lines[3].startswith("| bf16 x 1 | fewer engines, fuller batches | 4 | -2 | 1 | -1 | 0.19 | 100 |")

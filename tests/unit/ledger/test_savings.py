import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import exp, sqrt
from random import Random
from statistics import mean, variance
from typing import Any, Literal

import pytest
from economizer.ledger.savings import EVERY, Estimate, Finding, Saving, Savings
from economizer.ledger.types import UNKNOWN, Amounts, Booking, Counterfactual, RequestRow
from economizer.router.holdout import HoldOut, arm
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace


def row(
    request_id: str = "ecr-1",
    *,
    family: str = "m",
    by: str = "int8",
    arm: Literal["full", "routed"] | None = None,
    prompt_tokens: int = 100,
    took_j: float | None = 70.0,
    full_j: float = 100.0,
    error: float = 0.2,
) -> RequestRow:
    """A request that took so much where the full model would have taken ``full_j``; a joule costs a micro-dollar."""
    full = Counterfactual(
        variant="full",
        amounts=Amounts(energy_uj=round(full_j * 1e6), cost_uusd=round(full_j)),
        low_uj=round(full_j * (1 - error) * 1e6),
        high_uj=round(full_j * (1 + error) * 1e6),
        low_uusd=round(full_j * (1 - error)),
        high_uusd=round(full_j * (1 + error)),
    )
    usage = UNKNOWN
    if took_j is not None:
        usage = Amounts(energy_uj=round(took_j * 1e6), cost_uusd=round(took_j))
    booking = Booking(
        request_id=request_id,
        tenant="t",
        family=family,
        variant=by,
        endpoint="chat",
        outcome="ok",
        began_s=0.0,
        ended_s=1.0,
        prompt_tokens=prompt_tokens,
        full=full,
        arm=arm,
    )
    return RequestRow(request_id=request_id, tenant="t", family=family, variant=by, booking=booking, usage=usage)


def in_joules(savings: Savings, family: str) -> Finding:
    (found,) = (one for one in savings.findings if (one.family, one.unit) == (family, "J"))
    return found


def test_the_claim_is_what_counterfactuals_say_beyond_what_was_taken() -> None:
    """The request that the full model answered saved nothing, whatever its counterfactual says."""
    savings = Savings.of([row(), row(arm="routed"), row(by="full", took_j=60.0), row(by="full", arm="full")])
    claim = Saving(
        amount=approx_estimate(60.0, 20.0, 100.0), share=approx_estimate(60 / 260, 1 - 200 / 220, 1 - 200 / 300)
    )
    routed = Saving(amount=approx_estimate(30.0, 10.0, 50.0), share=approx_estimate(0.3, 0.125, 1 - 70 / 120))
    assert in_joules(savings, "m") == Finding(
        family="m",
        unit="J",
        requests=3,
        skipped=0,
        routed=1,
        held_out=1,
        claimed=claim,
        claimed_of_routed=routed,
        evidence=None,
        calibration=None,
        corrected=None,
        verdict="unchecked",
    )
    assert in_joules(savings, "m").words == (
        "claimed saving 30 % (12 to 42); 1 held-out and 1 routed requests cannot check it"
    )


def approx_estimate(value: float, low: float, high: float) -> Estimate:
    near: Any = pytest.approx
    return Estimate(value=near(value), low=near(low), high=near(high))


def test_families_are_told_apart_and_together_in_joules_and_in_dollars() -> None:
    savings = Savings.of([row(family="a"), row(family="b", took_j=50.0), row(family="b", took_j=40.0)])
    assert [(one["family"], one["unit"], one["requests"], one["saved"], one["claimed"]) for one in savings.rows()] == [
        (EVERY, "J", 3, 140.0, "47 % (33 to 56)"),
        (EVERY, "USD", 3, 0.00014, "47 % (33 to 56)"),
        ("a", "J", 1, 30.0, "30 % (12 to 42)"),
        ("a", "USD", 1, 0.00003, "30 % (12 to 42)"),
        ("b", "J", 2, 110.0, "55 % (44 to 62)"),
        ("b", "USD", 2, 0.00011, "55 % (44 to 62)"),
    ]


def test_what_is_unknown_is_skipped_and_counted_and_never_counts_as_nothing() -> None:
    known = row()
    assert known.booking is not None
    without = [
        row(took_j=None),
        replace(known, usage=Amounts(cost_uusd=70)),
        replace(known, booking=replace(known.booking, full=None)),
        replace(known, booking=replace(known.booking, prompt_tokens=None)),
        replace(known, booking=replace(known.booking, full=Counterfactual(variant="full", amounts=UNKNOWN))),
    ]
    savings = Savings.of([known, *without])
    assert [(one.requests, one.skipped) for one in savings.findings if one.family == "m"] == [(1, 5), (2, 4)]


def test_requests_that_run_still_or_reached_no_engine_are_passed_over() -> None:
    running = replace(row(), booking=None)
    assert Savings.of([running, row(by="")]) == Savings(findings=())


def test_a_counterfactual_that_may_be_nothing_gives_an_amount_but_no_share() -> None:
    found = in_joules(Savings.of([row(error=1.0)]), "m")
    assert found.claimed == Saving(amount=approx_estimate(30.0, -70.0, 130.0), share=None)
    assert found.words == "claimed saving unknown; 0 held-out and 0 routed requests cannot check it"


@dataclass(frozen=True, kw_only=True)
class Service:
    """A made-up service whose truth is known: prompts and answers of skewed lengths, and joules by them.

    The routed variant takes 70 % of the full one's joules for the same tokens. ``longer`` is how much longer the full
    model's answers are, ``predicted`` what counterfactuals say of it over what it really takes.
    """

    requests: int = 400
    share: float = 0.3
    longer: float = 1.0
    predicted: float = 1.0

    @property
    def truth(self) -> tuple[float, float]:
        """The saving per request in joules, and as a share."""
        prompt_j, answer_j = exp(6 + 0.9**2 / 2), exp(6 + 0.5**2 / 2)
        full_j, routed_j = prompt_j + answer_j * self.longer, 0.7 * (prompt_j + answer_j)
        return full_j - routed_j, 1 - routed_j / full_j

    def rows(self, seed: int) -> Iterator[RequestRow]:
        random, holdout = Random(seed), HoldOut(share=self.share, seed=str(seed))
        for number in range(self.requests):
            request_id = f"ecr-{number}"
            drawn = arm(request_id, holdout)
            prompt, answer = random.lognormvariate(6, 0.9), random.lognormvariate(6, 0.5)
            answer *= self.longer if drawn == "full" else 1.0
            noise = random.lognormvariate(-(0.1**2) / 2, 0.1)
            full_j = prompt + answer
            yield row(
                request_id,
                by="full" if drawn == "full" else "int8",
                arm=drawn,
                prompt_tokens=round(prompt),
                took_j=full_j * noise * (1.0 if drawn == "full" else 0.7),
                full_j=full_j * self.predicted,
                error=0.05,
            )


@cache
def runs(service: Service) -> list[Finding]:
    return [in_joules(Savings.of(service.rows(seed)), "m") for seed in range(120)]


def covered(estimates: list[Estimate | None], truth: float) -> float:
    known = [one for one in estimates if one is not None]
    assert len(known) == len(estimates)
    return mean(one.low <= truth <= one.high for one in known)


def shares(savings: list[Saving | None]) -> list[Estimate | None]:
    return [None if one is None else one.share for one in savings]


def amounts(savings: list[Saving | None]) -> list[Estimate | None]:
    return [None if one is None else one.amount for one in savings]


@pytest.mark.parametrize("service", [Service(), Service(longer=1.3), Service(predicted=0.8)])
def test_the_evidence_covers_the_truth_in_95_of_100_runs(service: Service) -> None:
    """Also where the full model's answers are longer, which no counterfactual knows, or counterfactuals are wrong."""
    saved_j, saved_share = service.truth
    evidence = [one.evidence for one in runs(service)]
    assert 0.90 <= covered(amounts(evidence), saved_j) <= 0.99
    assert 0.90 <= covered(shares(evidence), saved_share) <= 0.99
    assert mean(one.value for one in shares(evidence) if one is not None) == pytest.approx(saved_share, abs=0.01)


def plain(service: Service, seed: int) -> Estimate:
    """The difference of means with Welch's interval, from the requests themselves."""
    took: dict[object, list[float]] = {"full": [], "routed": []}
    for one in service.rows(seed):
        assert one.booking is not None
        assert one.usage.energy_uj is not None
        took[one.booking.arm].append(one.usage.energy_uj / 1e6)
    half = 1.96 * sqrt(sum(variance(values) / len(values) for values in took.values()))
    return Estimate.around(mean(took["full"]) - mean(took["routed"]), half)


def test_adjusting_by_the_prompts_makes_the_interval_smaller() -> None:
    service = Service()
    ratios = []
    for seed, found in enumerate(runs(service)[:30]):
        assert found.evidence is not None
        adjusted, without = found.evidence.amount, plain(service, seed)
        assert adjusted.low < without.high
        assert without.low < adjusted.high
        ratios.append((adjusted.high - adjusted.low) / (without.high - without.low))
    assert max(ratios) < 0.6
    assert mean(ratios) < 0.5


def test_where_prompts_are_all_alike_the_evidence_is_the_plain_difference() -> None:
    rows = [row(by="full", arm="full", took_j=90.0 + number % 21) for number in range(42)]
    rows += [row(arm="routed", took_j=60.0 + number % 21) for number in range(42)]
    found = in_joules(Savings.of(rows), "m")
    half = 1.959964 * sqrt(2 * (2 * 770.0) / 40 / 42)
    assert found.evidence is not None
    assert found.evidence.amount == approx_estimate(30.0, 30 - half, 30 + half)
    assert found.evidence.share is not None
    assert found.evidence.share.value == pytest.approx(0.3)


def test_a_right_claim_is_found_consistent_in_9_of_10_runs() -> None:
    found = runs(Service())
    assert mean(one.verdict == "consistent" for one in found) >= 0.9
    assert 0.90 <= covered([one.calibration for one in found], 1.0) <= 0.99


def test_the_hold_out_finds_counterfactuals_that_are_too_small_and_corrects_the_claim() -> None:
    found = runs(Service(predicted=0.8))
    assert {one.verdict for one in found} == {"outside"}
    assert 0.90 <= covered([one.calibration for one in found], 1 / 0.8) <= 0.99
    assert 0.90 <= covered(shares([one.corrected for one in found]), 0.3) <= 0.99
    assert found[0].words == (
        "claimed saving 14 % (9 to 18); hold-out of 115 requests says 32 % (29 to 36): "
        "the claim is outside the evidence; held-out requests took 1.25 times what was predicted (1.22 to 1.28)"
    )


def test_the_hold_out_finds_that_the_full_models_answers_are_longer_though_calibration_cannot() -> None:
    found = runs(Service(longer=1.3))
    assert mean(one.verdict == "outside" for one in found) > 0.9
    assert 0.90 <= covered([one.calibration for one in found], 1.0) <= 0.99


def test_a_request_that_another_variant_answered_stays_in_the_arm_it_was_drawn_for() -> None:
    rows = [row(by="full", arm="full", took_j=100.0) for _ in range(30)]
    rows += [row(by="int8", arm="full", took_j=70.0) for _ in range(30)]
    rows += [row(arm="routed", took_j=70.0) for _ in range(60)]
    found = in_joules(Savings.of(rows), "m")
    assert found.evidence is not None
    assert found.evidence.amount.value == pytest.approx(15.0)
    assert (found.held_out, found.calibration) == (60, Estimate(value=1.0, low=1.0, high=1.0))


@pytest.mark.parametrize(("held", "verdict"), [(29, "unchecked"), (30, "consistent")])
def test_fewer_than_30_in_an_arm_say_nothing(held: int, verdict: str) -> None:
    rows = [row(by="full", arm="full", took_j=99.0 + number % 3) for number in range(held)]
    rows += [row(arm="routed", took_j=69.0 + number % 3) for number in range(300)]
    assert in_joules(Savings.of(rows), "m").verdict == verdict


@given(st.permutations(list(Service(requests=80, share=0.5).rows(1))))
def test_the_order_of_requests_does_not_matter(rows: list[RequestRow]) -> None:
    found, expected = (in_joules(Savings.of(one), "m") for one in (rows, Service(requests=80, share=0.5).rows(1)))
    assert (found.claimed, found.claimed_of_routed, found.verdict) == (
        expected.claimed,
        expected.claimed_of_routed,
        expected.verdict,
    )
    assert found.evidence is not None
    assert expected.evidence is not None
    assert found.evidence.amount.low == pytest.approx(expected.evidence.amount.low)


def test_all_of_it_is_json() -> None:
    savings = Savings.of(Service().rows(0))
    first = json.loads(json.dumps(savings.to_json()))[0]
    assert first["words"] == savings.findings[0].words
    assert first["evidence"]["share"].keys() == {"value", "low", "high"}

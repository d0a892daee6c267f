"""What routing saves by each request's counterfactual, and what a randomised hold-out says of the claim. Pure.

A claim is the sum of counterfactuals less what was really taken. The evidence is in two comparisons with the hold-out,
whose requests really went to the full model:

- *arms*: what a request took on average in either arm. Lengths of answers and loads differ between the arms as they
  will, so this is the whole effect of routing.
- *calibration*: what the held-out requests took, over what their own counterfactuals say of them. Far more exact,
  and blind to answers that the full model would have made shorter or longer.

Active energy is compared with active energy, and money for the engine's time in use with the same; idle time is in
neither. Intervals are of 95 %.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import sqrt
from statistics import NormalDist
from typing import Any, Literal

from economizer.ledger.types import Amounts, Booking, RequestRow

EVERY = "*"  # all families together

Unit = Literal["J", "USD"]
Verdict = Literal["unchecked", "consistent", "outside"]

_LEAST = 30  # in either arm: with fewer, means are not yet normal
_Z = NormalDist().inv_cdf(0.975)
_MICRO = 1_000_000
_UNITS: tuple[Unit, ...] = ("J", "USD")


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, half_width: float) -> Estimate:
        """A figure in the middle of its interval."""
        return cls(value=value, low=value - half_width, high=value + half_width)

    @property
    def percent(self) -> str:
        """Like ``29 % (25 to 33)``."""
        return f"{self.value * 100:.0f} % ({self.low * 100:.0f} to {self.high * 100:.0f})"

    def agrees(self, other: Estimate) -> bool:
        """Whether the gap between two independent figures is within the sides of their intervals that face it."""
        below, above = sorted((self, other), key=lambda one: one.value)
        return above.value - below.value <= sqrt((below.high - below.value) ** 2 + (above.value - above.low) ** 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """An amount, and the share of the full model's that it is; the share is None where that may be nothing."""

    amount: Estimate
    share: Estimate | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What is known of one family's saving in one unit. Estimates are None where too few requests tell.

    ``requests`` were not held out and everything is known of them; ``skipped`` lack a measurement, a token count or a
    counterfactual. ``claimed`` is what those requests saved in total, one that the full model answered nothing;
    ``corrected`` is the same with every counterfactual times ``calibration``. ``routed`` and ``held_out`` count the
    arms, and ``claimed_of_routed`` is the part of the claim that the arms bear on: what was not eligible has no
    evidence. ``evidence`` is the saving per request by the arms, adjusted by the prompts' lengths.
    """

    family: str
    unit: Unit
    requests: int
    skipped: int
    routed: int
    held_out: int
    claimed: Saving | None
    claimed_of_routed: Saving | None
    evidence: Saving | None
    calibration: Estimate | None
    corrected: Saving | None
    verdict: Verdict

    @property
    def words(self) -> str:
        """The verdict in a sentence."""
        claim, evidence = self.claimed_of_routed or self.claimed, self.evidence
        said = "unknown" if claim is None or claim.share is None else claim.share.percent
        start = f"claimed saving {said}"
        if self.verdict == "unchecked" or evidence is None or evidence.share is None:
            return f"{start}; {self.held_out} held-out and {self.routed} routed requests cannot check it"
        start += f"; hold-out of {self.held_out} requests says {evidence.share.percent}"
        if self.verdict == "consistent":
            return f"{start}: consistent"
        words = f"{start}: the claim is outside the evidence"
        if self.calibration is not None:
            found = self.calibration
            words += f"; held-out requests took {found.value:.2f} times what was predicted"
            words += f" ({found.low:.2f} to {found.high:.2f})"
        return words


@dataclass(frozen=True, kw_only=True, slots=True)
class Savings:
    """What routing saved, by family, in joules and in dollars; EVERY family together comes first."""

    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, rows: Iterable[RequestRow]) -> Savings:
        """Reads the rows once, keeping sums only. What has not ended, or never reached an engine, is passed over."""
        groups: defaultdict[tuple[str, Unit], _Group] = defaultdict(_Group)
        for row in rows:
            if row.booking is None or not row.booking.variant:
                continue
            for unit in _UNITS:
                known = _Known.of(row.booking, row.usage, unit)
                for family in (EVERY, row.family):
                    groups[family, unit].add(row.booking, known)
        return cls(findings=tuple(groups[key].finding(*key) for key in sorted(groups)))

    def rows(self) -> list[dict[str, Any]]:
        """A line of a table for each finding; what is unknown is None."""
        return [
            {
                "family": one.family,
                "unit": one.unit,
                "requests": one.requests,
                "saved": None if one.claimed is None else one.claimed.amount.value,
                "claimed": _percent(one.claimed),
                "of routed": _percent(one.claimed_of_routed),
                "held out": one.held_out,
                "evidence": _percent(one.evidence),
                "corrected": _percent(one.corrected),
                "verdict": one.verdict,
            }
            for one in self.findings
        ]

    def to_json(self) -> list[dict[str, Any]]:
        """All of it, as JSON takes it."""
        return [{**asdict(one), "words": one.words} for one in self.findings]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """One request's amounts in microjoules or micro-dollars: what it took, and its counterfactual."""

    actual: int
    full: int
    low: int
    high: int
    prompt_tokens: int
    by_full: bool

    @classmethod
    def of(cls, booking: Booking, usage: Amounts, unit: Unit) -> _Known | None:
        full, prompt_tokens = booking.full, booking.prompt_tokens
        if full is None or prompt_tokens is None:
            return None
        if unit == "J":
            amounts = usage.energy_uj, full.amounts.energy_uj, full.low_uj, full.high_uj
        else:
            amounts = usage.cost_uusd, full.amounts.cost_uusd, full.low_uusd, full.high_uusd
        actual, would, low, high = amounts
        if actual is None or would is None or low is None or high is None:
            return None
        by_full = booking.variant == full.variant
        return cls(actual=actual, full=would, low=low, high=high, prompt_tokens=prompt_tokens, by_full=by_full)


@dataclass(slots=True)
class _Claim:
    """Sums over requests, in millionths of the unit. ``by_full`` is what those took that the full model answered."""

    requests: int = 0
    actual: int = 0
    by_full: int = 0
    full: int = 0
    low: int = 0
    high: int = 0

    def add(self, known: _Known) -> None:
        self.requests += 1
        self.actual += known.actual
        if known.by_full:
            self.by_full += known.actual
        else:
            self.full += known.full
            self.low += known.low
            self.high += known.high

    @property
    def stated(self) -> Estimate:
        """What calibration has to be by the counterfactuals' own intervals.

        Ends are summed: a model that is wrong about one request is as wrong about the next, so that its errors do not
        average out.
        """
        if self.full == 0:
            return Estimate(value=1.0, low=1.0, high=1.0)
        return Estimate(value=1.0, low=self.low / self.full, high=self.high / self.full)

    def saving(self, scale: Estimate) -> Saving | None:
        """What was saved if each counterfactual is to be multiplied by ``scale``."""
        if self.requests == 0:
            return None
        value, low, high = [self.by_full + self.full * by for by in (scale.value, scale.low, scale.high)]
        took, share = self.actual, None
        if low > 0:
            share = Estimate(value=1 - took / value, low=1 - took / low, high=1 - took / high)
        amount = [(would - took) / _MICRO for would in (value, low, high)]
        return Saving(amount=Estimate(value=amount[0], low=amount[1], high=amount[2]), share=share)


@dataclass(slots=True)
class _Pairs:
    """Means and sums of squares of (x, y), by Welford's recurrence."""

    count: int = 0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    yy: float = 0.0

    def add(self, x: float, y: float) -> None:
        self.count += 1
        from_x, from_y = x - self.x, y - self.y
        self.x += from_x / self.count
        self.y += from_y / self.count
        self.xx += from_x * (x - self.x)
        self.xy += from_x * (y - self.y)
        self.yy += from_y * (y - self.y)

    @property
    def slope(self) -> float:
        """Of y on x, by least squares; 0 where x is one value."""
        return self.xy / self.xx if self.xx > 0 else 0.0

    def variance_of_mean(self, slope: float) -> float:
        """Of the mean of y - slope * x."""
        squares = max(0.0, self.yy - 2 * slope * self.xy + slope**2 * self.xx)
        return squares / (self.count - 2) / self.count

    def ratio(self) -> Estimate | None:
        """The sum of y over the sum of x, its variance by the delta method."""
        if self.count < _LEAST or self.x <= 0:
            return None
        ratio = self.y / self.x
        return Estimate.around(ratio, _Z * sqrt(self.variance_of_mean(ratio)) / self.x)


@dataclass(slots=True)
class _Group:
    """Running sums of one family in one unit. Arms pair prompt tokens with what was taken, ``held_out`` pairs the
    counterfactual with it."""

    skipped: int = 0
    claim: _Claim = field(default_factory=_Claim)
    of_routed: _Claim = field(default_factory=_Claim)
    full_arm: _Pairs = field(default_factory=_Pairs)
    routed_arm: _Pairs = field(default_factory=_Pairs)
    held_out: _Pairs = field(default_factory=_Pairs)

    def add(self, booking: Booking, known: _Known | None) -> None:
        if known is None:
            self.skipped += 1
            return
        actual = known.actual / _MICRO
        if booking.arm == "full":
            # One whose engine failed, and that another variant answered, stays in the arm that it was drawn for.
            self.full_arm.add(known.prompt_tokens, actual)
            if known.by_full:
                self.held_out.add(known.full / _MICRO, actual)
            return
        self.claim.add(known)
        if booking.arm == "routed":
            self.of_routed.add(known)
            self.routed_arm.add(known.prompt_tokens, actual)

    def finding(self, family: str, unit: Unit) -> Finding:
        stated, calibration = self.of_routed.stated, self.held_out.ratio()
        claimed_of_routed = self.of_routed.saving(stated)
        evidence = _compared(self.full_arm, self.routed_arm)
        return Finding(
            family=family,
            unit=unit,
            requests=self.claim.requests,
            skipped=self.skipped,
            routed=self.routed_arm.count,
            held_out=self.full_arm.count,
            claimed=self.claim.saving(self.claim.stated),
            claimed_of_routed=claimed_of_routed,
            evidence=evidence,
            calibration=calibration,
            corrected=None if calibration is None else self.claim.saving(calibration),
            verdict=_verdict(claimed_of_routed, evidence, stated, calibration),
        )


def _compared(full: _Pairs, routed: _Pairs) -> Saving | None:
    """The saving per request: the difference of the arms' means, the variances of both taken apart as Welch does.

    Each mean is taken at the mean prompt of both arms, by a regression within the arm (Lin, "Agnostic notes on
    regression adjustments to experimental data", 2013): a random draw keeps that unbiased in large samples, whatever
    the true form. Prompts may serve for it because no arm can change them. Answers and batches, and with them the
    counterfactuals, do change with the arm: adjusting by those would hide just what the hold-out is there to show.
    """
    if min(full.count, routed.count) < _LEAST:
        return None
    count, apart = full.count + routed.count, full.x - routed.x
    mean_x = (full.count * full.x + routed.count * routed.x) / count
    squares_x = full.xx + routed.xx + full.count * routed.count / count * apart**2
    variance_of_mean_x = squares_x / (count - 1) / count
    full_mean = full.y + full.slope * (mean_x - full.x)
    routed_mean = routed.y + routed.slope * (mean_x - routed.x)

    def half(ratio: float) -> float:
        """Of the interval of routed_mean - ratio * full_mean."""
        variance = routed.variance_of_mean(routed.slope) + ratio**2 * full.variance_of_mean(full.slope)
        return _Z * sqrt(variance + (routed.slope - ratio * full.slope) ** 2 * variance_of_mean_x)

    amount = Estimate.around(full_mean - routed_mean, half(1.0))
    if full_mean <= 0:
        return Saving(amount=amount, share=None)
    ratio = routed_mean / full_mean
    return Saving(amount=amount, share=Estimate.around(1 - ratio, half(ratio) / full_mean))


def _verdict(
    claimed: Saving | None, evidence: Saving | None, stated: Estimate, calibration: Estimate | None
) -> Verdict:
    if claimed is None or claimed.share is None or evidence is None or evidence.share is None:
        return "unchecked"
    calibrated = calibration is None or calibration.agrees(stated)
    return "consistent" if calibrated and claimed.share.agrees(evidence.share) else "outside"


def _percent(saving: Saving | None) -> str | None:
    return None if saving is None or saving.share is None else saving.share.percent

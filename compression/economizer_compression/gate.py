"""The gate: may the router choose this variant by itself? Pure arithmetic on manifests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from economizer.variants.manifest import Manifest, Verdict
from economizer.variants.types import require

_FORBID = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Margins:
    """What a family allows a variant to lose, and what counts as better.

    ``quality_loss`` and ``accuracy_loss`` are the largest losses against the full model, as differences of quality and
    of task accuracy; the lower ends of the paired 95 % intervals are held against them (Miller, arXiv:2411.00640).
    ``better`` is the share by which a measure has to be better to count; less is noise. ``logprob_shift`` is how
    far, in the mean over tokens, the engine's log probabilities may lie from transformers' on the same checkpoint.
    """

    __pydantic_config__ = _FORBID

    quality_loss: float = 0.3
    accuracy_loss: float = 0.05
    better: float = 0.02
    logprob_shift: float = 0.05

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            require(0 <= value <= 1, name, value, "must be between 0 and 1")


def judge(manifest: Manifest, served: Sequence[Manifest], margins: Margins) -> Verdict:
    """Whether a variant is promoted beside those that are served, and every reason why not, or what speaks for it.

    It must lose no more than the margins allow, and must not be dominated: no served variant may be as good while
    this one is better in none of joules, dollars and latency. Joules compare where one method measured them; the full
    model's are 1 by any.
    """
    against = [other for other in served if other.variant != manifest.variant and quality(other) is not None]
    if manifest.full:
        return Verdict(promoted=True, reasons=("it is the full model",), margins=asdict(margins))
    failed = [*_quality_reasons(manifest, margins), *_engine_reasons(manifest, margins)]
    failed += _suite_reasons(manifest, against)
    if not failed:
        failed = [reason for other in against for reason in _dominated_by(manifest, other, margins)]
    reasons = tuple(failed) if failed else tuple(_merits(manifest, margins))
    return Verdict(promoted=not failed, reasons=reasons, margins=asdict(margins))


def _quality_reasons(manifest: Manifest, margins: Margins) -> Iterator[str]:
    evaluation = manifest.evaluation
    if evaluation is None:
        yield "it was not evaluated: run `economizer-compress evaluate` first"
        return
    bounds = [("quality", evaluation.quality.low - 1, margins.quality_loss)]
    if evaluation.accuracy_difference is not None:
        bounds.append(("accuracy", evaluation.accuracy_difference.low, margins.accuracy_loss))
    for what, low, loss in bounds:
        if low < -loss:
            yield (
                f"{what} against the full model may be {low:+.3f} (lower 95 % bound) and {-loss:+.3f} is allowed: "
                f"{-loss - low:.3f} too low"
            )


def _engine_reasons(manifest: Manifest, margins: Margins) -> Iterator[str]:
    engine = manifest.engine
    if engine is None or not engine.against_full:
        yield "it was not measured beside the full model on an engine: run `economizer-compress evaluate` with one"
        return
    shift = engine.logprob_shift
    if shift is not None and abs(shift) > margins.logprob_shift:
        yield (
            f"the engine computes something else than transformers: log probabilities lie {shift:+.3f} apart in the "
            f"mean and {margins.logprob_shift:g} is allowed"
        )


def _suite_reasons(manifest: Manifest, against: Sequence[Manifest]) -> Iterator[str]:
    """Scores compare where they are of one suite on the same texts, against the same full model."""
    ours = manifest.evaluation
    for other in against:
        theirs = other.evaluation
        if ours is None or theirs is None:
            continue
        if (ours.suite_sha256, ours.reference_sha256) != (theirs.suite_sha256, theirs.reference_sha256):
            yield f"it was scored on other text or against another model than {other.variant}: evaluate both alike"


def quality(manifest: Manifest) -> float | None:
    """The quality of a variant, 1 for the full model; None where it was not evaluated."""
    if manifest.full:
        return 1.0
    return manifest.evaluation.quality.value if manifest.evaluation is not None else None


def _dominated_by(manifest: Manifest, other: Manifest, margins: Margins) -> Iterator[str]:
    ours, theirs = quality(manifest), quality(other)
    if ours is None or theirs is None or theirs < ours:
        return
    mine, its = costs(manifest), costs(other)
    alike = other.full or _energy_method(manifest) == _energy_method(other)
    names = {name for name in mine.keys() & its.keys() if alike or not name.startswith("joules")}
    shares = {name: mine[name] / its[name] for name in names}
    note = "" if alike else f" (joules were not compared: {other.variant}'s were not measured alike)"
    if shares and all(share > 1 - margins.better for share in shares.values()):
        best = min(shares, key=lambda name: (shares[name], name))
        yield (
            f"{other.variant} is as good (quality {theirs:.3f}, this one {ours:.3f}) and this one is nowhere "
            f"{margins.better:.0%} better: best is {best}, {shares[best]:.2f} of {other.variant}'s{note}"
        )


def _energy_method(manifest: Manifest) -> str | None:
    return manifest.engine.energy_method if manifest.engine is not None else None


def costs(manifest: Manifest) -> Mapping[str, float]:
    """What a variant takes as shares of what the full model takes; below 1 is less. Empty when not measured."""
    if manifest.engine is None:
        return {}
    ratios = {key: interval.value for key, interval in manifest.engine.against_full.items()}
    batch = max(manifest.engine.decode_tokens_per_s)
    full = dict.fromkeys(("prefill", "decode@1", f"decode@{batch}", "prefill_j", f"decode_j@{batch}"), 1.0)
    ratios = full if manifest.full else ratios
    found = {
        "seconds per prompt token": _inverse(ratios.get("prefill")),
        "seconds per output token alone": _inverse(ratios.get("decode@1")),
        "machine time (dollars) per output token": _inverse(ratios.get(f"decode@{batch}")),
        "joules per prompt token": ratios.get("prefill_j"),
        "joules per output token": ratios.get(f"decode_j@{batch}"),
    }
    return {name: share for name, share in found.items() if share is not None}


def _inverse(ratio: float | None) -> float | None:
    return 1 / ratio if ratio else None


def _merits(manifest: Manifest, margins: Margins) -> Iterator[str]:
    better = {name: share for name, share in costs(manifest).items() if share <= 1 - margins.better}
    yield from (f"{name}: {share:.2f} of the full model's" for name, share in sorted(better.items()))
    if not better:
        yield "no served variant of this quality is better"

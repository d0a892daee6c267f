"""Which quality was delivered, against the floors that were asked for.

An answer is as good as the variant that it came from. How good a variant is on the replay's own prompts is scored by
the compression package, in its environment: the full model answers them, and a variant's quality is the share of those
answers' tokens at which it finds the same token most probable. Where that environment is not there, a variant is as
good as its published card says.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from load.types import Outcome, Planned

SCORER = Path(__file__).resolve().parents[1] / "score_variants.py"
_ANSWER_TOKENS = 96


class Quality(Struct, frozen=True, kw_only=True):
    """A variant's quality relative to the full model's, with the ends of its 95 % interval where they are known."""

    value: float
    low: float | None = None
    high: float | None = None


class Qualities(Struct, frozen=True, kw_only=True):
    """The variants' qualities by name, and whether they are of the replay's prompts or as published."""

    source: Literal["replayed prompts", "published"]
    of: Mapping[str, Quality]


class Delivered(Struct, frozen=True, kw_only=True):
    """What a run's answers were. Shares are of the whole answers that had a floor; None where none had.

    ``mean`` is the answers' mean quality, of those whose variant's is known. ``kept`` is how many were as good as
    asked; ``kept_for_sure`` counts those alone whose variant's interval lies above the floor. ``unknown`` are answers
    of variants whose quality is not known, which keep no floor.
    """

    answers: int
    mean: float | None
    with_floor: int
    kept: float | None
    kept_for_sure: float | None
    unknown: int


def delivered(outcomes: Sequence[Outcome], qualities: Qualities) -> Delivered:
    """What was delivered in answers that say whose they are."""
    answers = [(one, qualities.of.get(one.variant or "")) for one in outcomes if one.answered]
    known = [quality.value for _, quality in answers if quality is not None]
    floors = [(quality, one.terms.quality_min) for one, quality in answers if one.terms.quality_min]
    count = len(floors)

    def share(kept: Sequence[bool]) -> float | None:
        return sum(kept) / count if count else None

    return Delivered(
        answers=len(answers),
        mean=sum(known) / len(known) if known else None,
        with_floor=count,
        kept=share([quality is not None and quality.value >= floor for quality, floor in floors]),
        kept_for_sure=share(
            [
                quality is not None and (quality.value if quality.low is None else quality.low) >= floor
                for quality, floor in floors
            ]
        ),
        unknown=len(answers) - len(known),
    )


def scored(
    plan: Sequence[Planned], folders: Mapping[str, Path], *, full: str, python: Path, items: int
) -> dict[str, Quality]:
    """The variants in ``folders`` on ``items`` prompts of the plan, evenly over it; the full model is 1.

    Prompts and answers lie in a temporary folder while it works. Raises CalledProcessError where scoring fails.
    """
    others = {name: str(folder) for name, folder in folders.items() if name != full}
    qualities = {full: Quality(value=1.0, low=1.0, high=1.0)}
    if not others:
        return qualities
    with tempfile.TemporaryDirectory(prefix="eco-prompts-") as name:
        work = Path(name)
        with (work / "prompts.jsonl").open("w", encoding="utf-8") as file:
            for request in plan:
                messages = [{"role": each.role, "content": each.content} for each in request.messages]
                file.write(json.dumps({"messages": messages}) + "\n")
        slices = [{"slice": "replayed", "answers": "prompts.jsonl", "field": "messages"}]
        slices[0] |= {"items": min(items, len(plan)), "answer_tokens": _ANSWER_TOKENS}  # type: ignore[dict-item]
        (work / "suite.yaml").write_text(json.dumps({"name": "replayed", "calibration": [], "evaluation": slices}))
        ask = {"reference": str(folders[full]), "folders": others, "work": name}
        done = subprocess.run(
            [str(python), str(SCORER), json.dumps(ask)], stdout=subprocess.PIPE, text=True, check=True
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return qualities | {variant: Quality(**quality) for variant, quality in found.items()}

"""The hold-out: a random share of what could be routed really goes to the full model, so that savings can be checked.

Who is held out depends on the request's id and on nothing else, so that the two arms differ in nothing but the variant
that answers. An id that is held out at one share is held out at every larger one.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from msgspec.structs import replace

from economizer.router.types import Decision, RequestProfile
from economizer.variants.types import require

Arm = Literal["full", "routed"]

_FORBID = {"extra": "forbid"}  # read by pydantic in config.py: unknown keys are refused
_SHARE_MOST = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldOut:
    """The share of eligible requests that go to the full model; 0 is no hold-out. Another ``seed`` draws others."""

    __pydantic_config__ = _FORBID

    share: float = 0.0
    seed: str = ""

    def __post_init__(self) -> None:
        require(0 <= self.share <= _SHARE_MOST, "share", self.share, f"must be between 0 and {_SHARE_MOST}")


def arm(request_id: str, holdout: HoldOut) -> Arm:
    """The arm of a request, always the same for one id and seed: ``full`` with a probability of ``share``."""
    digest = sha256(f"{holdout.seed}\0{request_id}".encode()).digest()
    return "full" if int.from_bytes(digest[:8]) < holdout.share * 2**64 else "routed"


def eligible(decision: Decision, profile: RequestProfile, full: str) -> bool:
    """Whether the request may be held out: another variant was chosen, and the full one would do it as well.

    The full one must meet every term, and be awake with a free place in its batch; what was pinned, or misses a term as
    it is, is left alone. Nothing here depends on the arm: both arms are drawn from the same requests.
    """
    if profile.pinned is not None or decision.variant in (None, full) or decision.missed:
        return False
    return any(
        candidate.variant == full
        and not candidate.refusals
        and not candidate.prediction.asleep
        and candidate.prediction.room > 0
        for candidate in decision.candidates
    )


def held_out(decision: Decision, full: str) -> Decision:
    """The same decision with the full variant chosen, the others behind it."""
    others = [name for name in decision.ranking if name != full]
    return replace(decision, variant=full, ranking=(full, *others))

"""What requests asked for, and why they did not get it, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from load.types import Outcome, Terms

NO_TERMS = "no terms"
NO_ANSWER = "no whole answer"


def sort_of(terms: Terms) -> str:
    """How a report names requests with these terms."""
    limits = (("TTFT", terms.ttft_s_max), ("TPOT", terms.tpot_s_max), ("end to end", terms.e2e_s_max))
    words = [f"{name} ≤ {limit:g} s" for name, limit in limits if limit is not None]
    if terms.quality_min is not None:
        words.append(f"quality ≥ {terms.quality_min:g}")
    if terms.policy is not None:
        words.append(f"policy {terms.policy}")
    return ", ".join(words) or NO_TERMS


def misses(one: Outcome) -> Iterator[str]:
    """Why a request did not meet its terms: each of them that it missed, or that nobody can tell of."""
    if not one.answered:
        yield NO_ANSWER
        return
    for name, value, limit in (
        ("TTFT", one.ttft_s, one.terms.ttft_s_max),
        ("TPOT", one.tpot_s if one.output_tokens != 1 else 0.0, one.terms.tpot_s_max),
        ("end to end", one.e2e_s, one.terms.e2e_s_max),
    ):
        if limit is not None and (value is None or value > limit):
            yield f"{name} not known" if value is None else f"{name} over its limit"
    if one.terms.quality_min is not None and (one.quality is None or one.quality < one.terms.quality_min):
        yield "quality not known" if one.quality is None else "quality below its floor"

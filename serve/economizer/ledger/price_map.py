"""What a token has cost of late, as LiteLLM's map of prices has it: by measurement, not by declaration. Pure.

A variant's cost is laid on the tokens that it computed in the ratio of their energies: a prompt token that was not in
the cache weighs ``prefill``, an output token ``decode``, a cached one nothing, since nothing is computed for it. So
tokens times prices are the booked cost. A family's prices are the means of its variants', weighted by their tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from economizer.energy.step_model import Coefficients
from economizer.ledger.bill import MICRO, NOTHING, Spent
from economizer.ledger.types import AccountRow
from economizer.variants.types import Variant

Basis = Literal["usage", "allocation"]

# The prompt that weights are for: the median one has 1,020 tokens in Azure's conversation trace of 2023
# (AzureLLMInferenceTrace_conv, published with Patel and others, "Splitwise", 2024).
_PROMPT_TOKENS = 1000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceMap:
    """``entries`` by model name, in LiteLLM's shape and nothing else; ``left_out`` says why a name is not there."""

    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Priced:
    """A variant's prices in dollars per token, and the tokens that they were paid for."""

    variant: Variant
    input_usd: float
    output_usd: float
    input_tokens: int
    output_tokens: int


def price_map(
    accounts: Iterable[AccountRow],
    variants: Iterable[Variant],
    weights: Mapping[str, tuple[float, float]],
    basis: Basis = "allocation",
) -> PriceMap:
    """The prices of the time that the accounts are of.

    ``weights`` has, by variant id, the energy of a prefilled and of a decoded token; the unit does not matter. The
    basis ``allocation`` counts what engines cost beyond requests, too. A model that has no known cost, no tokens or no
    weights is left out.
    """
    spent: defaultdict[tuple[str, str], Spent] = defaultdict(lambda: NOTHING)
    for row in accounts:
        spent[row.account.family, row.account.variant] += Spent.of_account(row)
    entries: dict[str, Mapping[str, Any]] = {}
    left_out: dict[str, str] = {}
    families: defaultdict[str, list[_Priced]] = defaultdict(list)
    for variant in sorted(variants, key=lambda variant: variant.id):
        found = _priced(variant, spent[variant.family, variant.name], weights.get(variant.id), basis)
        if isinstance(found, str):
            left_out[variant.id] = found
        else:
            entries[variant.id] = _entry([found])
            families[variant.family].append(found)
    for family, priced in families.items():
        entries[family] = _entry(priced)
    return PriceMap(entries=dict(sorted(entries.items())), left_out=left_out)


def token_weights(known: Coefficients, batch: float) -> tuple[float, float]:
    """The energy of a prefilled and of a decoded token in microjoules, by a step model's coefficients.

    One price is for prompts of any length, so both are of one of 1,000 tokens: a prefilled token attends to half of
    them on average, a decoded one to all, and is one of ``batch`` in its step. What a step costs a prefilled token is
    left out, because a chunk of a prompt shares it among thousands; seconds are the engine's own.
    """
    prefill = known.prefill_uj + known.prefill_context_uj * _PROMPT_TOKENS / 2
    decode = known.decode_uj + known.decode_context_uj * _PROMPT_TOKENS + known.step_uj / max(1.0, batch)
    return prefill, decode


def _priced(variant: Variant, spent: Spent, weights: tuple[float, float] | None, basis: Basis) -> _Priced | str:
    """The variant's prices, or why it has none."""
    inputs, outputs = max(0, spent.prompt_tokens - spent.cached_tokens), spent.output_tokens
    if not inputs + outputs:
        return "no tokens were computed"
    cost = (spent.usage if basis == "usage" else spent.with_idle).cost_uusd
    if cost is None:
        return "no cost is known"
    prefill, decode = weights or (0.0, 0.0)
    whole = inputs * prefill + outputs * decode
    if whole <= 0:
        return "nothing is known of how the energy of its prompt and output tokens compare"
    usd = cost / MICRO
    return _Priced(
        variant=variant,
        input_usd=usd * (prefill / whole),
        output_usd=usd * (decode / whole),
        input_tokens=inputs,
        output_tokens=outputs,
    )


def _entry(priced: Sequence[_Priced]) -> dict[str, Any]:
    """LiteLLM's entry for one model that some variants serve."""
    context = max(one.variant.context_tokens_max for one in priced)
    features = frozenset.union(*(one.variant.features for one in priced))
    return {
        "input_cost_per_token": _mean([(one.input_usd, one.input_tokens) for one in priced]),
        "output_cost_per_token": _mean([(one.output_usd, one.output_tokens) for one in priced]),
        "cache_read_input_token_cost": 0.0,
        "litellm_provider": "openai",
        "mode": "chat"
        if features & {"chat", "responses"}
        else "embedding"
        if "embeddings" in features
        else "completion",
        "max_input_tokens": context,
        "max_output_tokens": context,
        "max_tokens": context,
        "supports_function_calling": "tools" in features,
        "supports_response_schema": "json" in features,
        "supports_vision": "vision" in features,
    }


def _mean(weighted: Sequence[tuple[float, int]]) -> float:
    """Weighted by tokens; plain where there were none, since a price is asked for all the same."""
    tokens = sum(count for _, count in weighted)
    if tokens == 0:
        return sum(price for price, _ in weighted) / len(weighted)
    return sum(price * count for price, count in weighted) / tokens

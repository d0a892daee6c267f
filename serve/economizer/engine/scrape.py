"""How loaded an engine is, read from its Prometheus page."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean

from prometheus_client.parser import text_string_to_metric_families

# What engines call the same thing; the first name that a page holds counts.
_RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing")
_WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred")
_KV_USED = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
# What they have done since they were started.
_STEPS = ("vllm:iteration_tokens_total_count",)
_PROMPT_TOKENS = ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total", "llamacpp:prompt_tokens_total")
_CACHED_TOKENS = ("vllm:prefix_cache_hits_total", "sglang:cached_tokens_total")
_DECODE_TOKENS = ("vllm:generation_tokens_total", "sglang:generation_tokens_total", "llamacpp:tokens_predicted_total")
_WANTED = frozenset((*_RUNNING, *_WAITING, *_KV_USED, *_STEPS, *_PROMPT_TOKENS, *_CACHED_TOKENS, *_DECODE_TOKENS))


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLoad:
    """What an engine says of itself. ``kv_used`` is in [0, 1]; None is unknown.

    ``steps`` (forward passes), ``prefill_tokens`` (those that were computed, not found in the prefix cache) and
    ``decode_tokens`` count from the engine's start.
    """

    running: int | None = None
    waiting: int | None = None
    kv_used: float | None = None
    steps: int | None = None
    prefill_tokens: int | None = None
    decode_tokens: int | None = None

    @property
    def idle(self) -> bool:
        """Nothing runs or waits; an engine that does not tell is not idle."""
        return self.running == 0 and self.waiting == 0


def read_metrics(text: str) -> EngineLoad:
    """The load on a Prometheus text page: counts summed and shares averaged over an engine's data-parallel cores."""
    values = _values(text)
    running, waiting = _first(values, _RUNNING), _first(values, _WAITING)
    kv_used = _first(values, _KV_USED)
    prompt, cached = _total(values, _PROMPT_TOKENS), _total(values, _CACHED_TOKENS)
    return EngineLoad(
        running=int(sum(running)) if running else None,
        waiting=int(sum(waiting)) if waiting else None,
        kv_used=fmean(kv_used) if kv_used else None,
        steps=_total(values, _STEPS),
        prefill_tokens=None if prompt is None else max(0, prompt - (cached or 0)),
        decode_tokens=_total(values, _DECODE_TOKENS),
    )


def _values(text: str) -> dict[str, list[float]]:
    # A page has thousands of histogram lines; parsing only the wanted ones costs a fiftieth.
    wanted = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in _WANTED]
    values: dict[str, list[float]] = defaultdict(list)
    for family in text_string_to_metric_families("\n".join(wanted) + "\n"):
        for sample in family.samples:
            values[sample.name].append(sample.value)
    return values


def _total(values: dict[str, list[float]], names: tuple[str, ...]) -> int | None:
    found = _first(values, names)
    return int(sum(found)) if found else None


def _first(values: dict[str, list[float]], names: tuple[str, ...]) -> list[float]:
    return next((values[name] for name in names if name in values), [])

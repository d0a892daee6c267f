"""How long an answer will be, from what this caller and this family have used. Never from ``max_tokens``. Pure."""

from __future__ import annotations

from collections import OrderedDict

_DEFAULT_TOKENS = 128.0
_WEIGHT = 0.1  # of the newest answer, once enough are known
_CALLERS_MAX = 10_000
_TRUSTED = 5  # a caller's own mean counts in full after so many answers


class _Mean:
    """A mean that starts exact and becomes exponential."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0

    def add(self, tokens: float) -> None:
        self.count += 1
        self.value += max(_WEIGHT, 1.0 / self.count) * (tokens - self.value)


class OutputLengths:
    """Mean answer length by (caller, family), falling back on the family's. Keeps the latest callers only."""

    def __init__(self) -> None:
        self._families: dict[str, _Mean] = {}
        self._callers: OrderedDict[tuple[str, str], _Mean] = OrderedDict()

    def observe(self, caller: str, family: str, tokens: int) -> None:
        """An answer to this caller took so many tokens."""
        self._families.setdefault(family, _Mean()).add(tokens)
        key = (caller, family)
        if key not in self._callers:
            self._callers[key] = _Mean()
            if len(self._callers) > _CALLERS_MAX:
                self._callers.popitem(last=False)
        self._callers[key].add(tokens)
        self._callers.move_to_end(key)

    def predict(self, caller: str, family: str, cap: int | None) -> float:
        """The expected answer length in tokens; the caller's cap bounds it, but never stands in for it."""
        whole = self._families.get(family)
        expected = whole.value if whole is not None else _DEFAULT_TOKENS
        own = self._callers.get((caller, family))
        if own is not None:
            trust = min(1.0, own.count / _TRUSTED)
            expected += trust * (own.value - expected)
        return expected if cap is None else min(expected, float(cap))

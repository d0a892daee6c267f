"""What went into each stage, what came out, and why the rest did not. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from economizer.variants.types import require


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of a preparation: examples and their text's bytes in UTF-8, and by which rule examples were dropped."""

    name: str
    examples_in: int
    bytes_in: int
    examples_out: int
    bytes_out: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    repeated: int = 0

    def __post_init__(self) -> None:
        out = self.examples_in - sum(self.dropped.values()) + self.repeated
        rule = f"must be {out}: those that went in, less the dropped ones, and the repeated ones"
        require(self.examples_out == out, "examples_out", self.examples_out, rule)


class Account:
    """Stages in order: what leaves one enters the next. The first is reading."""

    def __init__(self, *, examples: int, size_bytes: int) -> None:
        self.stages = [
            Stage(name="read", examples_in=examples, bytes_in=size_bytes, examples_out=examples, bytes_out=size_bytes)
        ]

    def add(self, name: str, *, bytes_out: int, dropped: Mapping[str, int] | None = None, repeated: int = 0) -> None:
        """Books a stage: which examples it dropped by which rule, and how many it added."""
        last = self.stages[-1]
        gone = Counter(dropped or {})
        self.stages.append(
            Stage(
                name=name,
                examples_in=last.examples_out,
                bytes_in=last.bytes_out,
                examples_out=last.examples_out - gone.total() + repeated,
                bytes_out=bytes_out,
                dropped=dict(sorted(gone.items())),
                repeated=repeated,
            )
        )

    def losses(self) -> str:
        """Which rule dropped how many, in a line."""
        told = [f"{rule} {count}" for stage in self.stages for rule, count in stage.dropped.items()]
        return f"of {self.stages[0].examples_out} examples were dropped by {', '.join(told) or 'no rule'}"


class Tally:
    """Counts examples that went through the stages ``names`` one by one, each as far as it came."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._examples = 0
        self._sizes = [0] * (len(names) + 1)
        self._dropped: dict[str, Counter[str]] = {name: Counter() for name in names}

    def add(self, sizes: Iterable[int], stage: str, rule: str) -> None:
        """One example: its bytes as read and after each stage that it left, and what dropped it, if anything."""
        self._examples += 1
        for index, size in enumerate(sizes):
            self._sizes[index] += size
        if rule:
            self._dropped[stage][rule] += 1

    def account(self) -> Account:
        """The account of reading and of these stages."""
        account = Account(examples=self._examples, size_bytes=self._sizes[0])
        for index, name in enumerate(self._names):
            account.add(name, bytes_out=self._sizes[index + 1], dropped=self._dropped[name])
        return account

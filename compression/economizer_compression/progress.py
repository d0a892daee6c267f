"""How far a job is: a bar with the time left on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY_S = 10.0


def say(line: str) -> None:
    """One line of news."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def steps(total: int, what: str) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each of ``total`` steps."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)
        return
    yield _lines(total, what)


def _lines(total: int, what: str) -> Callable[[], None]:
    started_s = said_s = time.monotonic()
    done = 0

    def advance() -> None:
        nonlocal done, said_s
        done += 1
        now_s = time.monotonic()
        if now_s - said_s >= _EVERY_S:
            said_s = now_s
            left_s = (now_s - started_s) / done * (total - done)
            say(f"{what}: {done} of {total}, about {left_s:.0f} s left")

    return advance

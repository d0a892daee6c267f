"""What a command line does with the way that a command ends: a line on stderr, and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping


def exit_code(
    program: str, run: Callable[[], int | None], *, ours: tuple[type[Exception], ...], libraries: Mapping[str, str]
) -> int:
    """Runs a command under the libraries' settings, unless the user has others.

    Returns what it returns (0 for nothing), the ``exit_code`` of an error of ``ours`` (or 1), 1 after one of the
    libraries' or the system's, 130 interrupted.
    """
    for name, value in libraries.items():
        os.environ.setdefault(name, value)
    try:
        return run() or 0
    except ours as error:
        print(f"{program}: {error}", file=sys.stderr)
        return int(getattr(error, "exit_code", 1))
    except (OSError, ValueError) as error:  # of the libraries and the system
        if os.environ.get("ECONOMIZER_TRACEBACK"):
            raise
        first = [*str(error).strip().splitlines(), "no message"][0]
        told = f"{type(error).__name__}: {first} (ECONOMIZER_TRACEBACK=1 shows where)"
        print(f"{program}: {told}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted; the same command goes on where it can", file=sys.stderr)
        return 130

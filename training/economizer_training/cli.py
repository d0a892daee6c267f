"""The command line: ``economizer-train distill``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from economizer_compression.errors import CompressionError

from economizer_training.errors import TrainingError

# The libraries' own settings, unless the user's: no network, no remarks between the lines of progress, no reports home.
_LIBRARIES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 well, 1 not, 2 for a wrong command line."""
    options = _parser().parse_args(arguments)
    for name, value in _LIBRARIES.items():
        os.environ.setdefault(name, value)
    try:
        options.run(options)
    except (TrainingError, CompressionError) as error:
        print(f"economizer-train: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:  # of the libraries and the system; ours are TrainingErrors
        if os.environ.get("ECONOMIZER_TRACEBACK"):
            raise
        first = [*str(error).strip().splitlines(), "no message"][0]
        told = f"{type(error).__name__}: {first} (ECONOMIZER_TRACEBACK=1 shows where)"
        print(f"economizer-train: {told}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("economizer-train: interrupted; the same command goes on where it can", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="economizer-train", description="Prepares text and distils variants.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], object], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    distill = command("distill", _distill, "distil a student from its teacher; the same command goes on after a stop")
    distill.add_argument("config", type=Path, help="one of training/runs, or your own YAML file")
    return parser


# What the commands import is slow to import (torch, Ray), so that each imports its own.


def _distill(options: argparse.Namespace) -> None:
    from economizer_training.distill import distill
    from economizer_training.distillation import load_distillation

    distill(load_distillation(options.config))


if __name__ == "__main__":
    sys.exit(main())

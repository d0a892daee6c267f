"""The command line: ``economizer-train prepare | answers | distill | classify``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from economizer_compression.commands import exit_code
from economizer_compression.errors import CompressionError

from economizer_training.errors import TrainingError

# The libraries' own settings, unless the user's: no network, and no remarks between the lines of progress.
_LIBRARIES = {
    "HF_HUB_OFFLINE": "1",
    # Without a dashboard Ray Train says this every second; bars and torch's remarks say nothing between workers' lines.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "Failed to query Ray Train Controller|Loading weights|get_main_device|UserWarning",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # which prints workers' lines twice
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 well, 1 not, 2 for a wrong command line, 130 interrupted."""
    options = _parser().parse_args(arguments)
    return exit_code(
        "economizer-train", lambda: options.run(options), ours=(TrainingError, CompressionError), libraries=_LIBRARIES
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="economizer-train", description="Makes smaller models, measured.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], object], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("config", type=Path, help="a YAML file")
        return added

    prepare = command("prepare", _prepare, "clean, deduplicate, tokenise and pack text, with a data card")
    prepare.add_argument("--out", type=Path, required=True, help="the folder to make")
    data = os.environ.get("ECONOMIZER_DATA")
    prepare.add_argument("--data", type=Path, default=data, help="the folder that relative files are in")
    command("answers", _answers, "have the teacher answer the text, for a run that reads its answers: distill's file")
    command("distill", _distill, "distil a student from its teacher; the same command goes on after a stop")
    classify = command("classify", _classify, "train a text classifier the plain way and with our measures, compared")
    classify.add_argument("--data", type=Path, default=data, help="the folder that relative files are in")
    return parser


# What the commands import is slow to import (ray, torch, transformers), so that each imports its own.


def _prepare(options: argparse.Namespace) -> None:
    from economizer_compression.progress import say

    from economizer_training.data.config import Preparation
    from economizer_training.data.prepare import prepare
    from economizer_training.settings import load_settings

    prepare(load_settings(options.config, Preparation), out=options.out, data=options.data, say=say)


def _answers(options: argparse.Namespace) -> None:
    from economizer_compression.progress import say

    from economizer_training.distill import answer
    from economizer_training.distillation import Distillation
    from economizer_training.settings import load_settings

    answer(load_settings(options.config, Distillation), say=say)


def _distill(options: argparse.Namespace) -> None:
    from economizer_compression.progress import say

    from economizer_training.distill import distill
    from economizer_training.distillation import Distillation
    from economizer_training.settings import load_settings

    distill(load_settings(options.config, Distillation), say=say)


def _classify(options: argparse.Namespace) -> None:
    from economizer_compression.progress import say

    from economizer_training.classify.compare import classify
    from economizer_training.classify.report import markdown
    from economizer_training.classify.settings import load_classification

    print(markdown(classify(load_classification(options.config), data=options.data, say=say)), end="")


if __name__ == "__main__":
    sys.exit(main())

"""Scores variants against the full model on prompts; runs in the environment of the compression package.

    score_variants.py '{"reference": FOLDER, "folders": {VARIANT: FOLDER}, "work": FOLDER}'

``work`` has ``suite.yaml`` and the files that it names. The last line of output is JSON: quality by variant, with the
ends of its interval.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from economizer_compression.evaluate import evaluate_folder
from economizer_compression.loading import load_model
from economizer_compression.suite import load_suite


def main() -> None:
    ask = json.loads(sys.argv[1])
    work = Path(ask["work"])
    suite = load_suite(str(work / "suite.yaml"))
    found = {}
    for variant, folder in ask["folders"].items():
        quality = evaluate_folder(
            Path(folder), Path(ask["reference"]), suite, data=work, work=work / "kept", seed=0, load=load_model
        ).quality
        found[variant] = {"value": quality.value, "low": quality.low, "high": quality.high}
    print(json.dumps(found))


if __name__ == "__main__":
    main()

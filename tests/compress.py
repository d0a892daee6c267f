"""``economizer-compress`` as a user runs it, in its own environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def compress(*words: object, code: int = 0) -> str:
    """One ``economizer-compress`` command in its own environment; returns what it wrote."""
    done = subprocess.run(
        [ROOT / ".venvs" / "compression" / "bin" / "economizer-compress", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr

"""Model folders that are either whole or absent."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yields an empty sibling of `out` to write to, which takes the place of `out` when the block succeeds.

    The rename is the last step, so a killed run leaves no half-written model where an engine looks for one.
    Raises FileExistsError when `out` already holds something: a served model is never replaced in place.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already; remove it first to make it anew")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(out)

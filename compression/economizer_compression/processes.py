"""What memory a process and all below it use, as Linux tells it in ``/proc``."""

from collections.abc import Iterator
from pathlib import Path

from economizer_compression.tether import descendants

_PROC = Path("/proc")


def memory_bytes(root: int) -> int:
    """The tree's proportional set size: a page that n processes share counts 1/n in each.

    The resident set where the kernel does not tell.
    """
    return sum(_process_bytes(pid) for pid in (root, *descendants(root)))


def _process_bytes(pid: int) -> int:
    for file, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        for line in _lines(_PROC / str(pid) / file):
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return 0


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text().splitlines()
    except OSError:
        return

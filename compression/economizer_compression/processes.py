"""What a process and all below it used, as Linux tells it in ``/proc``."""

import os
from collections.abc import Iterator
from pathlib import Path

from economizer_compression.tether import descendants

_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(root: int) -> float:
    """User and system CPU time of the tree so far, with that of children that ended and were waited for.

    The kernel sums what the scheduler counted in nanoseconds and shows it in ticks of 10 ms.
    """
    stats = (_stat(pid) for pid in (root, *descendants(root)))
    return sum(int(ticks) for fields in stats if fields for ticks in fields[11:15]) * _TICK_S


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


def _stat(pid: int) -> list[str]:
    """The fields after the name (state, parent, ...); none where the process is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []

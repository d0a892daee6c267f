"""What a process and all below it used, as Linux tells it in ``/proc``."""

import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """``root`` and every process below it that is there, from one reading of ``/proc``."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:  # grows while it is read
        found += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """User and system CPU time of the tree so far, with that of children that ended and were waited for.

    The kernel sums what the scheduler counted in nanoseconds and shows it in ticks of 10 ms.
    """
    stats = (_stat(pid) for pid in tree(root))
    return sum(int(ticks) for fields in stats if fields for ticks in fields[11:15]) * _TICK_S


def memory_bytes(root: int) -> int:
    """The tree's proportional set size (a page that n processes share counts 1/n in each); resident where that is hid."""
    return sum(_process_bytes(pid) for pid in tree(root))


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
    """The fields after the name (state, parent, ...), or nothing where the process is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []

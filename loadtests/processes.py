"""What the processes below one process have used: CPU seconds and resident memory, from /proc."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from economizer.engine.guard import descendants

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_UTIME = 11  # of the fields after the command's name: utime, stime, cutime, cstime

Group = Callable[[str], str]


class ProcessTree:
    """Every process below ``root``, by the group that ``group`` puts its command line in."""

    def __init__(self, root: int, group: Group) -> None:
        self._root = root
        self._group = group

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds by group since each process began, its reaped children's among them."""
        used: dict[str, float] = {}
        for pid in descendants(self._root):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                group = self._group(command_line(pid))
            except OSError:
                continue  # it ended since it was listed
            ticks = sum(int(field) for field in fields[_UTIME : _UTIME + 4])
            used[group] = used.get(group, 0.0) + ticks / _TICKS_PER_S
        return used

    def rss_mb(self, group: str) -> float:
        """Resident memory of a group's processes in MB (10^6 bytes)."""
        return sum(_rss_bytes(pid) for pid in self.pids(group)) / 1e6

    def pids(self, group: str) -> list[int]:
        """The processes of a group."""
        return [pid for pid in descendants(self._root) if self._group(command_line(pid)) == group]


def command_line(pid: int) -> str:
    """A process's words with spaces between; raises OSError where it is gone."""
    return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def machine() -> str:
    """This machine in a line."""
    cpu_info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in cpu_info if line.startswith("model name")), "unknown CPU")
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    uname = os.uname()
    return (
        f"{model}, {os.cpu_count()} cores, {memory_kib / 2**20:.0f} GiB, {uname.sysname} {uname.release} "
        f"{uname.machine}, load {load}"
    )

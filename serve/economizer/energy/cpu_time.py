"""How much CPU time an engine's processes have used, read from /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from economizer.energy.meter import CounterFailed

PROC = Path("/proc")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")  # /proc counts CPU time in these, and rounds down


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stat:
    """A line of /proc/PID/stat. ``own`` is its threads' time, ``waited`` that of all it waited for, in ticks."""

    parent: int
    own: int
    waited: int


class CpuTime:
    """CPU time of all processes below ``root`` (by default the calling one), without its own, ever growing.

    It is the sum of every descendant's own time and waited-for time, plus the root's waited-for time. Nothing counts
    twice: the kernel adds a process's times to its parent's waited-for time at the moment it is waited for, which is
    also when it leaves /proc; until then, as a zombie too, it has them itself.
    """

    def __init__(self, root: int | None = None, proc: Path = PROC) -> None:
        self._root = os.getpid() if root is None else root
        self._proc = str(proc)
        self._latest = 0
        self._gone = 0

    def seconds(self) -> float:
        """Since the processes began. Raises CounterFailed where the root is gone."""
        ticks = self._ticks()
        if ticks < self._latest:
            # A process that was waited for after its parent was read and before itself was: a second look has it.
            ticks = self._ticks()
        # What is missing still is of processes that nobody waits for (SIGCHLD ignored), or that got another parent.
        self._gone += max(0, self._latest - ticks)
        self._latest = ticks
        return (self._gone + ticks) * TICK_S

    def _ticks(self) -> int:
        root = self._stat(self._root)
        if root is None:
            raise CounterFailed(f"process {self._root} is gone")
        ticks = root.waited
        children = self._children()
        below = [(self._root, child) for child in children[self._root]]
        while below:  # parents before their children: what is waited for in between is missed, never counted twice
            parent, pid = below.pop()
            stat = self._stat(pid)
            if stat is not None and stat.parent == parent:
                ticks += stat.own + stat.waited
                below += [(pid, child) for child in children[pid]]
        return ticks

    def _children(self) -> defaultdict[int, list[int]]:
        """The processes of each parent.

        A scan costs some 12 us a process. /proc/PID/task/TID/children, which not every kernel has, is a file for each
        thread of the tree at 7 us, and an engine with its replica has hundreds of threads.
        """
        found: defaultdict[int, list[int]] = defaultdict(list)
        for name in os.listdir(self._proc):  # noqa: PTH208 - names alone; Path objects double the cost of the scan
            if name.isdecimal():
                pid = int(name)
                stat = self._stat(pid)
                if stat is not None:
                    found[stat.parent].append(pid)
        return found

    def _stat(self, pid: int) -> _Stat | None:
        try:
            file = os.open(f"{self._proc}/{pid}/stat", os.O_RDONLY)
        except OSError:
            return None
        try:
            line = os.read(file, 1024)
        except OSError:  # it ended in between
            return None
        finally:
            os.close(file)
        # The second field is a name in parentheses, and may have spaces and parentheses in it. See proc_pid_stat(5).
        fields = line[line.rfind(b")") + 2 :].split(None, 15)
        user, system, waited_user, waited_system = map(int, fields[11:15])
        return _Stat(parent=int(fields[1]), own=user + system, waited=waited_user + waited_system)

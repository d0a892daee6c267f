"""A process tree that ends when the one who asked for it does, in any way, SIGKILL too.

::

    python -I -S tether.py GRACE_S command...

The owner holds the only write end of the pipe that is the tether's standard input, and never writes. At end-of-file,
or when the owner is no longer the parent, all below the tether get SIGTERM, the grace, SIGKILL. It adopts orphans,
wherever they went, so that nothing is left when it exits, with the command's code (128 + the signal's number when a
signal ended it). The standard library alone: it starts in milliseconds and takes no part of the engine's CPU.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.2
_SWEEP_S = 0.02


def tethered(command: Sequence[str], *, grace_s: float) -> list[str]:
    """The words that run ``command`` under a tether; start them with a pipe as input and ``start_new_session``."""
    return [sys.executable, "-I", "-S", __file__, f"{grace_s:g}", *command]


def main(words: Sequence[str]) -> int:
    """Run the command and stay until it and all its children are gone."""
    grace_s, command, owner = float(words[0]), words[1:], os.getppid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # A handler and not SIG_IGN, which the command would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        )
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    ended: dict[int, int] = {}
    while child.pid not in ended and os.getppid() == owner:
        ready, _, _ = select.select([0], [], [], _POLL_S)
        _reap(ended)
        if ready and not os.read(0, 4096):
            break
    _end_all(ended, grace_s)
    code = os.waitstatus_to_exitcode(ended.get(child.pid, 0))
    return code if code >= 0 else 128 - code


def descendants(root: int) -> list[int]:
    """Every process below ``root``, those included that ended and were not waited for, from one reading of /proc."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - pathlib would double the start time of a tether
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry))
    found = children.get(root, [])
    for pid in found:  # grows while it is read
        found += children.get(pid, [])
    return found


def _end_all(ended: dict[int, int], grace_s: float) -> None:
    """SIGTERM, the grace, SIGKILL to all that is left below this process."""
    deadline_s = time.monotonic() + grace_s
    asked: set[int] = set()
    while _reap(ended):
        late = time.monotonic() >= deadline_s
        for pid in descendants(os.getpid()):
            if late or pid not in asked:
                asked.add(pid)
                _signal(pid, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(_SWEEP_S)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _reap(ended: dict[int, int]) -> bool:
    """Notes how children ended; returns whether any is left."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        ended[pid] = status


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

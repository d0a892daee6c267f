"""A process group that ends when the one who asked for it does, in any way, SIGKILL too.

::

    python -I -S tether.py GRACE_S command...

The owner holds the only write end of the pipe that is the tether's standard input, and never writes. At end-of-file,
or when the owner is no longer the parent, the group gets SIGTERM, the grace, SIGKILL. The tether leads the group and
adopts orphans, so that nothing is left when it exits, with the command's code (128 + the signal's number when a signal
ended it). The standard library alone: it starts in milliseconds and takes no part of the engine's CPU.
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


def tethered(command: Sequence[str], *, grace_s: float) -> list[str]:
    """The words that run ``command`` under a tether; start them with a pipe as input and ``start_new_session``."""
    return [sys.executable, "-I", "-S", __file__, f"{grace_s:g}", *command]


def main(words: Sequence[str]) -> int:
    """Run the command and stay until it and all its children are gone."""
    grace_s, command, owner = float(words[0]), words[1:], os.getppid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # A handler and not SIG_IGN, which the command would inherit: the group's SIGTERM is for the others.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
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
    _end_group(ended, grace_s)
    code = os.waitstatus_to_exitcode(ended.get(child.pid, 0))
    return code if code >= 0 else 128 - code


def _end_group(ended: dict[int, int], grace_s: float) -> None:
    """SIGTERM, the grace, SIGKILL to the whole group, which includes this process."""
    os.killpg(0, signal.SIGTERM)
    deadline_s = time.monotonic() + grace_s
    while _reap(ended):
        if time.monotonic() >= deadline_s:
            os.killpg(0, signal.SIGKILL)
        time.sleep(0.02)


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

"""A process tree that does not outlive the one who asked for it.

::

    python -I -S guard.py [--grace-s SECONDS] -- command...

    owner --(pipe)--> outer guard -- inner guard -- command -- its children, wherever they go

The owner holds the only write end of the pipe that is the guards' standard input, and never writes. When it ends in
any way, SIGKILL too, the pipe reads end-of-file, and the whole tree is ended: SIGTERM to the command, SIGTERM to what
it left behind, and SIGKILL to everything once the grace is over. SIGTERM to a guard does the same. Descendants that
leave the command's session or lose their parent are still found, because each guard is a subreaper (prctl(2)): the
kernel hands it the orphans below it.

There are two guards because Ray kills a worker's direct children with SIGKILL when it forces the worker out. The inner
guard survives that and ends the tree; if the inner one is killed, the outer one does. Both write nothing, leave
standard output and error to the command, and exit with its code (128 + the signal's number when a signal ended it).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

GRACE_S = 5.0
_INNER_MARGIN_S = 2.0  # the outer guard waits this much longer, so that the inner one can finish its own sweep
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_MS = 1000
_SWEEP_S = 0.02


def guarded(command: Sequence[str], *, grace_s: float = GRACE_S) -> list[str]:
    """The words that run ``command`` under a guard.

    Start them with a pipe as standard input and keep its write end open, close-on-exec, for as long as the command
    may live; ``start_new_session`` keeps a terminal's Ctrl-C from reaching the guard before its owner.
    """
    return [sys.executable, "-I", "-S", __file__, "--grace-s", f"{grace_s:g}", "--", *command]


def main(words: Sequence[str]) -> int:
    """Run the command that stands after ``--``; returns the exit code."""
    grace_s, command = GRACE_S, list(words)
    if command[:1] == ["--grace-s"]:
        grace_s, command = float(command[1]), command[2:]
    if command[:1] != ["--"] or len(command) < 2:
        sys.stderr.write("usage: guard.py [--grace-s SECONDS] -- command...\n")
        return 2
    owner_pid = os.getppid()
    inner = _Guard(start=lambda: _spawn(lambda _: _become(command[1:]), signal.SIGKILL), grace_s=grace_s)
    outer = _Guard(
        start=lambda: _spawn(lambda parent: os._exit(inner.run(parent)), signal.SIGTERM),
        grace_s=grace_s + _INNER_MARGIN_S,
    )
    return outer.run(owner_pid)


class _Guard:
    """Watches one child, its owner, and SIGTERM, and ends everything below itself when any of them says so."""

    def __init__(self, *, start: Callable[[], int], grace_s: float) -> None:
        self._start = start
        self._grace_s = grace_s
        self._asked_to_end = False
        self._status: int | None = None

    def run(self, owner_pid: int) -> int:
        """Start the child and stay until the tree is gone; returns the child's exit code."""
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        os.set_blocking(wake_read, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._ask_to_end)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        child = self._start()
        self._wait(child, owner_pid, wake_read)
        self._end(child)
        return 1 if self._status is None else _exit_code(self._status)

    def _ask_to_end(self, *_: object) -> None:
        self._asked_to_end = True

    def _wait(self, child: int, owner_pid: int, wake_read: int) -> None:
        """Until the child has ended, or the owner is gone, or SIGTERM came."""
        poll = select.poll()
        poll.register(0, select.POLLIN | select.POLLHUP)
        poll.register(wake_read, select.POLLIN)
        while not self._asked_to_end:
            self._reap(child)
            # The parent's id tells of a dead owner whose fork still holds the pipe open.
            if self._status is not None or os.getppid() != owner_pid:
                return
            ready = {fd for fd, _ in poll.poll(_POLL_MS)}
            if wake_read in ready:
                os.read(wake_read, 4096)
            if 0 in ready and _at_end(0):
                return

    def _end(self, child: int) -> None:
        """SIGTERM, the grace, SIGKILL: first the child, then what is left below this guard."""
        deadline_s = time.monotonic() + self._grace_s
        if self._status is None:
            _signal(child, signal.SIGTERM)
        termed = {child}
        while True:
            self._reap(child)
            left = list(descendants(os.getpid()))
            if not left and self._status is not None:
                return
            if time.monotonic() >= deadline_s:
                for pid in left:
                    _signal(pid, signal.SIGKILL)
            elif self._status is not None:
                for pid in left:
                    if pid not in termed:
                        termed.add(pid)
                        _signal(pid, signal.SIGTERM)
            time.sleep(_SWEEP_S)

    def _reap(self, child: int) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == child:
                self._status = status


def _spawn(run: Callable[[int], NoReturn], death_signal: signal.Signals) -> int:
    """Fork a child that runs ``run(its parent's id)`` in its own session, and gets ``death_signal`` if that dies."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() == parent:
            os.setsid()
            run(parent)
    except Exception:  # noqa: BLE001 - the last words of a fork: it must neither return nor end silently
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(127)


def _become(command: list[str]) -> NoReturn:
    """Turn into the command, with the signals and the standard input that a new process expects."""
    signal.set_wakeup_fd(-1)
    for reset in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(reset, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(127)


def _at_end(fd: int) -> bool:
    try:
        return not os.read(fd, 4096)
    except ConnectionResetError:
        return True


def descendants(root: int) -> Iterator[int]:
    """Every process below ``root`` that has not ended, from one reading of /proc."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - pathlib would triple the start time of a guard
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except OSError:
                continue
            if state not in (b"Z", b"X"):
                children.setdefault(int(parent), []).append(int(entry))
    waiting = children.get(root, [])
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, [])


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a run's workers use is metered, also that of workers that nobody waits for."""

import os
import subprocess
import sys
import time

from economizer.energy.cpu_power import CpuPower
from economizer.energy.meter import ReplayMeter
from economizer.energy.meter_cpu import CpuMeter
from economizer_training.data.laps import lapped

# A parent that reaps nobody, as Ray's raylet, and a worker of 2.5 CPU seconds that tells its name and that it is done.
PARENT = """
import signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
sys.stdin.read()
"""
WORKER = """
import os, time
print(os.getpid(), flush=True)
while time.process_time() < 2.5:
    pass
"""


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} does not end")


def test_the_cpu_time_of_a_worker_that_ends_unseen_is_known_to_a_second() -> None:
    power = CpuPower(active_w=1.0, idle_w=0.0, source="a test's")
    with lapped(CpuMeter(power, cores=1)) as laps:
        with subprocess.Popen(
            [sys.executable, "-c", PARENT, WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            wait_until_gone(int(parent.stdout.readline()))
            laps.lap("work")
        laps.lap("rest")
    work, _ = laps.spans
    assert work.active_j is not None
    assert 1.3 < work.active_j < 3.5


def test_spans_join() -> None:
    readings = [(0.0, 0), (0.0, 0), (1.0, 5_000_000), (3.0, 6_000_000)]
    with lapped(ReplayMeter(readings)) as laps:
        laps.lap("first")
        laps.lap("second")
    assert [(span.name, span.seconds, span.energy_j) for span in laps.spans] == [("first", 1, 5), ("second", 2, 1)]

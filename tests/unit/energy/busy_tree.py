"""A process that meters itself while the child of its child is busy: ``python busy_tree.py metered SECONDS``.

It has no other children, as a test runner may have, so that what it meters is known.
"""

import json
import resource
import subprocess
import sys
import time

from economizer.energy.cpu_power import CpuPower
from economizer.energy.meter_cpu import CpuMeter


def main(role: str, busy_s: str) -> None:
    {"metered": metered, "child": child, "busy": busy}[role](busy_s)


def busy(busy_s: str) -> None:
    while time.process_time() < float(busy_s):
        pass
    print("busy", flush=True)
    sys.stdin.read()


def child(busy_s: str) -> None:
    subprocess.run([sys.executable, __file__, "busy", busy_s], check=True)
    print(used_s(resource.RUSAGE_CHILDREN), flush=True)


def metered(busy_s: str) -> None:
    meter = CpuMeter(CpuPower(active_w=4, idle_w=1, source="stated"), cores=1)
    meter.begin("while it lives")
    meter.begin("all of it")
    before_s = used_s(resource.RUSAGE_SELF)
    command = [sys.executable, __file__, "child", busy_s]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdout.readline()
        alive = meter.end("while it lives")
        running.stdin.close()
        grandchild_s = float(running.stdout.readline())
    whole = meter.end("all of it")
    used = used_s(resource.RUSAGE_CHILDREN) + used_s(resource.RUSAGE_SELF) - before_s
    print(
        json.dumps(
            {
                "alive_uj": alive.active_uj,
                "whole_uj": whole.active_uj,
                "whole_idle_uj": whole.idle_uj,
                "seconds": whole.seconds,
                "grandchild_s": grandchild_s,
                "used_s": used,
            }
        )
    )


def used_s(whose: int) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(*sys.argv[1:])

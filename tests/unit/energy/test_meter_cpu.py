"""CPU time below a process, and the energy that it stands for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import busy_tree
import pytest
from economizer.energy.cpu_power import CpuPower
from economizer.energy.cpu_time import CpuTime
from economizer.energy.meter import CounterFailed
from economizer.energy.meter_cpu import CpuMeter
from economizer.energy.types import Measurement
from machine_files import MachineFiles

POWER = CpuPower(active_w=4, idle_w=1, source="stated")


@pytest.fixture
def machine(tmp_path: Path) -> MachineFiles:
    return MachineFiles(tmp_path)


def test_all_processes_below_the_root_count_and_no_others(machine: MachineFiles) -> None:
    machine.process(10, parent=1, own=5_000)
    machine.process(11, parent=10, own=100, name="guard) (and")
    machine.process(12, parent=11, own=200, waited=50)
    machine.process(9, parent=12, own=25)  # its number is below its parent's
    machine.process(20, parent=1, own=7_000)
    (machine.proc / "self").mkdir()
    assert CpuTime(10, machine.proc).seconds() == 3.75


def test_a_process_that_ends_is_counted_once_whoever_waits_for_it(machine: MachineFiles) -> None:
    cpu_time = CpuTime(10, machine.proc)
    machine.process(10, parent=1)
    machine.process(11, parent=10, own=100)
    machine.process(12, parent=11, own=300)
    assert cpu_time.seconds() == 4
    machine.ends(12)
    machine.process(11, parent=10, own=100, waited=310)
    assert cpu_time.seconds() == 4.10
    machine.ends(11)
    machine.process(10, parent=1, waited=415)
    assert cpu_time.seconds() == 4.15


def test_what_nobody_waited_for_stays_counted(machine: MachineFiles) -> None:
    cpu_time = CpuTime(10, machine.proc)
    machine.process(10, parent=1)
    machine.process(11, parent=10, own=100)
    machine.process(12, parent=10, own=300)
    assert cpu_time.seconds() == 4
    machine.ends(12)
    assert cpu_time.seconds() == 4
    machine.process(11, parent=10, own=150)
    assert cpu_time.seconds() == 4.5


def test_a_root_that_is_gone_is_said(machine: MachineFiles) -> None:
    with pytest.raises(CounterFailed, match="process 10 is gone"):
        CpuTime(10, machine.proc).seconds()


def test_a_span_is_the_idle_cores_and_the_work_on_top(machine: MachineFiles) -> None:
    machine.process(10, parent=1)
    machine.process(11, parent=10, own=100)
    meter = CpuMeter(POWER, cores=2, cpu_time=CpuTime(10, machine.proc))
    meter.begin("engine")
    machine.process(11, parent=10, own=350)
    measured = meter.lap("engine")
    idle_uj = round(1 * 2 * measured.seconds * 1_000_000)
    assert measured == Measurement(
        seconds=measured.seconds,
        energy_uj=idle_uj + 7_500_000,  # (4 - 1) W * 2.5 s
        idle_uj=idle_uj,
        method="cpu-time-model",
        uncertainty=0.5 + 0.01 / measured.seconds,
    )
    assert meter.describe() == "CPU time at 4 W a core, 1 W idle on 2 cores (stated)"


def test_an_engine_that_is_gone_is_unknown_until_there_is_one_again(machine: MachineFiles) -> None:
    machine.process(10, parent=1)
    meter = CpuMeter(POWER, cores=0, cpu_time=CpuTime(10, machine.proc))
    meter.begin("engine")
    machine.ends(10)
    gone = meter.lap("engine")
    assert (gone.energy_uj, gone.note) == (None, "process 10 is gone")
    machine.process(10, parent=1)
    assert meter.lap("engine").energy_uj is None
    machine.process(10, parent=1, waited=100)
    assert meter.end("engine").energy_uj == 3_000_000


def test_the_joules_of_a_busy_grandchild_are_its_cpu_seconds_while_it_lives_and_after() -> None:
    busy_s, tick_s = 0.4, 1 / os.sysconf("SC_CLK_TCK")
    ran = subprocess.run([sys.executable, busy_tree.__file__, "metered", str(busy_s)], check=True, capture_output=True)
    metered = json.loads(ran.stdout)
    # Python's start of both processes comes on top; the two counters of each process are rounded down to ticks.
    assert busy_s - 4 * tick_s <= metered["alive_uj"] / 3_000_000 <= metered["used_s"]
    assert metered["whole_uj"] / 3_000_000 == pytest.approx(metered["used_s"], abs=3 * tick_s)
    assert metered["used_s"] >= metered["grandchild_s"] >= busy_s
    assert metered["whole_idle_uj"] == round(metered["seconds"] * 1_000_000)

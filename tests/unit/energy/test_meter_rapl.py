"""RAPL's counters, read from files like the kernel's."""

from collections.abc import Iterable
from itertools import count
from pathlib import Path

import pytest
from economizer.energy.cpu_time import CpuTime
from economizer.energy.meter import CounterFailed
from economizer.energy.meter_rapl import RaplMeter
from machine_files import MachineFiles


@pytest.fixture
def machine(tmp_path: Path) -> MachineFiles:
    """Two packages, one with counted memory; the engine (11) is below process 10."""
    machine = MachineFiles(tmp_path)
    machine.zone("intel-rapl:0", "package-0", 1_000_000)
    machine.zone("intel-rapl:0/intel-rapl:0:0", "core", 999)
    machine.zone("intel-rapl:0/intel-rapl:0:1", "dram", 500_000)
    machine.zone("intel-rapl:1", "package-1", 2_000_000)
    machine.zone("intel-rapl:2", "psys", 999)
    machine.cpus(8, busy=1_000)
    machine.process(10, parent=1)
    machine.process(11, parent=10, own=100)
    return machine


def metered(
    machine: MachineFiles, *, cores: float = 2, idle_w: float | None = 0, at_s: Iterable[float] | None = None
) -> RaplMeter:
    """Begun at the first of ``at_s`` and read at the others; by default each second."""
    clock = iter(count() if at_s is None else at_s)
    meter = RaplMeter(
        cores=cores,
        idle_w=idle_w,
        powercap=machine.powercap,
        proc=machine.proc,
        cpu_time=CpuTime(10, machine.proc),
        clock=lambda: next(clock),
    )
    meter.begin("engine")
    return meter


def test_the_engine_has_the_share_of_its_cpu_time_in_packages_and_memory(machine: MachineFiles) -> None:
    meter = metered(machine)
    machine.zone("intel-rapl:0", "package-0", 7_000_000)
    machine.zone("intel-rapl:0/intel-rapl:0:0", "core", 5_000_000)
    machine.zone("intel-rapl:0/intel-rapl:0:1", "dram", 1_500_000)
    machine.zone("intel-rapl:1", "package-1", 3_000_000)
    machine.cpus(8, busy=1_400)
    machine.process(11, parent=10, own=200)
    lap = meter.lap("engine")
    assert (lap.energy_uj, lap.idle_uj, lap.method, lap.note) == (2_000_000, 0, "rapl", "")  # a quarter of 6 + 1 + 1 J
    assert lap.uncertainty == pytest.approx(0.05 + 0.3 * 0.75 + 0.01)


def test_of_idle_power_the_engine_has_its_cores_share_and_of_the_rest_its_time(machine: MachineFiles) -> None:
    meter = metered(machine, idle_w=2)
    machine.zone("intel-rapl:1", "package-1", 8_000_000)
    machine.cpus(8, busy=1_400)
    machine.process(11, parent=10, own=300)
    lap = meter.lap("engine")
    assert (lap.energy_uj, lap.idle_uj) == (500_000 + 2_000_000, 500_000)  # of 2 J idle a quarter, of 4 J active a half


@pytest.mark.parametrize(("stated_w", "idle_j"), [(None, [10, 4, 0, 4]), (6, [6, 4, 0, 4])])
def test_idle_power_is_the_stated_or_the_lowest_seen_over_half_a_second(
    machine: MachineFiles, stated_w: float | None, idle_j: list[int]
) -> None:
    meter = metered(machine, cores=8, idle_w=stated_w, at_s=(0, 1, 2, 2.25, 3.25))
    found = []
    for energy_uj in (12_000_000, 16_000_000, 16_000_001, 28_000_001):
        machine.zone("intel-rapl:1", "package-1", energy_uj)
        found.append(round(meter.lap("engine").idle_uj / 1_000_000))
    assert found == idle_j


def test_no_engine_has_more_than_the_whole_machine(machine: MachineFiles) -> None:
    meter = metered(machine, cores=32)
    machine.zone("intel-rapl:1", "package-1", 6_000_000)
    machine.cpus(8, busy=1_400)
    machine.process(11, parent=10, own=510)
    assert meter.lap("engine").energy_uj == 4_000_000


def test_a_counter_that_wraps_loses_nothing(machine: MachineFiles) -> None:
    machine.zone("intel-rapl:1", "package-1", 65_000_000_000, wraps_at_uj=65_532_610_987)
    meter = metered(machine)
    machine.zone("intel-rapl:1", "package-1", 7_389_013, wraps_at_uj=65_532_610_987)
    machine.cpus(8, busy=1_200)
    machine.process(11, parent=10, own=300)
    assert meter.lap("engine").energy_uj == 540_000_000


def test_a_span_in_which_a_counter_may_have_wrapped_twice_is_unknown(machine: MachineFiles) -> None:
    machine.zone("intel-rapl:1", "package-1", 1, wraps_at_uj=65_532_610_987)
    meter = metered(machine, at_s=(0, 65, 131))
    assert meter.lap("engine").energy_uj == 0
    lap = meter.lap("engine")
    assert (lap.energy_uj, lap.note) == (None, "66 s are too long: the RAPL counters may have wrapped more than once")


def test_a_machine_at_rest_has_no_active_energy_to_share(machine: MachineFiles) -> None:
    meter = metered(machine, cores=0)
    machine.zone("intel-rapl:1", "package-1", 6_000_000)
    assert meter.lap("engine").energy_uj == 0


def test_a_counter_that_vanishes_is_unknown_until_it_was_read_twice_again(machine: MachineFiles) -> None:
    meter = metered(machine)
    counter = machine.powercap / "intel-rapl:1" / "energy_uj"
    counter.unlink()
    gone = meter.lap("engine")
    assert (gone.energy_uj, gone.note) == (None, f"{counter}: No such file or directory")
    machine.zone("intel-rapl:1", "package-1", 5_000_000)
    assert meter.lap("engine").energy_uj is None
    machine.zone("intel-rapl:1", "package-1", 6_000_000)
    machine.cpus(8, busy=1_010)
    machine.process(11, parent=10, own=110)
    assert meter.lap("engine").energy_uj == 1_000_000


def test_a_machine_without_counters_of_packages_is_refused_with_the_reason(tmp_path: Path) -> None:
    machine = MachineFiles(tmp_path)
    machine.cpus(2)
    machine.zone("intel-rapl:0", "psys", 5)
    with pytest.raises(CounterFailed, match=r"no RAPL counter of a package in .*/powercap"):
        metered(machine)


def test_a_meter_says_what_it_reads(machine: MachineFiles) -> None:
    zones = "intel-rapl:0, intel-rapl:0:1, intel-rapl:1"
    idle = "0.25 of its idle power"
    assert metered(machine, idle_w=60).describe() == f"RAPL of {zones}; {idle} (at most 60 W), the rest by CPU time"
    assert metered(machine, idle_w=None).describe() == (
        f"RAPL of {zones}; {idle} (the lowest power seen), the rest by CPU time"
    )

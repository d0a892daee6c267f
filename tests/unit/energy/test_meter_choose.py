"""Which meter an engine gets, and what a core of its CPU draws."""

import csv
import os
from pathlib import Path
from statistics import median
from typing import Literal

import economizer.energy.cpu_power as cpu_power_module
import pytest
from economizer.energy.choose import MeterSettings, meter_for
from economizer.energy.cpu_power import TYPICAL, CpuPower, cpu_power
from machine_files import MachineFiles

TABLE = Path(cpu_power_module.__file__).with_name("cpu_tdp.csv")
GENOA = ("AuthenticAMD", 25, 17)


@pytest.fixture
def machine(tmp_path: Path) -> MachineFiles:
    machine = MachineFiles(tmp_path)
    machine.cpus(2)
    return machine


def x86(vendor: str, family: int, model: int, name: str, *, siblings: int = 2, cores: int = 2) -> str:
    """A CPU of /proc/cpuinfo, and another one after it."""
    lines = (
        f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {name}\n"
        f"siblings\t: {siblings}\ncpu cores\t: {cores}\n"
    )
    return f"{lines}\nprocessor\t: 1\nmodel name\t: another\n"


def power_of(machine: MachineFiles, cpuinfo: str) -> CpuPower | None:
    (machine.proc / "cpuinfo").write_text(cpuinfo)
    return cpu_power(machine.proc / "cpuinfo")


def chosen(machine: MachineFiles, settings: MeterSettings, *, gpus: tuple[str, ...] = ()) -> str:
    return meter_for(
        settings, gpus=gpus, cores=2, idle_w=90, gpu_share=0.5, proc=machine.proc, powercap=machine.powercap
    ).describe()


def test_a_cloud_that_hides_the_model_gets_a_typical_part_of_its_generation(machine: MachineFiles) -> None:
    assert power_of(machine, x86(*GENOA, "AMD EPYC")) == CpuPower(
        active_w=3.75,
        idle_w=0.75,
        source="360 W / 96 cores of EPYC 9654, typical of AuthenticAMD/25/17, whose model is hidden or unlisted",
    )


def test_two_threads_that_share_a_core_share_its_power(machine: MachineFiles) -> None:
    assert power_of(machine, x86(*GENOA, "AMD EPYC 9654P 96-Core Processor", siblings=192, cores=96)) == CpuPower(
        active_w=1.875, idle_w=0.375, source="360 W / 96 cores of EPYC 9654, 2 threads a core"
    )


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("Intel(R) Xeon(R) Platinum 8480+", "350 W / 56 cores of Xeon Platinum 8480+"),
        ("INTEL(R) XEON(R) PLATINUM 8592+", "350 W / 64 cores of Xeon Platinum 8592+"),
        ("Intel(R) Xeon(R) CPU Max 9480", "350 W / 56 cores of Xeon Max 9480"),
        ("Intel(R) Xeon(R) CPU E5-2620 v3 @ 2.40GHz", "85 W / 6 cores of Xeon E5-2620 v3"),
        ("13th Gen Intel(R) Core(TM) i9-13900K", "125 W / 24 cores of Core i9-13900K"),
        ("AMD Ryzen 9 7950X 16-Core Processor", "170 W / 16 cores of Ryzen 9 7950X"),
        ("AMD EPYC 8534P 64-Core Processor", "200 W / 64 cores of EPYC 8534"),
    ],
)
def test_a_part_is_found_by_the_name_that_linux_has_for_it(machine: MachineFiles, name: str, part: str) -> None:
    power = power_of(machine, x86("any", 0, 0, name))
    assert power is not None
    assert power.source == part


def test_a_part_is_not_taken_for_one_whose_name_begins_alike(machine: MachineFiles) -> None:
    assert power_of(machine, x86("any", 0, 0, "AMD Ryzen 9 7950X3D 16-Core Processor")) is None
    assert power_of(machine, x86("any", 0, 0, "Intel(R) Xeon(R) Platinum 8380H CPU @ 2.90GHz")) is None


def test_arm_is_known_by_its_implementer_and_part(machine: MachineFiles) -> None:
    arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {}\n\n"
    power = power_of(machine, arm.format("0xd0c"))
    assert power is not None
    assert power.active_w == 2.625
    assert power_of(machine, arm.format("0xd40")) is None


def test_a_cpu_that_nobody_knows_has_no_power(machine: MachineFiles) -> None:
    assert power_of(machine, x86("GenuineIntel", 6, 1, "Intel(R) Pentium(R) III")) is None
    assert power_of(machine, "") is None
    assert cpu_power(machine.proc / "no such file") is None


def test_auto_takes_the_gpus_then_rapl_then_the_model_of_this_cpu_or_a_typical_one(machine: MachineFiles) -> None:
    auto = MeterSettings()
    assert chosen(machine, auto, gpus=("1", "0")) == "NVML's energy counters of GPU 1, 0, 0.5 of each; 90 W idle"
    assert chosen(machine, auto) == (
        "CPU time at 5.5 W a core, 1.1 W idle on 2 cores (typical: this CPU is unknown, set watts_per_core)"
    )
    (machine.proc / "cpuinfo").write_text(x86(*GENOA, "AMD EPYC"))
    assert chosen(machine, auto).startswith("CPU time at 3.75 W a core, 0.75 W idle on 2 cores (360 W / 96 cores")


def test_a_typical_core_draws_the_median_of_the_generations_in_the_table() -> None:
    lines = (line for line in TABLE.read_text().splitlines() if not line.startswith("#"))
    watts = [float(row["tdp_w"]) / int(row["cores"]) for row in csv.DictReader(lines) if row["typical_of"]]
    assert TYPICAL.active_w == pytest.approx(median(watts), rel=0.01)
    assert TYPICAL.uncertainty == 1.0


def test_a_meter_that_was_asked_for_and_cannot_be_had_says_why(machine: MachineFiles) -> None:
    assert chosen(machine, MeterSettings(kind="nvml")) == "no meter: the engine has no GPU"
    assert chosen(machine, MeterSettings(kind="none"), gpus=("0",)) == "no meter: the configuration wants none"
    assert (
        chosen(machine, MeterSettings(kind="rapl")) == f"no meter: no RAPL counter of a package in {machine.powercap}"
    )


def test_rapl_is_taken_before_the_model_with_the_idle_power_of_all_cpus(machine: MachineFiles) -> None:
    machine.zone("intel-rapl:0", "package-0", 5)
    machine.process(os.getpid(), parent=1)
    assert chosen(machine, MeterSettings(watts_per_core=20, watts_per_core_idle=3)) == (
        "RAPL of intel-rapl:0; 1 of its idle power (at most 6 W), the rest by CPU time"
    )
    assert chosen(machine, MeterSettings()) == (
        "RAPL of intel-rapl:0; 1 of its idle power (the lowest power seen), the rest by CPU time"
    )


def test_stated_watts_win_over_the_table(machine: MachineFiles) -> None:
    assert chosen(machine, MeterSettings(kind="cpu", watts_per_core=5)) == (
        "CPU time at 5 W a core, 1 W idle on 2 cores (the configuration's watts_per_core)"
    )
    assert chosen(machine, MeterSettings(kind="cpu", watts_per_core=5, watts_per_core_idle=0)) == (
        "CPU time at 5 W a core, 0 W idle on 2 cores (the configuration's watts_per_core)"
    )


@pytest.mark.parametrize("kind", ["cpu", "rapl"])
def test_the_cpu_time_of_the_root_that_was_named_counts_and_no_others(
    machine: MachineFiles, kind: Literal["cpu", "rapl"]
) -> None:
    def after(busy: int, engine: int, *, energy_uj: int) -> None:
        machine.cpus(2, busy=busy)
        machine.zone("intel-rapl:0", "package-0", energy_uj)
        for pid, own in ((11, engine), (21, busy - engine)):
            machine.process(pid - 1, parent=os.getpid())
            machine.process(pid, parent=pid - 1, own=own)

    machine.process(os.getpid(), parent=1)
    after(0, 0, energy_uj=0)
    settings = MeterSettings(kind=kind, watts_per_core=8, watts_per_core_idle=0)
    meter = meter_for(settings, gpus=(), cores=2, idle_w=None, root=10, proc=machine.proc, powercap=machine.powercap)
    meter.begin("engine")
    after(100, 25, energy_uj=8_000_000)
    assert meter.end("engine").active_uj == 2_000_000


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"watts_per_core": 0}, "watts_per_core is 0: must be above 0 and finite"),
        ({"watts_per_core_idle": 1}, r"watts_per_core_idle is 1: must be between 0 and watts_per_core \(None\)"),
        ({"watts_per_core": 2, "watts_per_core_idle": 3}, "watts_per_core_idle is 3: must be between 0 and"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        MeterSettings(**settings)  # type: ignore[arg-type]

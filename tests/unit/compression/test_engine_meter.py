"""Which meter an engine gets while it is measured, and what its joules are called."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest
from economizer.energy.choose import MeterSettings
from economizer.energy.cpu_time import CpuTime
from economizer.energy.meter import EmptyMeter, ReplayMeter
from economizer.energy.meter_rapl import RaplMeter
from economizer_compression.errors import CompressionError
from economizer_compression.family import load_engine
from economizer_compression.metering import energy_method, meter_of, see_rest
from economizer_compression.serving import EngineSettings
from economizer_compression.tether import tethered

STATED = MeterSettings(kind="cpu", watts_per_core=4.0, watts_per_core_idle=1.0)


def settings(**changes: object) -> EngineSettings:
    return EngineSettings(python=Path("python"), **changes)  # type: ignore[arg-type]


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The command, once it has printed a line; it is ended when the block is left."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            if process.stdin is not None:
                process.stdin.close()


def test_what_a_busy_second_adds_to_idling_is_the_energy_and_the_method_says_so() -> None:
    method = energy_method(meter_of(settings(meter=STATED)))
    assert method is not None
    assert method.startswith("active energy, by CPU time at 4 W a core, 1 W idle on ")
    assert method.endswith(" cores (the configuration's watts_per_core)")


def test_a_meter_that_measures_nothing_has_no_method() -> None:
    assert energy_method(meter_of(settings(meter=MeterSettings(kind="none")))) is None
    assert energy_method(EmptyMeter("no reason")) is None
    assert energy_method(ReplayMeter([(0.0, 1), (1.0, None)])) is None


def test_a_method_is_asked_of_a_meter_that_then_measures() -> None:
    meter = ReplayMeter([(0.0, 0), (0.0, 0), (1.0, 5), (2.0, 12)])
    assert energy_method(meter) == "active energy, by a recording of 4 readings"
    meter.begin("window")
    assert meter.end("window").energy_uj == 7


def test_an_engine_with_gpus_is_metered_by_the_first_that_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def described(**changes: object) -> str:
        return meter_of(settings(gpus=2, gpu_idle_w=60.0, **changes)).describe()

    assert described() == "NVML's energy counters of GPU 0, 1; 60 W idle"
    assert described(env={"CUDA_VISIBLE_DEVICES": "3,1,2"}) == "NVML's energy counters of GPU 3, 1; 60 W idle"


def test_the_work_of_a_process_beside_the_engine_is_none_of_its_joules() -> None:
    up = "import sys, time; print('up', flush=True)\n"
    quiet = tethered([sys.executable, "-c", f"{up}time.sleep(600)"], grace_s=0)
    work = "sys.stdin.readline()\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\nsys.stdin.read()"
    with running(quiet) as engine, running([sys.executable, "-c", up + work]) as neighbour:
        meters = [meter_of(settings(meter=STATED), root) for root in (engine.pid, None)]
        for meter in meters:
            meter.begin("window")
        assert neighbour.stdin is not None
        assert neighbour.stdout is not None
        neighbour.stdin.write("go\n")
        neighbour.stdin.flush()
        assert neighbour.stdout.readline() == "done\n"
        engine_uj, all_uj = (meter.end("window").active_uj for meter in meters)
    assert engine_uj is not None
    assert all_uj is not None
    assert engine_uj <= 0.1 * 3_000_000
    assert all_uj >= 0.4 * 3_000_000


def test_a_meter_that_learns_idle_power_has_seen_its_engine_rest_before_it_works(tmp_path: Path) -> None:
    zone, process, later_s = tmp_path / "intel-rapl:0", tmp_path / "10", 0.0
    zone.mkdir()
    process.mkdir()
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")

    def after(ticks: int, energy_uj: int) -> None:
        (zone / "energy_uj").write_text(f"{energy_uj}\n")
        (tmp_path / "stat").write_text(f"cpu  {ticks} 0 0 0 0 0 0 0 0 0\ncpu0 {ticks} 0 0 0 0 0 0 0 0 0\n")
        (process / "stat").write_text(f"10 (engine) S 1 {'0 ' * 11}{ticks} 0 20 0 1 0 1\n")

    after(0, 0)
    cpu_time = CpuTime(10, tmp_path)
    meter = RaplMeter(
        cores=1, idle_w=None, powercap=tmp_path, proc=tmp_path, cpu_time=cpu_time, clock=lambda: monotonic() + later_s
    )
    see_rest([meter])
    meter.begin("window")
    after(100, 8_000_000)
    later_s = 2.0
    assert meter.end("window").active_uj == 8_000_000


def test_an_engine_file_says_how_its_engine_is_metered(tmp_path: Path) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text("python: python\nmeter: {kind: cpu, watts_per_core: 4, watts_per_core_idle: 1}\n")
    assert load_engine(str(file)).meter == STATED
    assert (load_engine("vllm-cpu").gpus, load_engine("vllm-gpu").gpus) == (0, 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gpus: -1", "gpus is -1: must be 0 or more"),
        ("gpu_idle_w: -1", "gpu_idle_w is -1.0: must be 0 or more and finite"),
        ("meter: {watts: 4}", "meter.watts: 4: is not a known key here"),
        ("power: {core_w: 3.75, source: stated}", "power: .*: is not a known key here"),
    ],
)
def test_a_wrong_engine_file_is_refused(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(f"python: python\n{line}\n")
    with pytest.raises(CompressionError, match=message):
        load_engine(str(file))

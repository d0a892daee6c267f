"""Which meter an engine gets while it is measured, and what its joules are called."""

from pathlib import Path

import pytest
from economizer.energy.choose import MeterSettings
from economizer.energy.meter import EmptyMeter, ReplayMeter
from economizer_compression.errors import CompressionError
from economizer_compression.family import load_engine
from economizer_compression.metering import energy_method, meter_of
from economizer_compression.serving import EngineSettings

STATED = MeterSettings(kind="cpu", watts_per_core=4.0, watts_per_core_idle=1.0)


def settings(**changes: object) -> EngineSettings:
    return EngineSettings(python=Path("python"), **changes)  # type: ignore[arg-type]


def test_what_a_busy_second_adds_to_idling_is_the_energy_and_the_method_says_so() -> None:
    method = energy_method(meter_of(settings(meter=STATED)))
    assert method is not None
    assert method.startswith("above idle, by CPU time at 4 W a core, 1 W idle on ")
    assert method.endswith(" cores (the configuration's watts_per_core)")


def test_a_meter_that_measures_nothing_has_no_method() -> None:
    assert energy_method(meter_of(settings(meter=MeterSettings(kind="none")))) is None
    assert energy_method(EmptyMeter("no reason")) is None
    assert energy_method(ReplayMeter([(0.0, 1), (1.0, None)])) is None


def test_a_method_is_asked_of_a_meter_that_then_measures() -> None:
    meter = ReplayMeter([(0.0, 0), (0.0, 0), (1.0, 5), (2.0, 12)])
    assert energy_method(meter) == "above idle, by a recording of 4 readings"
    meter.begin("window")
    assert meter.end("window").energy_uj == 7


def test_an_engine_with_gpus_is_metered_by_the_first_that_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def described(**changes: object) -> str:
        return meter_of(settings(gpus=2, gpu_idle_w=60.0, **changes)).describe()

    assert described() == "NVML's energy counters of GPU 0, 1; 60 W idle"
    assert described(env={"CUDA_VISIBLE_DEVICES": "3,1,2"}) == "NVML's energy counters of GPU 3, 1; 60 W idle"


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

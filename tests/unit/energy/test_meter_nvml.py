"""GPU counters, read by nvidia-ml-py from a real shared library that says what the test wants. See nvml_stand_in."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from economizer.energy.meter_nvml import NvmlMeter, visible_devices
from nvml_stand_in.build import build

A, B, MIG = "GPU-a", "GPU-b", "MIG-c"

# Meters the devices, laps once per machine after the first, and prints the measurements.
LAPS = """
import json, os, sys
from pathlib import Path
from msgspec.structs import asdict
from economizer.energy.meter_nvml import NvmlMeter

devices, idle_w, share, machines = json.loads(sys.argv[1])
machine = Path(os.environ["NVML_STAND_IN"])
machine.write_text(machines[0])
meter = NvmlMeter(devices, idle_w=idle_w, share=share)
meter.begin("engine")
laps = []
for text in machines[1:]:
    machine.write_text(text)
    laps.append(asdict(meter.lap("engine")))
meter.close()
print(json.dumps(laps))
"""

Laps = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def laps(tmp_path_factory: pytest.TempPathFactory) -> Laps:
    environment = build(tmp_path_factory.mktemp("nvml"))

    def run(devices: Sequence[str], *machines: str, idle_w: float | None = None, share: float = 1.0) -> Any:
        arguments = [sys.executable, "-c", LAPS, json.dumps([devices, idle_w, share, machines])]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return run


def energies(measurements: list[dict[str, Any]]) -> list[tuple[int | None, str]]:
    return [(measurement["energy_uj"], measurement["note"]) for measurement in measurements]


def test_a_lap_is_what_the_counter_grew_by_in_microjoules(laps: Laps) -> None:
    one, two = laps([A], f"gpu {A} 0 1000", f"gpu {A} 0 13345", f"gpu {A} 0 13345")
    assert one == {
        "seconds": one["seconds"],
        "energy_uj": 12_345_000,
        "idle_uj": 0,
        "method": "nvml-total-energy",
        "uncertainty": pytest.approx(0.05 + 0.1 / one["seconds"]),
        "note": "",
    }
    assert two["energy_uj"] == 0


def test_several_gpus_are_summed_by_index_and_by_uuid(laps: Laps) -> None:
    machines = (f"gpu {A} 0 100\ngpu {B} 0 5000", f"gpu {A} 0 107\ngpu {B} 0 5300")
    assert energies(laps(["0", B], *machines)) == [(307_000, "")]
    assert energies(laps(["1"], *machines)) == [(300_000, "")]


def test_what_the_gpus_draw_without_work_is_idle_up_to_all_of_it(laps: Laps) -> None:
    one, two = laps([A], f"gpu {A} 0 0", f"gpu {A} 0 400000", f"gpu {A} 0 400000", idle_w=90)
    assert one["idle_uj"] == pytest.approx(90_000_000 * one["seconds"], abs=1)
    assert two["idle_uj"] == two["energy_uj"] == 0


def test_a_counter_that_wraps_loses_nothing(laps: Laps) -> None:
    assert energies(laps([A], f"gpu {A} 0 {2**64 - 5}", f"gpu {A} 0 20", f"gpu {A} 0 21")) == [
        (25_000, ""),
        (1_000, ""),
    ]


def test_a_counter_that_was_reset_costs_one_lap_and_the_note_names_the_gpu(laps: Laps) -> None:
    machines = [f"gpu {A} 0 {7 * i}\ngpu {B} 0 {counter}" for i, counter in enumerate((9_000_000, 40, 60))]
    assert energies(laps(["0", "1"], *machines)) == [
        (None, "GPU 1: its energy counter was reset, from 9000000 to 40 mJ"),
        (27_000, ""),
    ]


def test_a_gpu_that_is_lost_is_unknown_until_it_was_read_twice_again(laps: Laps) -> None:
    machines = [f"gpu {A} 0 10\n{b}" for b in (f"gpu {B} 0 10", f"gpu {B} 15 0", "", f"gpu {B} 0 30", f"gpu {B} 0 35")]
    assert energies(laps([A, B], *machines)) == [
        (None, f"GPU {B}: GPU is lost"),
        (None, f"GPU {B}: GPU is lost"),
        (None, f"GPU {B}: Not Found"),
        (5_000, ""),
    ]


def test_a_driver_that_goes_and_comes_back_is_read_anew(laps: Laps) -> None:
    here = f"gpu {A} 0 "
    assert energies(laps([A], "init 9", "init 9", here + "10", here + "12")) == [
        (None, "NVML: Driver Not Loaded"),
        (None, "NVML: Driver Not Loaded"),
        (2_000, ""),
    ]


def test_a_gpu_without_the_counter_is_unknown(laps: Laps) -> None:
    (lap,) = laps([A], f"gpu {A} 3 0", f"gpu {A} 3 0")
    assert (lap["energy_uj"], lap["uncertainty"], lap["note"]) == (None, None, f"GPU {A}: Not Supported")


def test_a_mig_device_has_its_compute_slices_share_of_its_gpu(laps: Laps) -> None:
    mig = f"\nmig {MIG} {A} 2 3"
    (lap,) = laps([MIG], f"gpu {A} 0 0{mig}", f"gpu {A} 0 14000{mig}")
    assert (lap["energy_uj"], lap["method"]) == (4_000_000, "nvml-total-energy/mig-share")
    assert lap["uncertainty"] == pytest.approx(0.05 + 5 / 7 + 0.1 / lap["seconds"])


def test_engines_that_share_a_gpu_without_mig_have_their_configured_share(laps: Laps) -> None:
    (lap,) = laps([A], f"gpu {A} 0 0", f"gpu {A} 0 1000", share=0.25)
    assert (lap["energy_uj"], lap["method"]) == (250_000, "nvml-total-energy/gpu-share")
    assert lap["uncertainty"] == pytest.approx(0.05 + 0.75 + 0.1 / lap["seconds"])


def test_a_machine_without_the_library_is_unknown() -> None:
    script = LAPS.replace("machine.write_text(machines[0])", "").replace("machine.write_text(text)", "")
    environment = {"NVML_STAND_IN": "", "LD_LIBRARY_PATH": "/nonexistent"}
    arguments = [sys.executable, "-c", script, json.dumps([["0"], None, 1.0, ["", ""]])]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    (lap,) = json.loads(done.stdout)
    if lap["energy_uj"] is None:  # else this machine has an NVIDIA driver
        assert lap["note"] == "NVML: NVML Shared Library Not Found"


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("", ()),
        ("0", ("0",)),
        ("3, 1", ("3", "1")),
        ("0,0", ("0",)),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,MIG-a8", ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-a8")),
        ("2,-1,0", ("2",)),
        ("NoDevFiles", ()),
    ],
)
def test_visible_devices_are_those_that_cuda_would_use(text: str, devices: tuple[str, ...]) -> None:
    assert visible_devices(text) == devices


def test_a_meter_says_what_it_reads() -> None:
    assert NvmlMeter(["0", MIG], idle_w=90).describe() == f"NVML's energy counters of GPU 0, {MIG}; 90 W idle"
    assert NvmlMeter(["0"], idle_w=None).describe() == "NVML's energy counters of GPU 0; idle power not known"
    with pytest.raises(ValueError, match="devices is "):
        NvmlMeter([], idle_w=None)
    with pytest.raises(ValueError, match="share is 0"):
        NvmlMeter(["0"], idle_w=None, share=0)

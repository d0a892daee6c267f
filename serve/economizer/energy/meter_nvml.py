"""Energy of NVIDIA GPUs by the counters that they keep themselves, through NVML (nvidia-ml-py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from economizer.energy.meter import CounterFailed, CountingMeter, Used
from economizer.energy.types import UJ_PER_J
from economizer.errors import require

_TICK_S = 0.1  # the counter moves 10 to 50 times a second, by GPU; the slowest is taken
_COUNTER_UNCERTAINTY = 0.05  # of the board's power sensor
_COUNTER_WRAPS = 2**64
_GPU_W_MAX = 5000.0


def visible_devices(text: str) -> tuple[str, ...]:
    """The devices of a value of CUDA_VISIBLE_DEVICES: indices, ``GPU-<uuid>`` and ``MIG-<uuid>``, each once.

    Like CUDA it ends at the first entry that is none of these, such as ``-1``.
    """
    found: dict[str, None] = {}
    for entry in text.split(","):
        name = entry.strip()
        if not (name.isdecimal() or name.startswith(("GPU-", "MIG-"))):
            break
        found[name] = None
    return tuple(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Gpu:
    """A GPU and how much of its energy counts."""

    name: str
    handle: Any
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reading:
    """Where one GPU's counter stands, in millijoules since its driver was loaded."""

    name: str
    counter_mj: int
    share: float


class NvmlMeter(CountingMeter[tuple[_Reading, ...]]):
    """The energy of all ``devices`` together: indices in NVML's order, which is CUDA's under
    CUDA_DEVICE_ORDER=PCI_BUS_ID and on machines with GPUs of one kind, or UUIDs of GPUs and MIG devices.

    It is the boards' whole energy, their memory with it, and nothing of the host. A MIG device has no counter of its
    own: it has the share of its compute slices in its GPU's, whatever its neighbours do. Likewise ``share`` is the part
    of GPUs that several engines use without MIG. Either way the uncertainty grows by what is not its own.
    ``idle_w`` is what the engine's part draws without work, in watts; None is not known.
    """

    def __init__(self, devices: Sequence[str], *, idle_w: float | None, share: float = 1.0) -> None:
        require(bool(devices), "devices", devices, "must name at least one")
        require(0 < share <= 1, "share", share, "must be above 0 and at most 1")
        super().__init__(_Nvml(devices, idle_w, share))


class _Nvml:
    tick_s = _TICK_S

    def __init__(self, devices: Sequence[str], idle_w: float | None, share: float) -> None:
        import pynvml  # type: ignore[import-untyped]

        self._nvml: Any = pynvml
        self._devices = tuple(devices)
        self._idle_w = idle_w
        self._share = share
        self._initialized = False
        self._gpus: tuple[_Gpu, ...] = ()

    @property
    def method(self) -> str:
        if any(device.startswith("MIG-") for device in self._devices):
            return "nvml-total-energy/mig-share"
        return "nvml-total-energy" if self._share == 1 else "nvml-total-energy/gpu-share"

    def read(self) -> tuple[_Reading, ...]:
        if not self._initialized:
            with self._noted("NVML"):
                self._nvml.nvmlInit()
            self._initialized = True
        if not self._gpus:
            self._gpus = tuple(self._gpu(device) for device in self._devices)
        return tuple(self._reading(gpu) for gpu in self._gpus)

    def used(self, before: tuple[_Reading, ...], after: tuple[_Reading, ...], seconds: float) -> Used:
        most_mj = _GPU_W_MAX * (seconds + _TICK_S) * 1000
        energy_uj = 0
        for start, end in zip(before, after, strict=True):
            # Across a wrap the difference is as small as any. A counter that began anew is behind by far more.
            grown_mj = (end.counter_mj - start.counter_mj) % _COUNTER_WRAPS
            if grown_mj > most_mj:
                readings = f"from {start.counter_mj} to {end.counter_mj} mJ"
                raise CounterFailed(f"GPU {end.name}: its energy counter was reset, {readings}")
            energy_uj += round(grown_mj * 1000 * end.share)
        not_its_own = 1 - sum(reading.share for reading in after) / len(after)
        return Used(
            energy_uj=energy_uj,
            idle_uj=round((self._idle_w or 0.0) * seconds * UJ_PER_J),
            uncertainty=_COUNTER_UNCERTAINTY + not_its_own,
        )

    def describe(self) -> str:
        share = "" if self._share == 1 else f", {self._share:.3g} of each"
        idle = "idle power not known" if self._idle_w is None else f"{self._idle_w:g} W idle"
        return f"NVML's energy counters of GPU {', '.join(self._devices)}{share}; {idle}"

    def close(self) -> None:
        if self._initialized:
            self._initialized, self._gpus = False, ()
            with suppress(self._nvml.NVMLError):  # it is down already where the driver was unloaded
                self._nvml.nvmlShutdown()

    def _gpu(self, name: str) -> _Gpu:
        nvml, share = self._nvml, self._share
        with self._noted(f"GPU {name}"):
            if name.isdecimal():
                return _Gpu(name=name, handle=nvml.nvmlDeviceGetHandleByIndex(int(name)), share=share)
            handle = nvml.nvmlDeviceGetHandleByUUID(name)
            if name.startswith("MIG-"):
                # The compute slices, not the memory's: several MIG devices may divide the slices of one GPU instance.
                slices = nvml.nvmlDeviceGetAttributes_v2(handle).computeInstanceSliceCount
                handle = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
                share *= slices / nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
            return _Gpu(name=name, handle=handle, share=share)

    def _reading(self, gpu: _Gpu) -> _Reading:
        with self._noted(f"GPU {gpu.name}"):
            counter_mj = self._nvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)
            return _Reading(name=gpu.name, counter_mj=counter_mj, share=gpu.share)

    @contextmanager
    def _noted(self, about: str) -> Iterator[None]:
        """Turn NVML's errors into CounterFailed."""
        try:
            yield
        except self._nvml.NVMLError as error:
            if error.value != self._nvml.NVML_ERROR_NOT_SUPPORTED:
                self.close()  # after a reset or a new driver handles are void: the next reading asks for new ones
            raise CounterFailed(f"{about}: {error}") from error

"""Asking the driver which GPU there is, with a stand-in for its library."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Dict

import pytest

from gradseg.base.errors import GradsegError
from gradseg.runtime.cuda import gpu as gpu_module
from gradseg.runtime.cuda.gpu import ATTRIBUTES, Gpu, driver_version, find_gpu, gpu_or_reason, l4t_version, need_gpu


class Driver:
    """libcuda with one GPU; `codes` by function name are errors."""

    def __init__(self, codes: Dict[str, int], count: int = 1, missing: str = "") -> None:
        self.codes, self.count, self.missing = codes, count, missing
        values = {"major": 8, "minor": 7, "integrated": 1, "multiprocessors": 16, "clock_khz": 1_300_000}
        self.attributes = {ATTRIBUTES[name]: value for name, value in values.items()}

    def __getattr__(self, name: str) -> Any:
        if name == self.missing or not name.startswith("cu"):
            raise AttributeError(f"undefined symbol: {name}")
        return lambda *arguments: self.codes.get(name, 0) or getattr(Driver, f"_{name}")(self, *arguments) or 0

    def _cuInit(self, flags: int) -> None:  # noqa: N802
        pass

    def _cuDeviceGetCount(self, out: Any) -> None:  # noqa: N802
        out._obj.value = self.count

    def _cuDeviceGet(self, out: Any, number: int) -> None:  # noqa: N802
        out._obj.value = 5

    def _cuDriverGetVersion(self, out: Any) -> None:  # noqa: N802
        out._obj.value = 12060

    def _cuDeviceGetName(self, out: Any, size: int, device: Any) -> None:  # noqa: N802
        assert size == len(out) and device.value == 5
        out.value = b"Orin "

    def _cuDeviceTotalMem_v2(self, out: Any, device: Any) -> None:  # noqa: N802
        assert isinstance(out._obj, ctypes.c_size_t)
        out._obj.value = 64 << 30

    def _cuDeviceGetAttribute(self, out: Any, number: int, device: Any) -> int:  # noqa: N802
        out._obj.value = self.attributes.get(number, 77)
        return 0 if number in self.attributes else 1

    def _cuGetErrorName(self, code: int, out: Any) -> None:  # noqa: N802
        out._obj.value = b"CUDA_ERROR_SYSTEM_NOT_READY"


class Nvml:
    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlSystemGetDriverVersion(self, out: Any, size: int) -> int:  # noqa: N802
        out.value = b"570.86.15"
        return 0

    def nvmlShutdown(self) -> int:  # noqa: N802
        return 0


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dict[str, Any]:
    """The shared libraries and files that are there, for a test to fill."""
    libraries: Dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in libraries:
            raise OSError(f"{name}: cannot open shared object file")
        return libraries[name]

    monkeypatch.setattr(gpu_module.ctypes, "CDLL", load)
    monkeypatch.setattr(gpu_module, "TEGRA_RELEASE", tmp_path / "nv_tegra_release")
    monkeypatch.setattr(gpu_module, "KERNEL_MODULE", tmp_path / "version")
    libraries["tmp"] = tmp_path
    return libraries


def test_what_the_driver_says(machine: Dict[str, Any]) -> None:
    machine.update({"libcuda.so.1": Driver({}), "libnvidia-ml.so.1": Nvml()})
    assert (
        find_gpu()
        == need_gpu("x")
        == Gpu(
            name="Orin",
            compute_capability="sm87",
            driver="570.86.15",
            cuda="12.6",
            memory_bytes=64 << 30,
            integrated=True,
            multiprocessors=16,
            clock_khz=1_300_000,
            memory_clock_khz=0,  # not known to this driver
            memory_bus_bits=0,
            l2_bytes=0,
        )
    )


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (None, "this machine has none"),
        (Driver({"cuInit": 100}), "this machine has none"),
        (Driver({"cuInit": 34}), "this machine has none"),
        (Driver({}, count=0), "this machine has none"),
        (
            Driver({"cuInit": 802}),
            "this machine's driver answers CUDA_ERROR_SYSTEM_NOT_READY; see what nvidia-smi says",
        ),
        (Driver({"cuDeviceGetCount": 3, "cuGetErrorName": 1}), "this machine's driver answers CUDA error 3; see what"),
        (Driver({}, missing="cuDeviceGetCount"), "libcuda is not a driver (undefined symbol: cuDeviceGetCount)"),
    ],
)
def test_without_a_gpu(driver: Any, reason: str, machine: Dict[str, Any]) -> None:
    if driver is not None:
        machine["libcuda.so.1"] = driver
    assert find_gpu() is None and reason in gpu_or_reason()[1]
    with pytest.raises(GradsegError) as caught:
        need_gpu("m.plan: a TensorRT engine")
    assert str(caught.value).startswith("m.plan: a TensorRT engine needs an NVIDIA GPU with its driver; ")
    assert reason in str(caught.value) and caught.value.exit_code == 3


def test_versions_from_files(machine: Dict[str, Any]) -> None:
    assert driver_version() is None and l4t_version() is None
    release = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version:"
    (machine["tmp"] / "version").write_text(release)
    assert driver_version() == "535.104.05"
    line = "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1 19:57:35"
    (machine["tmp"] / "nv_tegra_release").write_text(line)
    assert l4t_version() == "35.4.1" and driver_version() == "L4T 35.4.1"

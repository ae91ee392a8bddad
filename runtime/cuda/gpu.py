"""Which NVIDIA GPU this machine has, asked of the driver itself: no cuda-python, pycuda or toolkit is needed.

The driver's library (libcuda.so.1) comes with the driver, on a Jetson with L4T. Nothing here creates a CUDA context, so
asking takes no GPU memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from gradseg.base.errors import GradsegError
from gradseg.runtime.diagnosis.jetpack import l4t_of

LIBRARIES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
NVML = ("libnvidia-ml.so.1", "nvml.dll")
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
STUB = 34  # CUDA_ERROR_STUB_LIBRARY: the toolkit's placeholder for a driver that is not there
TEGRA_RELEASE = Path("/etc/nv_tegra_release")
KERNEL_MODULE = Path("/proc/driver/nvidia/version")

# CUdevice_attribute in cuda.h; the values are part of the driver's ABI
ATTRIBUTES: Dict[str, int] = {
    "clock_khz": 13,  # CLOCK_RATE
    "multiprocessors": 16,  # MULTIPROCESSOR_COUNT
    "integrated": 18,  # INTEGRATED
    "memory_clock_khz": 36,  # MEMORY_CLOCK_RATE
    "memory_bus_bits": 37,  # GLOBAL_MEMORY_BUS_WIDTH
    "l2_bytes": 38,  # L2_CACHE_SIZE
    "major": 75,  # COMPUTE_CAPABILITY_MAJOR
    "minor": 76,  # COMPUTE_CAPABILITY_MINOR
}


@dataclass(frozen=True)
class Gpu:
    """CUDA's device 0.

    compute_capability: "sm87". driver: its version ("535.104.05", on a Jetson "L4T 35.4.1"), None if unknown. cuda: the
    newest CUDA that the driver supports ("12.2"). memory_bytes: all of it; on a Jetson it is the board's.
    integrated: shares the board's memory (Jetson). clock_khz, memory_clock_khz: peak rates as the driver states them,
    0 where it does not. memory_bus_bits: width. l2_bytes: size of the L2 cache.
    """

    name: str
    compute_capability: str
    driver: Optional[str]
    cuda: str
    memory_bytes: int
    integrated: bool
    multiprocessors: int
    clock_khz: int
    memory_clock_khz: int
    memory_bus_bits: int
    l2_bytes: int


def find_gpu() -> Optional[Gpu]:
    """CUDA's device 0; None if there is no driver or it has no device that this process may use."""
    return gpu_or_reason()[0]


def need_gpu(where: str) -> Gpu:
    """CUDA's device 0; GradsegError with exit code 3 naming `where` if there is none."""
    gpu, reason = gpu_or_reason()
    if gpu is None:
        raise GradsegError(f"{where} needs an NVIDIA GPU with its driver; {reason}", 3)
    return gpu


def gpu_or_reason() -> Tuple[Optional[Gpu], str]:
    """(device 0, "") or (None, why not): "this machine has none", or what the driver that is there answers."""
    driver = _load(LIBRARIES)
    if driver is None:
        return None, "this machine has none"
    try:
        code = int(driver.cuInit(0))
        count = ctypes.c_int()
        code = code or int(driver.cuDeviceGetCount(ctypes.byref(count)))
        if code in (NO_DEVICE, STUB) or (code == 0 and count.value < 1):
            return None, "this machine has none"
        if code != 0:
            return None, f"this machine's driver answers {error_name(driver, code)}; see what nvidia-smi says"
        return _describe(driver), ""
    except AttributeError as error:  # a library of that name without the driver API
        return None, f"this machine's libcuda is not a driver ({error})"


def _describe(driver: Any) -> Gpu:
    device, cuda, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    memory = ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDriverGetVersion(ctypes.byref(cuda))  # 12020 for 12.2
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    values: Dict[str, int] = {}
    for key, number in ATTRIBUTES.items():
        value = ctypes.c_int()
        known = int(driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)) == 0
        values[key] = value.value if known else 0
    return Gpu(
        name=name.value.decode("utf-8", "replace").strip(),
        compute_capability=f"sm{values.pop('major')}{values.pop('minor')}",
        driver=driver_version(),
        cuda=cuda_text(cuda.value),
        memory_bytes=int(memory.value),
        integrated=bool(values.pop("integrated")),
        **values,
    )


def cuda_text(number: int) -> str:
    """12020 → "12.2"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def driver_version() -> Optional[str]:
    """The driver's version: NVML's where there is one, else the kernel module's, else L4T's ("L4T 35.4.1")."""
    tegra = l4t_version()
    if tegra is not None:  # what NVML says on a Jetson is not the release that users know
        return f"L4T {tegra}"
    nvml = _load(NVML)
    if nvml is not None:
        with contextlib.suppress(AttributeError):
            if int(nvml.nvmlInit_v2()) == 0:
                text = ctypes.create_string_buffer(96)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE is 80
                found = int(nvml.nvmlSystemGetDriverVersion(text, len(text))) == 0
                nvml.nvmlShutdown()
                if found:
                    return text.value.decode("utf-8", "replace")
    match = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", _text(KERNEL_MODULE))
    return match.group(1) if match else None


def l4t_version() -> Optional[str]:
    """ "35.4.1" on a Jetson, from /etc/nv_tegra_release; None elsewhere."""
    return l4t_of(_text(TEGRA_RELEASE), None)


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text("utf-8", errors="replace")
    return ""


def _load(names: Tuple[str, ...]) -> Any:
    """The first of the shared libraries that the system's loader finds; None if it finds none."""
    for name in names:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None


def error_name(driver: Any, code: int) -> str:
    """CUDA's own name for an error ("CUDA_ERROR_SYSTEM_NOT_READY"), or its number."""
    text = ctypes.c_char_p()
    with contextlib.suppress(AttributeError):
        if int(driver.cuGetErrorName(code, ctypes.byref(text))) == 0 and text.value:
            return text.value.decode("utf-8", "replace")
    return f"CUDA error {code}"

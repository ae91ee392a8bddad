"""The GPU's clocks, temperature and power while it is measured, from NVML by ctypes. Python 3.8; nothing is changed."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any, Dict, List, Optional

LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
SM, MEMORY = 1, 2  # nvmlClockType_t
FIGURES = {  # NVML's function, what it is asked for, and the divisor of its answer
    "sm_mhz": ("nvmlDeviceGetClockInfo", (SM,), 1),
    "memory_mhz": ("nvmlDeviceGetClockInfo", (MEMORY,), 1),
    "temperature_c": ("nvmlDeviceGetTemperature", (0,), 1),
    "power_w": ("nvmlDeviceGetPowerUsage", (), 1000),
}


class Clocks:
    """Looks at NVML's device 0 whenever `look` is called; where there is no NVML, it finds nothing.

    library: the loaded NVML, found by default.
    """

    def __init__(self, library: Optional[Any] = None) -> None:
        self._nvml, self._device = library if library is not None else _load(), ctypes.c_void_p()
        self._seen: Dict[str, List[float]] = {}
        self._open = self._did("nvmlInit_v2") and self._did(
            "nvmlDeviceGetHandleByIndex_v2", 0, ctypes.byref(self._device)
        )

    def look(self) -> None:
        """Takes one sample of each."""
        for name, (function, asked, divisor) in FIGURES.items() if self._open else ():
            value = ctypes.c_uint()
            if self._did(function, self._device, *asked, ctypes.byref(value)):
                self._seen.setdefault(name, []).append(value.value / divisor)

    def summary(self) -> Optional[Dict[str, Any]]:
        """{"sm_mhz": {"min", "median", "max"}, …, "looks"}; None where NVML says nothing."""
        found: Dict[str, Any] = {}
        for name, values in self._seen.items():
            found[name] = {"min": min(values), "median": sorted(values)[len(values) // 2], "max": max(values)}
        return {**found, "looks": max(map(len, self._seen.values()))} if found else None

    def _did(self, name: str, *arguments: Any) -> bool:
        """Whether NVML has the function and it succeeds."""
        function = getattr(self._nvml, name, None)
        return function is not None and int(function(*arguments)) == 0


def _load() -> Optional[Any]:
    for name in LIBRARIES:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None

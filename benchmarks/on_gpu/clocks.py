"""The GPU's clocks, temperature and power while it is measured, from NVML by ctypes. Python 3.8; nothing is changed."""

from __future__ import annotations

import ctypes
from typing import Any, Dict, List, Optional

LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
SM, MEMORY = 1, 2  # nvmlClockType_t
NAMES = ("sm_mhz", "memory_mhz", "temperature_c", "power_w")


class Clocks:
    """Looks at NVML's device 0 whenever `look` is called; where there is no NVML, it finds nothing.

    library: the loaded NVML, found by default.
    """

    def __init__(self, library: Optional[Any] = None) -> None:
        self._nvml, self._device = library if library is not None else _load(), ctypes.c_void_p()
        self._seen: Dict[str, List[float]] = {name: [] for name in NAMES}
        if self._nvml is not None and not self._opened():
            self._nvml = None

    def look(self) -> None:
        """Takes one sample of each."""
        if self._nvml is None:
            return
        nvml = self._nvml
        values = (
            _asked(lambda value: nvml.nvmlDeviceGetClockInfo(self._device, SM, value), 1),
            _asked(lambda value: nvml.nvmlDeviceGetClockInfo(self._device, MEMORY, value), 1),
            _asked(lambda value: nvml.nvmlDeviceGetTemperature(self._device, 0, value), 1),
            _asked(lambda value: nvml.nvmlDeviceGetPowerUsage(self._device, value), 1000),
        )
        for name, value in zip(NAMES, values):
            if value is not None:
                self._seen[name].append(value)

    def summary(self) -> Optional[Dict[str, Any]]:
        """{"sm_mhz": {"min", "median", "max"}, …, "looks"}; None where NVML says nothing."""
        found: Dict[str, Any] = {}
        for name, values in self._seen.items():
            if values:
                ordered = sorted(values)
                found[name] = {"min": ordered[0], "median": ordered[len(ordered) // 2], "max": ordered[-1]}
        return {**found, "looks": max(len(values) for values in self._seen.values())} if found else None

    def _opened(self) -> bool:
        assert self._nvml is not None
        try:
            return (
                int(self._nvml.nvmlInit_v2()) == 0
                and int(self._nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._device))) == 0
            )
        except AttributeError:  # a library of that name without these functions
            return False


def _asked(function: Any, divisor: int) -> Optional[float]:
    value = ctypes.c_uint()
    try:
        return value.value / divisor if int(function(ctypes.byref(value))) == 0 else None
    except AttributeError:
        return None


def _load() -> Optional[Any]:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None

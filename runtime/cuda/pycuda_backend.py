"""CUDA through pycuda, for devices that have no cuda-python. It has no CUDA graphs.

pycuda works on the driver API: a thread must have a context of its own stack current. The primary context is used,
which TensorRT's runtime uses too, pushed for the time of each piece of work, in whichever thread does it.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any, Dict, Iterator, Optional, Tuple

import numpy as np

from gradseg.runtime.cuda.memory import Cuda


class CudaPycuda(Cuda):
    """See `Cuda`."""

    graphs = False

    def __init__(self, where: str, driver: Any) -> None:
        self._where, self._held = where, []
        self._driver, self._errors = driver, (driver.Error,)
        self._device_memory: Dict[int, Any] = {}
        driver.init()
        device = driver.Device(0)
        if hasattr(device, "retain_primary_context"):
            self._context = device.retain_primary_context()
        else:  # older pycuda: a context of its own, which making it also pushes
            self._context = device.make_context()
            self._context.pop()
        version = getattr(importlib.import_module("pycuda"), "VERSION_TEXT", "")
        self.name = f"pycuda {version}".strip()

    @classmethod
    def open(cls, where: str) -> Optional[CudaPycuda]:
        """None if pycuda is not there; RuntimeError if it does not work with this driver."""
        try:
            driver = importlib.import_module("pycuda.driver")
        except (ImportError, OSError):
            return None
        try:
            return cls(where, driver)
        except driver.Error as error:
            raise RuntimeError(f"pycuda does not work here ({error})") from error

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Pushes the context onto the calling thread's stack, and takes it off again."""
        self._context.push()
        try:
            yield
        except self._driver.Error as error:
            raise RuntimeError(str(error)) from error
        finally:
            self._context.pop()

    def stream(self) -> Any:
        return self._keep(self._driver.Stream(1))  # CU_STREAM_NON_BLOCKING; pycuda has no name for it

    def address_of(self, stream: Any) -> int:
        return int(stream.handle)

    def event(self, timed: bool = False) -> Any:
        flags = self._driver.event_flags
        return self._keep(self._driver.Event(flags.DEFAULT if timed else flags.DISABLE_TIMING))

    def pinned(self, shape: Tuple[int, ...]) -> np.ndarray[Any, Any]:
        try:
            array: np.ndarray[Any, Any] = self._driver.pagelocked_empty(shape, np.uint8)
        except self._driver.MemoryError as error:
            raise self._no_memory(int(np.prod(shape))) from error
        array[...] = 0
        self._held.append(array.base.free)  # type: ignore[union-attr]
        return array

    def device_buffer(self, count: int) -> int:
        try:
            memory = self._driver.mem_alloc(count)
        except self._driver.MemoryError as error:
            raise self._no_memory(count) from error
        self._device_memory[int(memory)] = memory
        self._held.append(memory.free)
        return int(memory)

    def upload(self, host: np.ndarray[Any, Any], device: int, stream: Any) -> None:
        self._driver.memcpy_htod_async(self._device_memory[device], host, stream)

    def download(self, device: int, host: np.ndarray[Any, Any], stream: Any) -> None:
        self._driver.memcpy_dtoh_async(host, self._device_memory[device], stream)

    def record(self, event: Any, stream: Any) -> None:
        event.record(stream)

    def wait_for(self, stream: Any, event: Any) -> None:
        stream.wait_for_event(event)

    def synchronise(self, stream: Any) -> None:
        stream.synchronize()

    def milliseconds(self, begin: Any, end: Any) -> float:
        return float(begin.time_till(end))

    def close(self) -> None:
        if self._context is None:
            return
        with contextlib.suppress(RuntimeError), self.current():
            super().close()
        self._device_memory.clear()
        with contextlib.suppress(self._driver.Error):
            self._context.detach()
        self._context = None

    def _keep(self, thing: Any) -> Any:
        """Streams and events have no `free`: they go when nobody holds them, which must be while the context lives."""
        self._held.append(lambda: thing)
        return thing

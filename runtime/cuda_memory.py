"""The few CUDA calls that an engine needs, through NVIDIA's cuda-python; both of its module layouts."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from typing import Any, Tuple

import numpy as np

from gradseg.models.errors import GradsegError

NEEDS = "needs an NVIDIA GPU with its driver and cuda-python"


def import_cudart(where: str) -> Any:
    """The runtime-API module of cuda-python; GradsegError with exit code 3 if it cannot be imported."""
    for name in ("cuda.bindings.runtime", "cuda.cudart"):  # since 12.8, and before
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError):  # the latter two without the driver's libraries
            continue
    raise GradsegError(f"{where} {NEEDS}; cuda-python cannot be imported here: pip install cuda-python", 3)


class Cuda:
    """Device 0, one stream, pinned host buffers. Raises GradsegError (exit code 3) where there is no GPU."""

    def __init__(self, where: str) -> None:
        self._rt = import_cudart(where)
        try:
            result = self._rt.cudaGetDeviceCount()
        except RuntimeError as error:  # cuda-python without a driver to load
            raise GradsegError(f"{where} {NEEDS}; this machine has no usable GPU ({error})", 3) from error
        if int(result[0]) != 0 or int(result[1]) < 1:
            raise GradsegError(f"{where} {NEEDS}; this machine has no usable GPU", 3)
        properties = self.call("cudaGetDeviceProperties", 0)
        raw = properties.name
        self.device = (raw.decode() if isinstance(raw, bytes) else str(raw)).rstrip("\0")
        self.compute_capability = f"sm{properties.major}{properties.minor}"
        self.stream = self.call("cudaStreamCreate")
        self._host: list[int] = []
        self._device_memory: list[int] = []

    def call(self, name: str, *arguments: Any) -> Any:
        """One runtime-API call; RuntimeError with CUDA's own name for what went wrong."""
        result = getattr(self._rt, name)(*arguments)
        if int(result[0]) != 0:
            raise RuntimeError(f"{name}: {result[0]}")
        return result[1] if len(result) > 1 else None

    def pinned(self, shape: Tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        """Page-locked host array, so that copies need no staging; valid until `close`."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pointer = int(self.call("cudaMallocHost", count))
        self._host.append(pointer)
        raw = (ctypes.c_uint8 * count).from_address(pointer)
        array: np.ndarray[Any, Any] = np.frombuffer(raw, np.uint8).view(dtype).reshape(shape)
        return array

    def device_buffer(self, count: int) -> int:
        """Device memory of `count` bytes: its address, valid until `close`."""
        pointer = int(self.call("cudaMalloc", count))
        self._device_memory.append(pointer)
        return pointer

    def upload(self, host: np.ndarray[Any, Any], device: int) -> None:
        """Queues a copy host → device."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", device, host.ctypes.data, host.nbytes, kind, self.stream)

    def download(self, device: int, host: np.ndarray[Any, Any]) -> None:
        """Queues a copy device → host."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", host.ctypes.data, device, host.nbytes, kind, self.stream)

    def wait(self) -> None:
        """Until everything queued is done."""
        self.call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Frees every buffer and the stream, each once, even if CUDA reports an error for one of them."""
        held = [("cudaFree", pointer) for pointer in self._device_memory]
        held += [("cudaFreeHost", pointer) for pointer in self._host]
        held += [("cudaStreamDestroy", self.stream)] if self.stream is not None else []
        self._device_memory, self._host, self.stream = [], [], None
        for name, what in held:
            with contextlib.suppress(RuntimeError):  # an earlier fault on the GPU is reported here once more
                self.call(name, what)

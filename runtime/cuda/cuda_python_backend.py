"""CUDA through NVIDIA's cuda-python, versions 11.5 to 13: both module layouts, by the names that all of them have.

`cudaStreamSynchronize` is the only wait used: every version lets other Python threads run during it, while
`cudaEventSynchronize` holds Python's lock in versions before 12.9. Graphs are instantiated by
`cudaGraphInstantiateWithFlags`, since `cudaGraphInstantiate` takes other arguments in 11 than in 12. Streams, events
and graphs are passed as the objects that cuda-python gave: 11.5 takes no plain integers for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import threading
from typing import Any, Callable, Iterator, List, Optional, Tuple

import numpy as np

from gradseg.runtime.cuda.memory import Cuda

LAYOUTS = ("cuda.bindings.runtime", "cuda.cudart")  # since 12.6 (and 11.8.6), and before
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


def import_cudart() -> Optional[Any]:
    """The runtime-API module of cuda-python; None if there is none that can be loaded."""
    for name in LAYOUTS:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError):  # the latter two without the libraries that it loads
            continue
    return None


class CudaPython(Cuda):
    """See `Cuda`."""

    graphs = True

    def __init__(self, where: str, runtime: Any) -> None:
        self._where, self._held = where, []
        self._rt = runtime
        self._graphs: List[Any] = []
        self._thread = threading.local()
        self.name = f"cuda-python {_version(runtime)}".strip()
        with self.current():
            pass

    @classmethod
    def open(cls, where: str) -> Optional[CudaPython]:
        """None if cuda-python is not there; RuntimeError if it does not work with this driver."""
        runtime = import_cudart()
        try:
            return None if runtime is None else cls(where, runtime)
        except RuntimeError as error:
            name = f"cuda-python {_version(runtime)}".strip()
            raise RuntimeError(f"{name} does not work here ({error})") from error

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """CUDA's runtime has a current device per thread; it is set the first time that a thread comes."""
        if not getattr(self._thread, "ready", False):
            self._call("cudaSetDevice", 0)
            self._thread.ready = True
        yield

    def stream(self) -> Any:
        return self._take("cudaStreamDestroy", "cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking)

    def address_of(self, stream: Any) -> int:
        return int(stream)

    def event(self, timed: bool = False) -> Any:
        flags = self._rt.cudaEventDefault if timed else self._rt.cudaEventDisableTiming
        return self._take("cudaEventDestroy", "cudaEventCreateWithFlags", flags)

    def pinned(self, shape: Tuple[int, ...]) -> np.ndarray[Any, Any]:
        count = int(np.prod(shape))
        pointer = int(self._take("cudaFreeHost", "cudaMallocHost", count))
        memory: Any = (ctypes.c_uint8 * count).from_address(pointer)
        array: np.ndarray[Any, Any] = np.frombuffer(memory, np.uint8).reshape(shape)
        array[...] = 0
        return array

    def device_buffer(self, count: int) -> int:
        return int(self._take("cudaFree", "cudaMalloc", count))

    def upload(self, host: np.ndarray[Any, Any], device: int, stream: Any) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", device, host.ctypes.data, host.nbytes, kind, stream)

    def download(self, device: int, host: np.ndarray[Any, Any], stream: Any) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host.ctypes.data, device, host.nbytes, kind, stream)

    def record(self, event: Any, stream: Any) -> None:
        self._call("cudaEventRecord", event, stream)

    def wait_for(self, stream: Any, event: Any) -> None:
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def synchronise(self, stream: Any) -> None:
        self._call("cudaStreamSynchronize", stream)

    def milliseconds(self, begin: Any, end: Any) -> float:
        return float(self._call("cudaEventElapsedTime", begin, end))

    def capture(self, stream: Any, work: Callable[[], bool]) -> Any:
        # thread-local: what other threads do to the GPU meanwhile does not spoil the capture
        self._call("cudaStreamBeginCapture", stream, self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        queued = False
        try:
            queued = work()
        finally:  # a stream left in capture could not be used again
            graph, reason = self._end_capture(stream, queued)
        if graph is None:
            raise RuntimeError(reason)
        try:
            self._graphs.append(self._call("cudaGraphInstantiateWithFlags", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)
        return self._graphs[-1]

    def _end_capture(self, stream: Any, queued: bool) -> Tuple[Optional[Any], str]:
        """(graph, "") or (None, why there is none); what a failed capture leaves behind is cleared."""
        ended = self._rt.cudaStreamEndCapture(stream)
        whole = _code(ended[0]) == 0
        if whole and queued:
            return ended[1], ""
        if whole:
            self._call("cudaGraphDestroy", ended[1])
        self._rt.cudaGetLastError()
        return None, "TensorRT refused to queue it" if whole else f"cudaStreamEndCapture: {_named(ended[0])}"

    def launch(self, graph: Any, stream: Any) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def drop_graphs(self) -> None:
        while self._graphs:
            with contextlib.suppress(RuntimeError):  # an earlier fault on the GPU is reported here once more
                self._call("cudaGraphExecDestroy", self._graphs.pop())

    def close(self) -> None:
        with contextlib.suppress(RuntimeError), self.current():
            self.drop_graphs()
            super().close()

    def _take(self, give_back: str, name: str, *arguments: Any) -> Any:
        """A call that allocates, and how `close` undoes it."""
        found = self._call(name, *arguments)
        self._held.append(lambda: self._call(give_back, found))
        return found

    def _call(self, name: str, *arguments: Any) -> Any:
        """One runtime-API call, its value, if it has one."""
        result = getattr(self._rt, name)(*arguments)
        code = _code(result[0])
        if code == OUT_OF_MEMORY and name in ("cudaMalloc", "cudaMallocHost"):
            raise self._no_memory(int(arguments[0]))
        if code != 0:
            raise RuntimeError(f"{name}: {_named(result[0])}")
        return result[1] if len(result) > 1 else None


def _code(error: Any) -> int:
    return int(getattr(error, "value", error))  # 11.5's enums are no integers


def _named(error: Any) -> str:
    return str(getattr(error, "name", error))


def _version(runtime: Any) -> str:
    """Of cuda-bindings where it says so ("12.6.2"), else of the package that came before it."""
    for name in (str(getattr(runtime, "__name__", "")).rpartition(".")[0], "cuda"):
        try:
            version = getattr(importlib.import_module(name), "__version__", None)
        except (ImportError, ValueError):
            continue
        if version is not None:
            return str(version)
    return ""

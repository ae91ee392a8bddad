"""A stand-in GPU for the runtime's tests: streams and events whose work runs as late, as early, or in as odd an order
as CUDA allows, in memory of the host's. What a program reads or writes too early comes out wrong.

`cuda_python(device)` and `pycuda(device)` are the modules of that name on top of it; signatures and values are those
recorded in cuda_surface.json (see test_cuda_backends.py).
"""

from __future__ import annotations

import ctypes
import random
import threading
import types
import weakref
from typing import Any, Callable, List, MutableMapping, Optional, Tuple

import numpy as np


class CaptureError(Exception):
    """Something that a stream in capture does not allow."""


class Event:
    def __init__(self, timed: bool) -> None:
        self.timed, self.issued, self.happened, self.clock = timed, 0, 0, 0.0
        self.streams: List[Any] = [None]  # where record number n was queued

    def __int__(self) -> int:
        return id(self)


class Stream:
    def __init__(self) -> None:
        self.queue: List[Tuple[str, Any, int]] = []
        self.capturing: Optional[List[Callable[[], None]]] = None

    def __int__(self) -> int:
        return id(self)


class Device:
    """mode: "late" runs nothing before the host waits for it; "early" runs at once what may run; a number: the seed of
    an order in between. `waits = False` breaks waiting for events, to see that the tests notice."""

    def __init__(self, mode: Any = "late") -> None:
        self.mode, self.random = mode, random.Random(mode if isinstance(mode, int) else 0)
        self.memory: MutableMapping[int, Any] = {}
        self.pinned: MutableMapping[int, int] = {}
        self.streams: MutableMapping[int, Stream] = {}
        self.events: MutableMapping[int, Event] = {}
        self.graphs: MutableMapping[int, Any] = {}
        self.executables: MutableMapping[int, Any] = {}
        self.clock, self.waits, self.invalid = 0.0, True, False
        self.threads: List[int] = []
        self.calls: List[str] = []

    @property
    def held(self) -> int:
        """How much of anything was not given back."""
        return sum(map(len, (self.memory, self.streams, self.events, self.graphs, self.executables)))

    # -- memory

    def allocate(self, count: int, pinned: bool) -> int:
        buffer = (ctypes.c_uint8 * count)(*([0xA5] * min(count, 64)))
        address = ctypes.addressof(buffer)
        self.memory[address] = buffer
        if pinned:
            self.pinned[address] = count
        return address

    def free(self, address: int) -> None:
        del self.memory[address]
        self.pinned.pop(address, None)

    def view(self, address: int, count: int) -> np.ndarray[Any, Any]:
        assert ctypes.sizeof(self.memory[address]) >= count, "beyond the end of a buffer"
        return np.frombuffer(self.memory[address], np.uint8, count)

    def copy(self, target: int, source: int, count: int, to_device: bool, stream: Stream) -> None:
        host = source if to_device else target
        assert self.pinned[host] == count, "the host's side of an asynchronous copy is page-locked"
        self.queue(stream, lambda: np.copyto(self.view(target, count), self.view(source, count)))

    # -- streams

    def queue(self, stream: Stream, work: Callable[[], None]) -> None:
        if stream.capturing is not None:
            stream.capturing.append(work)
        else:
            self.streams[id(stream)].queue.append(("work", work, 0))
        self.run_some()

    def record(self, event: Event, stream: Stream) -> None:
        assert stream.capturing is None
        event.issued += 1
        event.streams.append(stream)
        stream.queue.append(("record", event, event.issued))
        self.run_some()

    def wait_for(self, stream: Stream, event: Event) -> None:
        assert stream.capturing is None
        if event.issued and self.waits:  # an event that was never recorded is not waited for
            stream.queue.append(("wait", event, event.issued))
        self.run_some()

    def runnable(self, stream: Stream) -> bool:
        if not stream.queue:
            return False
        kind, what, number = stream.queue[0]
        return kind != "wait" or what.happened >= number

    def run_one(self, stream: Stream) -> None:
        """The first thing in a stream's queue, and before it whatever it waits for."""
        kind, what, number = stream.queue[0]
        while kind == "wait" and what.happened < number:
            self.run_one(what.streams[number])
        stream.queue.pop(0)
        self.clock += 1.0
        if kind == "work":
            what()
        elif kind == "record":
            what.happened, what.clock = number, self.clock

    def run_some(self) -> None:
        if self.mode == "late":
            return
        while True:
            able = [stream for stream in self.streams.values() if self.runnable(stream)]
            if not able or (self.mode != "early" and self.random.random() < 0.5):
                return
            self.run_one(self.random.choice(able))

    def synchronise(self, stream: Stream) -> None:
        if stream.capturing is not None:
            self.invalid = True
            raise CaptureError
        while stream.queue:
            self.run_one(stream)


def cuda_python(device: Device, graphs: str = "") -> Any:
    """The module cuda.bindings.runtime. graphs: the name of a function that fails, for captures that cannot be."""
    made: Any = types.ModuleType("cuda.bindings.runtime")

    def known(thing: Any, kind: Any, among: MutableMapping[int, Any]) -> Any:
        assert isinstance(thing, kind) and int(thing) in among, "cuda-python 11.5 takes its own objects only"
        return thing

    def function(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            assert len(arguments) == work.__code__.co_argcount, work.__name__
            device.calls.append(work.__name__)
            if work.__name__ == graphs:
                return (801, None)  # cudaErrorNotSupported
            if work.__name__ not in ("cudaSetDevice", "cudaGetLastError"):
                assert threading.get_ident() in device.threads, "no device was set in this thread"
            try:
                found = work(*arguments)
            except CaptureError:
                return (900, None)  # cudaErrorStreamCaptureUnsupported
            return (0,) if found is None else (0, found)

        setattr(made, work.__name__, call)
        return call

    def kept(thing: Any, among: MutableMapping[int, Any]) -> Any:
        among[int(thing)] = thing
        return thing

    @function
    def cudaSetDevice(number: int) -> None:  # noqa: N802
        device.threads.append(threading.get_ident())

    @function
    def cudaGetLastError() -> None:  # noqa: N802
        pass

    @function
    def cudaStreamCreateWithFlags(flags: int) -> Any:  # noqa: N802
        assert flags == made.cudaStreamNonBlocking
        return kept(Stream(), device.streams)

    @function
    def cudaStreamDestroy(stream: Any) -> None:  # noqa: N802
        del device.streams[int(stream)]

    @function
    def cudaStreamSynchronize(stream: Any) -> None:  # noqa: N802
        device.synchronise(known(stream, Stream, device.streams))

    @function
    def cudaStreamWaitEvent(stream: Any, event: Any, flags: int) -> None:  # noqa: N802
        device.wait_for(known(stream, Stream, device.streams), known(event, Event, device.events))

    @function
    def cudaEventCreateWithFlags(flags: int) -> Any:  # noqa: N802
        return kept(Event(flags == made.cudaEventDefault), device.events)

    @function
    def cudaEventDestroy(event: Any) -> None:  # noqa: N802
        del device.events[int(event)]

    @function
    def cudaEventRecord(event: Any, stream: Any) -> None:  # noqa: N802
        device.record(known(event, Event, device.events), known(stream, Stream, device.streams))

    @function
    def cudaEventElapsedTime(start: Any, end: Any) -> float:  # noqa: N802
        assert start.timed and end.timed and start.happened == start.issued and end.happened == end.issued
        return float(end.clock - start.clock)

    @function
    def cudaMalloc(size: int) -> int:  # noqa: N802
        if any(stream.capturing is not None for stream in device.streams.values()):
            raise CaptureError
        return device.allocate(size, False)

    @function
    def cudaMallocHost(size: int) -> int:  # noqa: N802
        return device.allocate(size, True)

    @function
    def cudaFree(pointer: int) -> None:  # noqa: N802
        device.free(pointer)

    @function
    def cudaFreeHost(pointer: int) -> None:  # noqa: N802
        device.free(pointer)

    @function
    def cudaMemcpyAsync(dst: int, src: int, count: int, kind: Any, stream: Any) -> None:  # noqa: N802
        up = kind is made.cudaMemcpyKind.cudaMemcpyHostToDevice
        assert up or kind is made.cudaMemcpyKind.cudaMemcpyDeviceToHost
        device.copy(dst, src, count, up, known(stream, Stream, device.streams))

    @function
    def cudaStreamBeginCapture(stream: Any, mode: Any) -> None:  # noqa: N802
        assert mode is made.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal and stream.capturing is None
        stream.capturing, device.invalid = [], False

    @function
    def cudaStreamEndCapture(stream: Any) -> Any:  # noqa: N802
        work, stream.capturing = stream.capturing, None
        if device.invalid:
            raise CaptureError
        return kept(Graph(work), device.graphs)

    @function
    def cudaGraphInstantiateWithFlags(graph: Any, flags: int) -> Any:  # noqa: N802
        return kept(Graph(list(known(graph, Graph, device.graphs).work)), device.executables)

    @function
    def cudaGraphDestroy(graph: Any) -> None:  # noqa: N802
        del device.graphs[int(graph)]

    @function
    def cudaGraphExecDestroy(graphExec: Any) -> None:  # noqa: N802, N803
        del device.executables[int(graphExec)]

    @function
    def cudaGraphLaunch(graphExec: Any, stream: Any) -> None:  # noqa: N802, N803
        for work in known(graphExec, Graph, device.executables).work:
            device.queue(stream, work)

    made.cudaStreamNonBlocking, made.cudaEventDefault, made.cudaEventDisableTiming = 1, 0, 2
    made.cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=object(), cudaMemcpyDeviceToHost=object())
    made.cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=object())
    return made


class Graph:
    def __init__(self, work: List[Callable[[], None]]) -> None:
        self.work = work

    def __int__(self) -> int:
        return id(self)


def pycuda(device: Device, primary: bool = True) -> Any:
    """The module pycuda.driver. primary: False for one so old that it cannot retain the primary context."""
    made: Any = types.ModuleType("pycuda.driver")
    # pycuda's streams and events are destroyed when nobody holds them any more
    device.streams, device.events = weakref.WeakValueDictionary(), weakref.WeakValueDictionary()
    made.Error = type("Error", (Exception,), {})
    made.MemoryError = type("MemoryError", (made.Error, MemoryError), {})
    made.contexts, current = 0, threading.local()

    def check() -> None:
        assert getattr(current, "stack", []), "no context is current in this thread"

    class Context:
        def push(self) -> None:
            current.stack = [*getattr(current, "stack", []), self]

        def pop(self) -> None:
            current.stack = current.stack[:-1]

        def detach(self) -> None:
            made.contexts -= 1

    def retain() -> Any:
        made.contexts += 1
        return Context()

    def make() -> Any:
        context = retain()
        context.push()
        return context

    def new_device(number: int) -> Any:
        way = {"retain_primary_context": retain} if primary else {"make_context": make}
        return types.SimpleNamespace(**way)

    class DriverStream(Stream):
        def __init__(self, flags: int) -> None:
            check()
            super().__init__()
            device.streams[id(self)], self.handle = self, id(self)

        def synchronize(self) -> None:
            check()
            device.synchronise(self)

        def wait_for_event(self, event: Any) -> None:
            check()
            device.wait_for(self, event)

    class DriverEvent(Event):
        def __init__(self, flags: int) -> None:
            check()
            super().__init__(flags == made.event_flags.DEFAULT)
            device.events[id(self)] = self

        def record(self, stream: Any) -> None:
            check()
            device.record(self, stream)

        def time_till(self, end: Any) -> float:
            assert self.timed and end.timed
            return float(end.clock - self.clock)

    class Memory:
        def __init__(self, count: int, pinned: bool = False) -> None:
            check()
            self.address = device.allocate(count, pinned)

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            check()
            device.free(self.address)

    def pagelocked_empty(shape: Any, dtype: Any) -> Any:
        memory = Memory(int(np.prod(shape)), True)
        array = np.frombuffer(device.memory[int(memory)], dtype).reshape(shape).view(Based)
        array.owner = memory
        return array

    class Based(np.ndarray):  # type: ignore[type-arg]
        """NumPy lets only C code set `base` to an allocation."""

        owner: Any

        @property
        def base(self) -> Any:
            return self.owner

    def copies(to_device: bool) -> Any:
        def copy(target: Any, source: Any, stream: Any) -> None:
            check()
            host = source if to_device else target
            ends = [int(end) if isinstance(end, Memory) else end.ctypes.data for end in (target, source)]
            device.copy(ends[0], ends[1], host.nbytes, to_device, stream)

        return copy

    made.init, made.Device, made.Stream, made.Event = lambda: None, new_device, DriverStream, DriverEvent
    made.event_flags = types.SimpleNamespace(DEFAULT=0, DISABLE_TIMING=2)
    made.pagelocked_empty, made.mem_alloc = pagelocked_empty, Memory
    made.memcpy_htod_async, made.memcpy_dtoh_async = copies(True), copies(False)
    return made

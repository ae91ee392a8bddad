"""The few CUDA calls that an engine needs, through whichever of cuda-python and pycuda the device has."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, ContextManager, List, Protocol, Tuple, Type

import numpy as np

from gradseg.base.errors import GradsegError


class Cuda(Protocol):
    """Device 0: streams, events, page-locked and device memory, CUDA graphs. One thread at a time uses it.

    Everything taken is kept in `_held` and given back by `close`. Streams and events are the backend's own objects.
    What CUDA refuses raises RuntimeError with CUDA's own name for it; too little memory a GradsegError (exit code 3).

    name: the library and its version. graphs: whether it can capture CUDA graphs.
    """

    name: str
    graphs: bool
    _errors: Tuple[Type[BaseException], ...] = (RuntimeError,)  # what the backend raises when CUDA reports an error
    _where: str
    _held: List[Callable[[], Any]]

    def current(self) -> ContextManager[Any]:
        """While entered, the calling thread's CUDA calls and TensorRT's go to this device."""

    def stream(self) -> Any:
        """A new stream that does not wait for the default stream."""

    def address_of(self, stream: Any) -> int:
        """The stream as TensorRT takes it."""

    def event(self, timed: bool = False) -> Any:
        """A new event; only a timed one has a time (`milliseconds`), the others cost less."""

    def pinned(self, shape: Tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Page-locked host array, uint8, zeros: the GPU copies from and to it by itself. Valid until `close`."""

    def device_buffer(self, count: int) -> int:
        """Device memory of `count` bytes: its address, valid until `close`."""

    def upload(self, host: np.ndarray[Any, Any], device: int, stream: Any) -> None:
        """Queues a copy host → device; `host` must stay as it is until the stream is past it."""

    def download(self, device: int, host: np.ndarray[Any, Any], stream: Any) -> None:
        """Queues a copy device → host; `host` is valid once the stream is past it."""

    def record(self, event: Any, stream: Any) -> None:
        """Queues: the event happens when the stream comes to here."""

    def wait_for(self, stream: Any, event: Any) -> None:
        """Queues: the stream goes on when the event's latest `record` has happened. The caller does not wait."""

    def synchronise(self, stream: Any) -> None:
        """Waits until everything queued on the stream is done; other Python threads run meanwhile."""

    def milliseconds(self, begin: Any, end: Any) -> float:
        """Time between two timed events that have happened."""

    def capture(self, stream: Any, work: Callable[[], bool]) -> Any:
        """What `work` queues on `stream`, recorded as a CUDA graph for `launch` instead of being run.

        RuntimeError saying why if it cannot be captured; the stream is as before then.
        """
        raise RuntimeError(f"{self.name} has no CUDA graphs")

    def launch(self, graph: Any, stream: Any) -> None:
        """Queues a captured graph."""
        raise RuntimeError(f"{self.name} has no CUDA graphs")

    def drop_graphs(self) -> None:
        """Destroys the captured graphs; none of them may be under way."""
        return

    def close(self) -> None:
        """Gives back all that was taken, latest first, each once, even if CUDA reports an error for one of them.

        The caller has waited for its streams, and holds none of the streams, events and graphs any more.
        """
        while self._held:
            with contextlib.suppress(*self._errors):  # an earlier fault on the GPU is reported here once more
                self._held.pop()()

    def _no_memory(self, count: int) -> GradsegError:
        return GradsegError(
            f"{self._where}: not enough memory for {count / 1e6:.1f} MB more; close other programs that use the GPU", 3
        )

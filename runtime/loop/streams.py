"""Two frames at once on a CPU: two copies of an engine with half of the threads each."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import Any, Callable, Deque, List, Optional, Tuple

import numpy as np

from gradseg.base.conditions import usable_cores
from gradseg.base.errors import GradsegError
from gradseg.runtime.engines.protocol import Engine, check_batch, overlapping, staged
from gradseg.runtime.loop.channels import Channel

Result = Tuple[Any, Optional[BaseException]]


class _Stream:
    """One copy with the thread that runs it. batch: uint8 (batch, h, w, 3) that it reads; written while it is idle."""

    def __init__(self, engine: Engine, number: int) -> None:
        own = staged(engine)
        self.engine = engine
        shape = (engine.batch, *engine.frame_hw, 3)
        self.batch: np.ndarray[Any, Any] = np.zeros(shape, np.uint8) if own is None else own.staging
        self.jobs: Channel[bool] = Channel(1)
        self.results: Channel[Result] = Channel(1)
        self._thread = threading.Thread(target=self._run, name=f"stream {number}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self.jobs.get() is not None:
            try:
                result: Result = (self.engine.infer(self.batch), None)
            except BaseException as error:  # noqa: BLE001 raised again where the labels are asked for
                result = (None, error)
            self.results.put(result)

    def close(self) -> None:
        self.jobs.close()
        self._thread.join()
        self.engine.close()


class Streams:
    """An engine made of two. See `engines.protocol.Engine` and `Overlapping`.

    More frames per second than one copy with all threads: the threads of one network wait for each other after every
    layer, and the more so while capture has one's core. A frame takes longer, so it is for recordings, not for cameras.

    Args:
        engines: two that give the same labels; closed with this one.
    """

    def __init__(self, engines: Tuple[Engine, Engine]) -> None:
        first = engines[0]
        self.spec, self.name, self.backend, self.device = first.spec, first.name, first.backend, first.device
        self.precision, self.batch, self.frame_hw = first.precision, first.batch, first.frame_hw
        self.threads: Optional[int] = sum(engine.threads or 0 for engine in engines)
        self.provider = getattr(first, "provider", None)
        self.streams = len(engines)
        self._all = [_Stream(engine, number) for number, engine in enumerate(engines)]
        self._under_way: Deque[_Stream] = deque()

    def _free(self) -> _Stream:
        for stream in self._all:
            if stream not in self._under_way:
                return stream
        raise RuntimeError(f"{self.name}: two batches are under way; finish() one first")

    @property
    def staging(self) -> np.ndarray[Any, Any]:
        """uint8 BGR (batch, h, w, 3) to preprocess into: the next `begin` or `infer` of it copies nothing."""
        return self._free().batch

    def begin(self, batch: np.ndarray[Any, Any]) -> None:
        """Starts uint8 BGR (batch, h, w, 3) and returns. `batch` may be written at once, unless it is `staging`."""
        check_batch(batch, self.batch, self.frame_hw)
        stream = self._free()
        if batch.ctypes.data != stream.batch.ctypes.data:
            np.copyto(stream.batch, batch)
        if not stream.jobs.put(True):
            raise RuntimeError(f"{self.name}: is closed")
        self._under_way.append(stream)

    def finish(self) -> np.ndarray[Any, Any]:
        """Waits for the batch begun first: its uint8 labels (batch, h, w), valid until the next `begin` or `infer`."""
        if not self._under_way:
            raise RuntimeError(f"{self.name}: finish() without begin()")
        result = self._under_way[0].results.get()
        self._under_way.popleft()
        assert result is not None
        labels, error = result
        if error is not None:
            raise error
        return labels  # type: ignore[no-any-return]

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 BGR (batch, h, w, 3) → uint8 labels (batch, h, w), valid until the next call."""
        if self._under_way:
            raise RuntimeError(f"{self.name}: infer() while begun batches are not finished")
        self.begin(batch)
        return self.finish()

    def close(self) -> None:
        """Waits for what is under way and releases both. Calling it twice is harmless."""
        streams, self._all = self._all, []
        for stream in streams:
            stream.close()
        self._under_way.clear()


def two_streams(opened: Callable[[Optional[int]], Engine], threads: Optional[int]) -> Engine:
    """`opened(threads)`, which opens an engine, as two copies that share the threads (None: all usable cores).

    A single one where there is but one thread, or where the engine computes on a GPU or overlaps frames by itself.
    """
    total = usable_cores() if threads is None else threads
    if total < 2:
        return opened(threads)
    made: List[Engine] = [opened(total // 2)]
    if made[0].threads is None or overlapping(made[0]) is not None:
        return made[0]
    try:
        made.append(opened(total - total // 2))
    except BaseException:
        with contextlib.suppress(GradsegError):
            made[0].close()
        raise
    return Streams((made[0], made[1]))

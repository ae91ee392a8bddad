"""What a run of the loop did, and what its threads took of the cores."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Optional

import cv2

from gradseg.base.conditions import usable_cores
from gradseg.base.errors import GradsegError
from gradseg.runtime.engines.protocol import Engine


@dataclass
class Outcome:
    """What a run did.

    error: what ended it, if something broke; its kind decides the exit code. hung: threads that did not come back,
    whose source or engine must not be closed under them. latency_ms: per stage, see `report.STAGES`. cpu_ms: what a
    finished frame cost each thread, see `CpuTimes`.
    """

    frames_in: int = 0
    frames_done: int = 0
    frames_dropped: int = 0
    duration_s: float = 0.0
    reason: str = ""
    exit_code: int = 0
    error: Optional[BaseException] = None
    warnings: List[str] = field(default_factory=list)
    hung: List[str] = field(default_factory=list)
    latency_ms: Dict[str, Dict[str, Optional[float]]] = field(default_factory=dict)
    cpu_ms: Dict[str, float] = field(default_factory=dict)

    @property
    def fps(self) -> float:
        """Frames through the whole loop per second of wall time."""
        return self.frames_done / self.duration_s if self.duration_s > 0 else 0.0


def exit_code_of(error: BaseException) -> int:
    """What a process that an error ends exits with."""
    if isinstance(error, GradsegError):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


class CpuTimes:
    """CPU time of the loop's threads, to see which takes the engine's cores.

    "source", "inference", "sink": the three threads; "inference" has the engine's own share that runs in the caller.
    "others": all other threads of this process, such as the engine's workers, a decoder's or an encoder's.
    """

    def __init__(self) -> None:
        self._threads: Dict[str, float] = {}
        self._begin = self._process = self._main = 0.0

    def start(self) -> None:
        """To be called in the thread that runs "sink"."""
        self._begin, self._main = time.process_time(), _thread_time()

    def thread_ends(self, name: str) -> None:
        """To be called in the thread of that name when its work is over."""
        self._threads[name] = _thread_time() - (self._main if name == "sink" else 0.0)

    def stop(self) -> None:
        self._process = time.process_time() - self._begin

    def per_frame(self, frames: int) -> Dict[str, float]:
        """Milliseconds per frame of each and of the whole "process"; {} without a frame or before `stop`."""
        if not frames or not self._process:
            return {}
        times = {name: self._threads.get(name, 0.0) for name in ("source", "inference", "sink")}
        times["others"] = max(0.0, self._process - sum(times.values()))
        times["process"] = self._process
        return {name: round(1e3 * value / frames, 4) for name, value in times.items()}


def _thread_time() -> float:
    clock = getattr(time, "thread_time", None)  # not on every system
    return float(clock()) if clock is not None else 0.0


@contextlib.contextmanager
def opencv_beside(engine: Engine) -> Iterator[None]:
    """Within it OpenCV's own pool has no more threads than the engine leaves cores; afterwards as before.

    The loop's stages overlap by themselves: more threads would only take the engine's cores and wait for each other.
    """
    before = cv2.getNumThreads()
    if engine.threads is not None:
        cv2.setNumThreads(max(1, min(before, usable_cores() - engine.threads)))
    try:
        yield
    finally:
        cv2.setNumThreads(before)

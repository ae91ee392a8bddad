"""What a run measured: latency per stage, the live line, and the report's JSON."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Deque, Dict, Iterator, List, Optional, TextIO

import cv2
import numpy as np

from gradseg.base.conditions import usable_cores
from gradseg.base.errors import GradsegError
from gradseg.runtime.engines.protocol import Engine

# capture: reading and decoding. wait: captured, but not yet taken by inference. preprocess: resize to the network's
# size. postprocess: resize of the labels to frame size. overlay, sink: where there is one. total: from the capture's
# timestamp to labels at frame size.
STAGES = ("capture", "wait", "preprocess", "infer", "postprocess", "overlay", "sink", "total")


class Latencies:
    """Samples of one stage in nanoseconds, in memory that does not grow.

    Mean and maximum count every sample. Percentiles come from all of the first 65536, then from every second, every
    fourth, … of them: evenly spread over the whole run.
    """

    def __init__(self, capacity: int = 1 << 16) -> None:
        self._samples: np.ndarray[Any, Any] = np.zeros(capacity, np.int64)
        self._kept, self._stride = 0, 1
        self.count, self._sum, self._max = 0, 0, 0

    def add(self, value_ns: int) -> None:
        """Counts one sample."""
        if self.count % self._stride == 0:
            if self._kept == len(self._samples):
                half = self._kept // 2
                self._samples[:half] = self._samples[0 : 2 * half : 2].copy()
                self._kept, self._stride = half, self._stride * 2
            if self.count % self._stride == 0:
                self._samples[self._kept] = value_ns
                self._kept += 1
        self.count += 1
        self._sum += value_ns
        self._max = max(self._max, value_ns)

    def summary(self) -> Dict[str, Optional[float]]:
        """p50, p90, p99, mean, max in milliseconds; all None without a sample."""
        if not self.count:
            return {"p50": None, "p90": None, "p99": None, "mean": None, "max": None}
        p50, p90, p99 = np.percentile(self._samples[: self._kept], (50, 90, 99)) / 1e6
        figures = {"p50": p50, "p90": p90, "p99": p99, "mean": self._sum / self.count / 1e6, "max": self._max / 1e6}
        return {key: round(float(value), 4) for key, value in figures.items()}


class LiveLine:
    """One line on stderr: rewritten twice a second on a terminal, a new one every five seconds elsewhere.

    FPS and percentiles are over the last `window` frames.
    """

    def __init__(self, stream: Optional[TextIO] = None, window: int = 120) -> None:
        self._stream: TextIO = sys.stderr if stream is None else stream
        self._tty = self._stream.isatty()
        self._totals: Deque[int] = deque(maxlen=window)
        self._times: Deque[int] = deque(maxlen=window)
        self._interval_ns = 500_000_000 if self._tty else 5_000_000_000
        self._next_ns = time.perf_counter_ns() + self._interval_ns
        self._written = False

    def frame(self, total_ns: int, done: int, expected: Optional[int], dropped: int) -> None:
        """Counts one finished frame and prints when it is time."""
        now = time.perf_counter_ns()
        self._totals.append(total_ns)
        self._times.append(now)
        if now >= self._next_ns:
            self._next_ns = now + self._interval_ns
            self._print(self.text(done, expected, dropped))

    def text(self, done: int, expected: Optional[int], dropped: int) -> str:
        """The line as it would be printed now."""
        span = (self._times[-1] - self._times[0]) / 1e9 if len(self._times) > 1 else 0.0
        fps = f"{(len(self._times) - 1) / span:6.1f}" if span > 0 else "     -"
        p50, p99 = np.percentile(self._totals, (50, 99)) / 1e6 if self._totals else (0.0, 0.0)
        of = f"/{expected}" if expected else ""
        return f"frame {done}{of}  {fps} FPS  capture→labels p50 {p50:.1f} ms  p99 {p99:.1f} ms  dropped {dropped}"

    def _print(self, line: str) -> None:
        try:
            self._stream.write(f"\r\x1b[K{line}" if self._tty else f"{line}\n")
            self._stream.flush()
            self._written = True
        except OSError:  # a closed pipe must not end the run
            self._next_ns = 1 << 62

    def close(self) -> None:
        """Ends the rewritten line."""
        if self._written and self._tty:
            self._print("\n")


def latency_table(latency_ms: Dict[str, Dict[str, Optional[float]]]) -> List[str]:
    """The report's latencies as aligned text lines."""
    columns = ("p50", "p90", "p99", "mean", "max")
    lines = ["ms".ljust(12) + "".join(name.rjust(9) for name in columns)]
    for stage, figures in latency_ms.items():
        cells = [f"{value:9.2f}" if value is not None else "        -" for value in (figures[c] for c in columns)]
        lines.append(stage.ljust(12) + "".join(cells))
    return lines


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


def engine_facts(engine: Engine) -> Dict[str, Any]:
    """What every report says of an engine, as JSON types."""
    return {
        "engine": engine.name,
        **{name: getattr(engine, name) for name in ("backend", "device", "precision")},
        "provider": getattr(engine, "provider", None),
        "cuda_graph": bool(getattr(engine, "uses_cuda_graph", False)),
        "input_hw": list(engine.spec.input_hw),
        "frame_hw": list(engine.frame_hw),
    }


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

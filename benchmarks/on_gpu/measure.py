"""Measures engines on the same frames in turn, so that drift of the clocks hits all alike. NumPy and OpenCV only.

End to end is wall-clock time from a camera frame to labels of its size: resize (by OpenCV, or inside the engine),
upload, inference, download, labels back to the frame's size. Upload, inference and download are measured by CUDA
events. Throughput has two frames in flight. No slow sample is dropped. The GPU's clocks, temperature and power
meanwhile are what NVML says, by ctypes; nothing is changed.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Optional, Protocol, Sequence, Tuple

import cv2
import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.runtime.preprocess import Preprocessor, resize_labels

STAGES = ("upload", "inference", "download")
TURN, SETTLE = 10, 3  # timed frames of a turn, untimed ones before them: caches still hold another engine
FEWEST = 30  # samples below which a row is not measured, when time runs out
ROUNDS, FLIGHT = 5, 40  # of throughput, and its frames per round
FRAMES = 8  # different frames in turn: a constant input would flatter caches
LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
SM, MEMORY = 1, 2  # nvmlClockType_t
FIGURES = {  # NVML's function, what it is asked for, and the divisor of its answer
    "sm_mhz": ("nvmlDeviceGetClockInfo", (SM,), 1),
    "memory_mhz": ("nvmlDeviceGetClockInfo", (MEMORY,), 1),
    "temperature_c": ("nvmlDeviceGetTemperature", (0,), 1),
    "power_w": ("nvmlDeviceGetPowerUsage", (), 1000),
}


class Series(Protocol):
    """One engine run in one way, wherever it runs. row: which row it is measured for. way: graph, plain."""

    row: str
    way: str

    def end_to_end(self, start: int, count: int, settle: int) -> List[float]:
        """Milliseconds of `count` frames from number `start` on, after `settle` untimed ones."""

    def stages(self, start: int, count: int, settle: int) -> List[List[float]]:
        """Milliseconds of upload, inference, download, for each of `count` frames."""

    def flight(self, count: int) -> float:
        """Seconds that `count` frames take one after the other, two of them in flight."""

    def close(self) -> None: ...


@dataclass
class Samples:
    """What was measured of one series. error: why it ended, None if it did not."""

    end_to_end: List[float] = field(default_factory=list)
    stages: List[List[float]] = field(default_factory=list)
    fps: List[float] = field(default_factory=list)
    error: Optional[GradsegError] = None

    def summary(self) -> Dict[str, Any]:
        """Percentiles in milliseconds, JSON types."""
        parts = np.asarray(self.stages, np.float64).reshape(-1, len(STAGES))
        return {
            "end_to_end": percentiles(self.end_to_end),
            "stages": {name: percentiles(parts[:, index].tolist()) for index, name in enumerate(STAGES)},
            "two_in_flight_fps": float(np.median(self.fps)) if self.fps else None,
        }


def percentiles(values: Sequence[float]) -> Optional[Dict[str, Any]]:
    """{"p50", "p90", "p99", "mean", "max": ms, "samples"}; None without a sample."""
    if not values:
        return None
    names = ("p50", "p90", "p99", "mean", "max")
    figures = (*np.percentile(values, (50, 90, 99)), np.mean(values), np.max(values))
    return {**{name: float(figure) for name, figure in zip(names, figures)}, "samples": len(values)}


class Frames:
    """The frames that everything is timed on, uint8 BGR at the camera's size, in turn."""

    def __init__(self, images: Sequence[np.ndarray[Any, Any]], frame_hw: Tuple[int, int]) -> None:
        self.hw = frame_hw
        size = (frame_hw[1], frame_hw[0])
        self._frames = [np.ascontiguousarray(cv2.resize(each, size)) for each in images]

    def __getitem__(self, index: int) -> np.ndarray[Any, Any]:
        return self._frames[index % len(self._frames)]


class EngineSeries:
    """An engine of the runtime: staging, infer, begin, finish, stage_times (see `runtime.trt_engine`)."""

    def __init__(self, row: str, way: str, engine: Any, frames: Frames) -> None:
        self.row, self.way, self.engine, self._frames = row, way, engine, frames
        self._baked = tuple(engine.frame_hw) == tuple(frames.hw)
        self._resize = Preprocessor(engine.frame_hw)
        self._labels: np.ndarray[Any, Any] = np.empty(frames.hw, np.uint8)

    def end_to_end(self, start: int, count: int, settle: int) -> List[float]:
        times = []
        for index in range(start - settle, start + count):
            begin = time.perf_counter_ns()
            self._finished(self.engine.infer(self._staged(index)))
            times.append((time.perf_counter_ns() - begin) / 1e6)
        return times[settle:]

    def stages(self, start: int, count: int, settle: int) -> List[List[float]]:
        times = []
        for index in range(start - settle, start + count):
            found = self.engine.stage_times(self._staged(index))
            times.append([float(found[name]) for name in STAGES])
        return times[settle:]

    def flight(self, count: int) -> float:
        begin = time.perf_counter_ns()
        for index in range(count):
            self.engine.begin(self._staged(index))
            if index:
                self._finished(self.engine.finish())
        self._finished(self.engine.finish())
        return (time.perf_counter_ns() - begin) / 1e9

    def close(self) -> None:
        self.engine.close()

    def _staged(self, index: int) -> np.ndarray[Any, Any]:
        """Frame `index` in the engine's page-locked input."""
        batch: np.ndarray[Any, Any] = self.engine.staging
        if self._baked:
            np.copyto(batch[0], self._frames[index])
            return batch
        return self._resize(self._frames[index], out=batch)

    def _finished(self, labels: np.ndarray[Any, Any]) -> None:
        if not self._baked:  # else they are of the frame's size already
            resize_labels(labels[0], self._labels.shape, self._labels)


def measure(
    series: Sequence[Series],
    samples: int,
    warmup: int,
    late: Callable[[], bool],
    between: Callable[[], None] = lambda: None,
) -> Dict[Tuple[str, str], Samples]:
    """Samples by (row, way). The series take turns of `TURN` frames.

    A series that ends with a GradsegError is left out from then on; any other failure raises EngineFailed.

    Args:
        late: whether time is up; then it ends with the samples that there are, at least `FEWEST`.
        between: called after every round, to look at clocks.
    """
    found = {(each.row, each.way): Samples() for each in series}

    def alive() -> Iterator[Tuple[Series, Samples]]:
        for each in series:
            kept = found[each.row, each.way]
            if kept.error is None:
                yield each, kept

    for each, kept in alive():
        with _noted(each, kept):
            each.end_to_end(0, warmup, 0)
            each.stages(0, min(warmup, TURN), 0)
    for start in range(0, samples, TURN):
        if late() and start >= FEWEST:
            break
        count = min(TURN, samples - start)
        for each, kept in alive():
            with _noted(each, kept):
                kept.end_to_end.extend(each.end_to_end(start, count, SETTLE))
                kept.stages.extend(each.stages(start, count, SETTLE))
        between()
    flight = min(FLIGHT, samples)
    for _ in range(ROUNDS):
        for each, kept in alive():
            if not late():
                with _noted(each, kept):
                    kept.fps.append(flight / each.flight(flight))
    return found


class EngineFailed(Exception):  # noqa: N818  it names the row, the engine's own error is its cause
    """An engine failed in a way that may have spoilt the whole process. Its text is the row."""


@contextlib.contextmanager
def _noted(each: Series, kept: Samples) -> Iterator[None]:
    try:
        yield
    except GradsegError as error:
        kept.error = error
    except Exception as error:
        raise EngineFailed(each.row) from error


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

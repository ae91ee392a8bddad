"""Sources that lose no frame: video files, images, procedural scenes."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any, List, Optional, Tuple

import cv2
import numpy as np

from gradseg.base.conditions import usable_cores
from gradseg.base.errors import GradsegError
from gradseg.data.folders import read_image
from gradseg.data.scenes.frames import SceneVideo
from gradseg.runtime.sources.source import DEFAULT_FPS, Captured, Source


def usable_fps(claimed: float) -> float:
    """A container's frame rate, or `DEFAULT_FPS` where it is absent or absurd."""
    return float(claimed) if math.isfinite(claimed) and 1.0 <= claimed <= 240.0 else DEFAULT_FPS


def quiet_decoder() -> None:
    """Keeps FFmpeg's own lines off stderr, unless the user set them; must run before the first file is opened."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    logging = getattr(getattr(cv2, "utils", None), "logging", None)
    if logging is not None and os.environ["OPENCV_LOG_LEVEL"] == "SILENT":
        logging.setLogLevel(logging.LOG_LEVEL_SILENT)


ONE_THREAD_PIXELS, ONE_THREAD_CORES = 1920 * 1088, 2


def open_video(path: str) -> Any:
    """cv2.VideoCapture of a file. Up to 1080p on two cores with one thread of the decoder: more of them cost more time
    in all, which the network needs, and run when they like. Others have as many as FFmpeg wants."""
    limit = getattr(cv2, "CAP_PROP_N_THREADS", None)  # older OpenCV has none
    if limit is not None and usable_cores() <= ONE_THREAD_CORES:
        capture = cv2.VideoCapture(path, cv2.CAP_ANY, [limit, 1])
        pixels = capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
        if capture.isOpened() and pixels <= ONE_THREAD_PIXELS:
            return capture
        capture.release()
    return cv2.VideoCapture(path)


class VideoFile(Source):
    """A video that OpenCV can decode. The first frame is read at once, so that a corrupt file fails before work starts.

    A file that ends well before its own frame count (truncated or damaged) raises GradsegError after its last frame;
    one that ends a little early, as containers that estimate the count do, sets `warning`.
    """

    def __init__(self, path: str) -> None:
        quiet_decoder()
        self.name = path
        self._capture: Any = open_video(path)
        if not self._capture.isOpened():
            raise GradsegError(f"{path}: corrupt, truncated, or not a video that this OpenCV can decode")
        begin = time.perf_counter_ns()
        ok, frame = self._capture.read()
        if not ok or frame is None:
            self._capture.release()
            raise GradsegError(f"{path}: a video without a single readable frame; it is corrupt or empty")
        self._first: Optional[Tuple[Any, int]] = (frame, time.perf_counter_ns() - begin)
        self.size_hw = (int(frame.shape[0]), int(frame.shape[1]))
        self.fps = usable_fps(self._capture.get(cv2.CAP_PROP_FPS))
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.frame_count = int(count) if math.isfinite(count) and 0 < count < 1e9 else None
        self._frames = 0

    def read(self, out: Optional[np.ndarray[Any, Any]] = None) -> Optional[Captured]:
        """See `Source.read`."""
        if self._first is not None:
            # its decoding happened at opening: the timestamp lies as long before now as that took
            frame, took_ns = self._first
            self._first, self._frames = None, 1
            return frame, time.perf_counter_ns() - took_ns
        begin = time.perf_counter_ns()
        ok, frame = self._capture.read(out) if out is not None else self._capture.read()
        if ok and frame is not None:
            self._frames += 1
            return frame, begin
        missing = (self.frame_count or 0) - self._frames
        if missing > 0:
            claimed = f"{self._frames} of the {self.frame_count} frames it claims"
            self.warning = f"{self.name}: ended after {claimed}; truncated or damaged"
            if missing > max(2, (self.frame_count or 0) // 20):
                raise GradsegError(f"{self.warning}; what was readable is processed")
        return None

    def close(self) -> None:
        """Closes the file."""
        self._capture.release()


class _Numbered(Source):
    """Frames by their number, each allocated by its maker."""

    frame_count: int
    _next = 0

    def _frame(self, index: int) -> np.ndarray[Any, Any]:
        raise NotImplementedError

    def read(self, out: Optional[np.ndarray[Any, Any]] = None) -> Optional[Captured]:
        """See `Source.read`; `out` is not used."""
        if self._next >= self.frame_count:
            return None
        begin = time.perf_counter_ns()
        frame = self._frame(self._next)
        self._next += 1
        return frame, begin


class ImageSequence(_Numbered):
    """Image files in the order given; they may differ in size. `fps` is nominal."""

    def __init__(self, name: str, paths: List[Path]) -> None:
        self.name, self._paths, self.frame_count = name, paths, len(paths)
        self.folders = tuple(sorted({path.parent for path in paths}))
        self.size_hw = read_image(paths[0]).shape[:2]

    def _frame(self, index: int) -> np.ndarray[Any, Any]:
        return read_image(self._paths[index])


class SceneSource(_Numbered):
    """Procedural moving street scenes (data/scenes/frames.py), the same frames for the same options."""

    def __init__(self, name: str, size_hw: Tuple[int, int], seed: int, fps: float, frames: int) -> None:
        self.name, self.size_hw, self.fps, self.frame_count = name, size_hw, fps, frames
        self._video = SceneVideo(size_hw, seed, fps=fps)

    def _frame(self, index: int) -> np.ndarray[Any, Any]:
        return self._video.frame(index).image

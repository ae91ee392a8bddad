"""What turns pictures into a video file: H.264 by PyAV where it is installed, else what this OpenCV can write."""

from __future__ import annotations

import contextlib
import importlib
from fractions import Fraction
from pathlib import Path
from typing import Any, Iterator, Optional, Tuple

import cv2
import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.base.files import temporary_beside

# As fast as OpenCV's MPEG-4 at the same size of file; slower presets would hold up the loop. No frame is held back.
X264 = {
    "preset": "ultrafast",
    "crf": "23",
    "x264-params": "colorprim=smpte170m:transfer=smpte170m:colormatrix=smpte170m",  # what cvtColor computes
}
MP4V, AVC1 = "mp4v", "avc1"


class AvEncoder:
    """H.264 in .mp4 by PyAV and x264, its index in front, so that a browser plays it while it loads."""

    def __init__(self, av: Any, path: Path, size_hw: Tuple[int, int], fps: float) -> None:
        self._av, self._path, (height, width) = av, path, size_hw
        self._yuv = np.empty((height * 3 // 2, width), np.uint8)
        self._count = 0
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        try:
            rate = Fraction(fps).limit_denominator(1001)
            self._stream = self._container.add_stream("libx264", rate=rate)
            self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
            self._stream.options = X264
            self._stream.codec_context.time_base = 1 / rate
            self._stream.codec_context.thread_count = 1  # the network needs the others
            self._stream.codec_context.open()
        except BaseException:
            self._container.close()
            raise

    def write(self, image: np.ndarray[Any, Any]) -> None:
        """uint8 BGR (H, W, 3) of the size that it was opened for."""
        cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420, dst=self._yuv)
        frame = self._av.VideoFrame.from_ndarray(self._yuv, format="yuv420p")
        frame.pts, self._count = self._count, self._count + 1
        self._encode(frame)

    def release(self) -> None:
        """Completes the file."""
        try:
            if self._count:
                self._encode(None)
        finally:
            with self._one_line():
                self._container.close()

    def _encode(self, frame: Any) -> None:
        with self._one_line():
            for packet in self._stream.encode(frame):
                self._container.mux(packet)

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except (OSError, self._av.FFmpegError) as error:
            raise GradsegError(f"cannot write the video in {self._path.parent}: {error}") from error


def open_encoder(path: Path, fourcc: str, size_hw: Tuple[int, int], fps: float) -> Optional[Tuple[Any, str]]:
    """The encoder (`write`, `release`) for a new file and the codec it writes, H.264 in place of MPEG-4 where it can be
    had; None if there is none. size_hw: even."""
    if fourcc == MP4V:
        found = _by_av(path, size_hw, fps)
        if found is not None:
            return found, AVC1
        if _opencv_writes(path, AVC1, size_hw, fps):
            fourcc = AVC1
    writer = _writer(path, fourcc, size_hw, fps)
    return (writer, fourcc) if writer.isOpened() else None


def _by_av(path: Path, size_hw: Tuple[int, int], fps: float) -> Optional[AvEncoder]:
    try:
        av = importlib.import_module("av")
    except ImportError:
        return None
    try:
        return AvEncoder(av, path, size_hw, fps)
    except (OSError, ValueError, av.FFmpegError):  # built without x264, or not for this size
        return None


def _opencv_writes(path: Path, fourcc: str, size_hw: Tuple[int, int], fps: float) -> bool:
    """Whether two frames can be written and read again; that it opens is no promise."""
    probe = temporary_beside(path)
    try:
        writer = _writer(probe, fourcc, size_hw, fps)
        if not writer.isOpened():
            return False
        for level in (60, 180):
            writer.write(np.full((*size_hw, 3), level, np.uint8))
        writer.release()
        return count_frames(probe) == 2
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _writer(path: Path, fourcc: str, size_hw: Tuple[int, int], fps: float) -> Any:
    return cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*fourcc), fps, size_hw[::-1])


def count_frames(path: Path) -> int:
    """Frames in a video as its container says, 0 if it cannot be opened or its first frame cannot be read."""
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened() or not capture.read()[0]:
            return 0
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        capture.release()

"""A video file, checked before work starts and again when it is complete."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any, Optional, Tuple, Union

import cv2
import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.base.files import put_in_place, temporary_beside
from gradseg.runtime.sinks.encoders import MP4V, count_frames, open_encoder
from gradseg.runtime.sinks.sink import Sink
from gradseg.runtime.sources.recordings import quiet_decoder

FOURCC = {".mp4": MP4V, ".avi": "MJPG"}
NO_BROWSER = "{} is MPEG-4 part 2, which browsers do not play; for H.264: pip install av"
RESERVE = 1 << 20  # bytes kept free beside two raw frames, so that a container's index can still be written


def free_bytes(path: Path) -> int:
    """Bytes that may still be written to `path`: free space of its file system, and the process's file-size limit."""
    free = shutil.disk_usage(str(path.parent)).free
    try:
        import resource
    except ImportError:  # not a POSIX system
        return free
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY:
        size = path.stat().st_size if path.exists() else 0
        free = min(free, limit - size)
    return free


class VideoSink(Sink):
    """An .mp4 (H.264 where an encoder is at hand, else MPEG-4 part 2) or .avi (Motion JPEG), written beside its final
    name and renamed when it is complete. note: what the user should know of it, or "".

    OpenCV does not say when a write fails. So the space left is watched while writing, the run ends while the index
    still fits, and the finished file is opened again and its frames counted.

    Args:
        path: ends in .mp4 or .avi; what stands there is replaced when this one is complete and playable.
        size_hw: (height, width) of every picture; the file's are rounded up to even numbers.
        fps: of the file.
        realtime: repeat pictures so that the file plays as fast as the camera saw, though frames were dropped.
    """

    def __init__(self, path: Union[str, Path], size_hw: Tuple[int, int], fps: float, realtime: bool = False) -> None:
        quiet_decoder()
        self.path, self.size_hw, self.fps = Path(path), (int(size_hw[0]), int(size_hw[1])), float(fps)
        # the codecs halve the colour planes: an odd side gets one more row or column, a copy of the last
        self._file_hw = (self.size_hw[0] + self.size_hw[0] % 2, self.size_hw[1] + self.size_hw[1] % 2)
        self._even: np.ndarray[Any, Any] = np.empty((*self._file_hw, 3), np.uint8)
        self._realtime, self._start_ns = realtime, 0
        self.written, self._full = 0, ""
        fourcc = video_fourcc(self.path)
        temporary = temporary_beside(self.path)
        self._temporary: Optional[Path] = temporary
        self._check_space(temporary)
        opened = open_encoder(temporary, fourcc, self._file_hw, self.fps)
        if opened is None:
            self._discard()
            height, width = self._file_hw
            raise GradsegError(
                f"{self.path}: this OpenCV ({cv2.__version__}) cannot write {fourcc} video of {height}x{width} at "
                f"{self.fps:g} fps; try the other of {', '.join(FOURCC)}"
            )
        self._writer, codec = opened
        self.note = NO_BROWSER.format(self.path) if codec == MP4V else ""

    def _check_space(self, temporary: Path) -> None:
        height, width = self.size_hw
        # an index entry per frame, two frames that the encoder may hold, and the reserve
        need = RESERVE + 2 * height * width * 3 + 64 * self.written
        left = free_bytes(temporary)
        if left < need:
            self._full = (
                f"disk full: {left // 1024} KiB left for {self.path}, {need // 1024} KiB needed to end it safely"
            )
            if not self.written:
                self._discard()
            raise GradsegError(f"{self._full}; free some space or choose another place")

    def write(
        self, image: Optional[np.ndarray[Any, Any]], labels: np.ndarray[Any, Any], index: int, t_capture_ns: int
    ) -> None:
        """See `Sink.write`. The picture must be of the size given when the sink was built."""
        if image is None or image.shape[:2] != self.size_hw:
            found = "none" if image is None else f"{image.shape[0]}x{image.shape[1]}"
            raise GradsegError(
                f"frame {index} is {found}, the video {self.size_hw[0]}x{self.size_hw[1]}: one video holds one size; "
                "use --labels for images of several sizes"
            )
        assert self._temporary is not None, "write after close"
        if self._file_hw != self.size_hw:
            below, right = self._file_hw[0] - self.size_hw[0], self._file_hw[1] - self.size_hw[1]
            image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE, dst=self._even)
        for _ in range(self._repeats(t_capture_ns)):
            self._check_space(self._temporary)
            self._writer.write(image)
            self.written += 1

    def _repeats(self, t_capture_ns: int) -> int:
        if not self._realtime:
            return 1
        if not self.written:
            self._start_ns = t_capture_ns
        due = int((t_capture_ns - self._start_ns) * 1e-9 * self.fps) + 1
        return min(max(1, due - self.written), int(10 * self.fps) + 1)

    def close(self) -> None:
        """Finishes the file, checks that every frame is in it, and gives it its name."""
        temporary, self._temporary = self._temporary, None
        if temporary is None:
            return
        try:
            with contextlib.suppress(GradsegError):  # what the file then lacks is counted
                self._writer.release()
            if not self.written:
                return
            found = count_frames(temporary)
            if found == 0:
                raise GradsegError(f"{self.path}: none of {self.written} frames can be read back; was the disk full?")
            put_in_place(temporary, self.path)
            if found != self.written:
                raise GradsegError(f"{self.path}: holds {found} of {self.written} frames; was the disk full?")
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _discard(self) -> None:
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                self._temporary.unlink()
            self._temporary = None


def video_fourcc(path: Path) -> str:
    """The codec for a file name; raises GradsegError for a suffix that is not ours."""
    if path.suffix.lower() not in FOURCC:
        raise GradsegError(f"--save {path}: the name must end in {' or '.join(FOURCC)}")
    return FOURCC[path.suffix.lower()]

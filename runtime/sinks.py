"""Where results go: an mp4, a folder of label images, a window. Checked when built, before any work starts."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Optional, Tuple, Union

import cv2
import numpy as np

from gradseg.models.errors import GradsegError
from gradseg.models.files import put_in_place, temporary_beside
from gradseg.runtime.recordings import quiet_decoder

FOURCC = {".mp4": "mp4v", ".avi": "MJPG"}
RESERVE = 1 << 20  # bytes kept free beside two raw frames, so that a container's index can still be written


class Sink:
    """Takes results in order. wants_image: whether `write` needs the picture, or the labels alone."""

    wants_image: bool = True

    def write(
        self, image: Optional[np.ndarray[Any, Any]], labels: np.ndarray[Any, Any], index: int, t_capture_ns: int
    ) -> None:
        """One result. image: uint8 BGR picture; labels: uint8 (H, W); both are the caller's again afterwards.

        index: of the frame in the source, from 0. Raises GradsegError if it cannot be kept.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Makes what was written usable; raises GradsegError if it is not. Calling it twice is harmless."""


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
    """An .mp4 (MPEG-4 part 2) or .avi (Motion JPEG), written beside its final name and renamed when it is complete.

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
        height, width = self._file_hw
        code = cv2.VideoWriter.fourcc(*fourcc)
        self._writer: Any = cv2.VideoWriter(str(temporary), code, self.fps, (width, height))
        if not self._writer.isOpened():
            self._discard()
            raise GradsegError(
                f"{self.path}: this OpenCV ({cv2.__version__}) cannot write {fourcc} video of {height}x{width} at "
                f"{self.fps:g} fps; try the other of {', '.join(FOURCC)}"
            )

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
        self._writer.release()
        try:
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


def count_frames(path: Path) -> int:
    """Frames in a video as its container says, 0 if it cannot be opened or its first frame cannot be read."""
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened() or not capture.read()[0]:
            return 0
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        capture.release()


class LabelsSink(Sink):
    """A folder of label images: uint8 class indices at frame size, `{index:06d}.png`, one per frame.

    A folder that holds files of such names is refused: one run's labels must not mix with another's.
    """

    wants_image = False

    def __init__(self, folder: Union[str, Path]) -> None:
        self.folder = Path(folder)
        check_folder(self.folder, "--labels")
        there = sorted(path.name for path in self.folder.iterdir() if re.match(r"\d{6,}\.png$", path.name))
        if there:
            raise GradsegError(
                f"--labels {self.folder}: already holds {len(there)} such images ({there[0]}…), of an earlier run "
                "perhaps; empty it or name another folder"
            )
        self.written = 0

    def write(
        self, image: Optional[np.ndarray[Any, Any]], labels: np.ndarray[Any, Any], index: int, t_capture_ns: int
    ) -> None:
        """See `Sink.write`."""
        ok, png = cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        path = self.folder / f"{index:06d}.png"
        if not ok:
            raise RuntimeError(f"cv2.imencode failed for labels {labels.dtype} {labels.shape}")
        try:
            path.write_bytes(png.tobytes())
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise GradsegError(f"cannot write {path}: {error.strerror or error}") from error
        self.written += 1


class WindowSink(Sink):
    """A window on the screen; Esc or q ends the run by `on_quit`."""

    TITLE = "GradSeg"

    def __init__(self, on_quit: Any) -> None:
        self._on_quit = on_quit
        advice = "pip uninstall opencv-python-headless && pip install opencv-python, or use --save instead"
        linux = sys.platform.startswith("linux")
        if linux and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise GradsegError("--show: there is no display here (DISPLAY is not set); use --save instead", 3)
        try:
            cv2.namedWindow(self.TITLE, cv2.WINDOW_NORMAL)
        except cv2.error as error:
            raise GradsegError(f"--show: this OpenCV ({cv2.__version__}) has no windows; {advice}", 3) from error

    def write(
        self, image: Optional[np.ndarray[Any, Any]], labels: np.ndarray[Any, Any], index: int, t_capture_ns: int
    ) -> None:
        """See `Sink.write`."""
        if image is not None:
            cv2.imshow(self.TITLE, image)
        if cv2.waitKey(1) & 0xFF in (27, ord("q")):
            self._on_quit()

    def close(self) -> None:
        """Closes the window."""
        with contextlib.suppress(cv2.error):
            cv2.destroyWindow(self.TITLE)


def check_folder(folder: Path, option: str) -> None:
    """Makes the folder if need be and tries a file in it; raises GradsegError naming the option if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".gradseg-", dir=str(folder))
        os.close(handle)
        Path(name).unlink()
    except OSError as error:
        raise GradsegError(
            f"{option} {folder}: cannot be written ({error.strerror or error}); choose another"
        ) from error

"""Live sources: USB cameras, CSI cameras of a Jetson, network cameras. All through OpenCV."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.runtime.sources.recordings import quiet_decoder, usable_fps
from gradseg.runtime.sources.source import Captured, Source

BAD_FRAMES = 10  # frames in a row that arrive but cannot be decoded before the source counts as broken


class LiveCapture(Source):
    """A `cv2.VideoCapture` whose frames come by themselves. `grab` waits for one, its return is the capture time."""

    live = True

    def __init__(self, name: str, capture: Any, help_text: str) -> None:
        self.name, self._capture = name, capture
        self._frames = 0
        if not capture.isOpened():
            capture.release()
            raise GradsegError(f"{name}: cannot be opened; {help_text}")
        # some drivers ignore it: the loop reads all the time, so that the newest frame is seen anyway
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        ok, frame = capture.read()
        if not ok or frame is None:
            capture.release()
            raise GradsegError(f"{name}: opened, but gives no frame; {help_text}")
        self.size_hw = (int(frame.shape[0]), int(frame.shape[1]))
        self.fps = usable_fps(capture.get(cv2.CAP_PROP_FPS))

    def read(self, out: Optional[np.ndarray[Any, Any]] = None) -> Optional[Captured]:
        """See `Source.read`; never None: a live source that stops is broken."""
        for _ in range(BAD_FRAMES):
            if not self._capture.grab():
                break
            arrived = time.perf_counter_ns()
            ok, frame = self._capture.retrieve(out) if out is not None else self._capture.retrieve()
            if ok and frame is not None:
                self._frames += 1
                return frame, arrived
        raise GradsegError(f"{self.name}: stopped after {self._frames} frames (unplugged, or the stream ended)")

    def close(self) -> None:
        """Releases the camera."""
        self._capture.release()


class UsbCamera(LiveCapture):
    """Camera number `index`: /dev/video{index} on Linux."""

    def __init__(self, name: str, index: int) -> None:
        quiet_decoder()
        linux = sys.platform.startswith("linux")
        if linux and not Path(f"/dev/video{index}").exists():
            there = sorted(p.name for p in Path("/dev").glob("video*") if re.match(r"video\d+$", p.name))
            listed = ", ".join(f"/dev/{n}" for n in there) if there else "none"
            raise GradsegError(
                f"{name}: no camera /dev/video{index} on this machine (there: {listed}); plug it in or name another"
            )
        capture = cv2.VideoCapture(index, cv2.CAP_V4L2 if linux else cv2.CAP_ANY)
        super().__init__(name, capture, "is another program using it, and may this user read it (group video)?")


def csi_pipeline(index: int, size_hw: Any = (720, 1280), fps: int = 30) -> str:
    """The GStreamer pipeline of a Jetson's CSI camera: newest frame only, BGR at the end."""
    height, width = size_hw
    return (
        f"nvarguscamerasrc sensor-id={index} ! video/x-raw(memory:NVMM), width={width}, height={height}, "
        f"framerate={fps}/1, format=NV12 ! nvvidconv ! video/x-raw, format=BGRx ! videoconvert ! "
        "video/x-raw, format=BGR ! appsink drop=true max-buffers=1 sync=false"
    )


def has_gstreamer() -> bool:
    """Whether this OpenCV was built with GStreamer."""
    return re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()) is not None


class CsiCamera(LiveCapture):
    """CSI camera number `index` of a Jetson, 1280x720 at 30 frames per second."""

    def __init__(self, name: str, index: int) -> None:
        quiet_decoder()
        if not has_gstreamer():
            raise GradsegError(
                f"{name}: a CSI camera needs an OpenCV with GStreamer, and this one ({cv2.__version__}) has none; "
                "on a Jetson use the OpenCV of JetPack instead of pip's",
                3,
            )
        capture = cv2.VideoCapture(csi_pipeline(index), cv2.CAP_GSTREAMER)
        super().__init__(name, capture, "is this a Jetson with the camera connected, and does nvarguscamerasrc work?")


class NetworkCamera(LiveCapture):
    """An rtsp:// stream through OpenCV's FFmpeg."""

    def __init__(self, name: str) -> None:
        quiet_decoder()
        capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
        super().__init__(name, capture, "check the address, the user and password in it, and that the camera answers")

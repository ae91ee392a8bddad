"""A window on the desktop."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, Optional

import cv2
import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.runtime.sinks.sink import Sink


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

"""What a source of frames is to the loop. Cameras and recordings each are one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Tuple

import numpy as np

DEFAULT_FPS = 25.0


Captured = Tuple[Any, int]  # frame uint8 BGR (H, W, 3), capture timestamp in ns


class Source:
    """Frames one after the other.

    name: as the user wrote it. live: frames come by themselves and the old ones go stale, or (False) none may be lost.
    fps: frames per second that the source claims. size_hw: (height, width) of the first frame.
    frame_count: how many frames to expect, None if unknown. folders: that its images lie in, none for other sources.
    warning: what was wrong though frames came, "" if nothing.
    """

    name: str
    live: bool = False
    fps: float = DEFAULT_FPS
    size_hw: Tuple[int, int]
    frame_count: Optional[int] = None
    folders: Tuple[Path, ...] = ()
    warning: str = ""

    def read(self, out: Optional[np.ndarray[Any, Any]] = None) -> Optional[Captured]:
        """The next frame, uint8 BGR (H, W, 3), and its capture timestamp; None at the end of a finite source.

        The timestamp is `time.perf_counter_ns` when the frame came into being for us: on a live source when it had
        arrived, on others when reading it began. The frame lies in `out` where the source can do that and the size
        fits; it is the caller's until it passes it as `out` again. Raises GradsegError if the source breaks.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Releases the device or file. Calling it twice is harmless."""

"""What takes the results of the loop. A video, a folder of label images and a window each are one."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np


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

"""Labels made visible: blended over the frame, as a colour mask, or side by side. cv2 only, into buffers kept."""

from __future__ import annotations

from typing import Any, Optional, Sequence, Tuple

import cv2
import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.models.spec import Rgb
from gradseg.runtime.sinks.legend import HOLD, Legend

MODES = ("overlay", "mask", "side-by-side")


def palette_table(palette: Sequence[Rgb]) -> np.ndarray[Any, Any]:
    """RGB palette → uint8 BGR look-up table (1, 256, 3); values without a class are black."""
    table = np.zeros((1, 256, 3), np.uint8)
    table[0, : len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)[:, ::-1]
    return table


class Overlay:
    """Draws labels over frames.

    Args:
        palette: RGB, one per class.
        mode: "overlay" (blend), "mask" (colours alone), "side-by-side" (frame left, blend right).
        alpha: weight of the colours in the blend, 0 (frame alone) to 1 (colours alone).
        classes: names for a legend of what is seen, none without. hold: see `Legend`.
    """

    def __init__(
        self,
        palette: Sequence[Rgb],
        mode: str = "overlay",
        alpha: float = 0.5,
        classes: Sequence[str] = (),
        hold: int = HOLD,
    ) -> None:
        if mode not in MODES:
            raise GradsegError(f"overlay mode {mode!r}; one of {', '.join(MODES)}")
        if not 0.0 <= alpha <= 1.0:
            raise GradsegError(f"--alpha {alpha}: expected 0 (frame alone) to 1 (colours alone)")
        self.mode, self.alpha = mode, float(alpha)
        self._table = palette_table(palette)
        self._legend = Legend(classes, palette, hold) if classes else None
        self._wide: np.ndarray[Any, Any] = np.empty((0, 0, 3), np.uint8)
        self._colour = self._image = self._wide

    def output_hw(self, frame_hw: Tuple[int, int]) -> Tuple[int, int]:
        """(height, width) of the picture for frames of `frame_hw`."""
        return (frame_hw[0], frame_hw[1] * 2) if self.mode == "side-by-side" else (frame_hw[0], frame_hw[1])

    def __call__(
        self, frame: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], alpha: Optional[float] = None
    ) -> np.ndarray[Any, Any]:
        """frame uint8 BGR (H, W, 3) and labels uint8 (H, W) → uint8 BGR picture, valid until the next call."""
        if frame.shape[:2] != labels.shape:
            raise GradsegError(f"overlay: frame is {frame.shape[:2]}, labels {labels.shape}; they must be of one size")
        if self._colour.shape != frame.shape:
            self._wide, self._colour = np.empty_like(frame), np.empty_like(frame)
            self._image = np.empty((*self.output_hw(frame.shape[:2]), 3), np.uint8)
        cv2.cvtColor(labels, cv2.COLOR_GRAY2BGR, dst=self._wide)
        cv2.LUT(self._wide, self._table, dst=self._colour)
        weight = self.alpha if alpha is None else float(alpha)
        image = self._colour if self.mode == "mask" else self._image
        if self.mode == "overlay":
            cv2.addWeighted(frame, 1.0 - weight, self._colour, weight, 0.0, dst=image)
        elif self.mode == "side-by-side":
            # the halves of a row-major picture are not contiguous: blend into the spare buffer, then copy both in
            cv2.addWeighted(frame, 1.0 - weight, self._colour, weight, 0.0, dst=self._wide)
            cv2.hconcat([frame, self._wide], dst=image)
        if self._legend is not None:
            self._legend.draw(image, labels, image.shape[1] - frame.shape[1])
        return image

"""`Segmenter`: one call from frame to labels, for programs that embed GradSeg (a ROS node, a web service)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Tuple, Union

import numpy as np

from gradseg.models.spec import ModelSpec
from gradseg.runtime.engine import open_engine
from gradseg.runtime.overlay import Overlay
from gradseg.runtime.preprocess import Preprocessor, resize_labels


class Segmenter:
    """A network, opened once and called per frame. Not thread-safe: give each thread its own.

    Args:
        path: .onnx, .pth, .plan or .engine.
        threads: CPU threads for the network; None lets the backend choose.
        spec: for an ONNX file of other origin.

    Raises GradsegError for a file that cannot be used (what, where, what to do).

    Example:
        segmenter = Segmenter("m.onnx")
        labels = segmenter(cv2.imread("street.jpg"))
        cv2.imwrite("overlay.png", segmenter.overlay(frame, labels))
    """

    def __init__(self, path: Union[str, Path], threads: Optional[int] = None, spec: Optional[ModelSpec] = None) -> None:
        self.engine = open_engine(path, threads, spec)
        self.spec: ModelSpec = self.engine.spec
        self._preprocess = Preprocessor(self.spec.input_hw)
        self._overlay = Overlay(self.spec.palette)

    @property
    def classes(self) -> Tuple[str, ...]:
        """Class names; labels are indices into them."""
        return self.spec.classes

    def __call__(self, bgr: np.ndarray[Any, Any], out: Optional[np.ndarray[Any, Any]] = None) -> np.ndarray[Any, Any]:
        """uint8 BGR (H, W, 3) of any size → uint8 labels (H, W) at frame size.

        Returns a new array that is the caller's; with `out`, uint8 (H, W), it is written there and nothing is
        allocated.
        """
        labels = self.engine.infer(self._preprocess(bgr))
        return resize_labels(labels[0], (bgr.shape[0], bgr.shape[1]), out)

    def overlay(
        self, bgr: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], alpha: float = 0.5
    ) -> np.ndarray[Any, Any]:
        """The class colours blended over the frame, weight `alpha`: a new uint8 BGR (H, W, 3)."""
        return self._overlay(bgr, labels, alpha).copy()

    def close(self) -> None:
        """Releases the engine; `with Segmenter(…) as s:` does it too."""
        self.engine.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

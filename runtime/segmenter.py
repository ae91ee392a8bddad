"""`Segmenter`: one call from frame to labels, for programs that embed GradSeg (a ROS node, a web service)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple, Union

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.models.spec import ModelSpec
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.loop.inference import Entry
from gradseg.runtime.preprocess import resize_labels
from gradseg.runtime.sinks.overlay import Overlay


class Segmenter:
    """A network, opened once and called per frame. Not thread-safe: give each thread its own.

    Args:
        path: an engine file, or a shipped model's name, see `open_engine`.
        threads: CPU threads for the network; None lets the backend choose.
        spec: for an ONNX file of other origin.
        provider: of ONNX Runtime, for .onnx: "cpu", "cuda" or "tensorrt".

    Raises GradsegError for a file that cannot be used (what, where, what to do).

    Example:
        segmenter = Segmenter("m.onnx")
        labels = segmenter(cv2.imread("street.jpg"))
        cv2.imwrite("overlay.png", segmenter.overlay(frame, labels))
    """

    def __init__(
        self,
        path: Union[str, Path],
        threads: Optional[int] = None,
        spec: Optional[ModelSpec] = None,
        provider: Optional[str] = None,
    ) -> None:
        self.engine = open_engine(path, threads, spec, provider)
        self.spec: ModelSpec = self.engine.spec
        self._entry = Entry(self.engine)
        self._overlay = Overlay(self.spec.palette)
        self._named: Optional[Overlay] = None

    @property
    def classes(self) -> Tuple[str, ...]:
        """Class names; labels are indices into them."""
        return self.spec.classes

    def __call__(self, bgr: np.ndarray[Any, Any], out: Optional[np.ndarray[Any, Any]] = None) -> np.ndarray[Any, Any]:
        """uint8 BGR (H, W, 3) of any size → uint8 labels (H, W) at frame size.

        Returns a new array that is the caller's; with `out`, uint8 (H, W), it is written there and nothing is
        allocated.
        """
        if self.engine.batch != 1:
            raise GradsegError(
                f"{self.engine.name}: takes {self.engine.batch} frames at a time; give them to Segmenter.many(), or "
                "build it with --batch 1"
            )
        labels = self._entry.infer(self._entry.prepare((bgr,)))
        return self._entry.enlarge(labels[0], (int(bgr.shape[0]), int(bgr.shape[1])), out)

    def many(self, frames: Sequence[np.ndarray[Any, Any]]) -> List[np.ndarray[Any, Any]]:
        """Exactly `engine.batch` frames, uint8 BGR (H, W, 3), each of any size → uint8 labels (H, W) of each.

        The labels are new arrays. GradsegError for another number of frames.
        """
        if len(frames) != self.engine.batch:
            raise GradsegError(f"{self.engine.name}: takes {self.engine.batch} frames at a time, got {len(frames)}")
        labels = self._entry.infer(self._entry.prepare(frames))
        return [resize_labels(each, (bgr.shape[0], bgr.shape[1])) for each, bgr in zip(labels, frames)]

    def overlay(
        self, bgr: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], alpha: float = 0.5, legend: bool = False
    ) -> np.ndarray[Any, Any]:
        """The class colours blended over the frame, weight `alpha`: a new uint8 BGR (H, W, 3).

        legend: with the names of the classes that are seen, in a corner.
        """
        if legend and self._named is None:
            self._named = Overlay(self.spec.palette, classes=self.spec.classes, hold=1)
        return ((legend and self._named) or self._overlay)(bgr, labels, alpha).copy()

    def close(self) -> None:
        """Releases the engine; `with Segmenter(…) as s:` does it too."""
        self.engine.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

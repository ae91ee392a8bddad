"""The one preprocessing: training's evaluation, calibration, the benchmarks and the video loop all use it.

A frame is resized bilinearly to the network's size and stays uint8 BGR; normalisation belongs to the network (inside
the deployment-form ONNX) or, for a network that is fed directly, to `normalised_chw`.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

import cv2
import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.models.spec import ModelSpec
from gradseg.runtime.native.frames import ForSizes, frame_resize, label_resize

Size = Tuple[int, int]


def check_frame(frame: np.ndarray[Any, Any], where: str = "frame") -> None:
    """Raises GradsegError unless `frame` is a non-empty uint8 BGR (H, W, 3) array."""
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise GradsegError(f"{where}: expected uint8 BGR (H, W, 3), found {found}")
    if frame.size == 0:
        raise GradsegError(f"{where}: empty, shape {frame.shape}")


def output_for(out: Optional[np.ndarray[Any, Any]], shape: Tuple[int, ...], where: str) -> np.ndarray[Any, Any]:
    """`out`, a new array for None; GradsegError unless it is a C-contiguous, writable uint8 array of that shape.

    Without this OpenCV would allocate another array, fill that one, and leave `out` as it was.
    """
    if out is None:
        return np.empty(shape, np.uint8)
    if out.dtype != np.uint8 or out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        layout = "" if out.flags.c_contiguous else " not contiguous"
        layout += "" if out.flags.writeable else " read-only"
        raise GradsegError(f"{where}: out is {out.dtype} {out.shape}{layout}; needed: contiguous uint8 {shape}")
    return out


class Preprocessor:
    """Frame at any size → batch of one at the network's size. Not thread-safe.

    Args:
        input_hw: (height, width) in pixels that the network sees.
        native: whether to look for a native resize; without it OpenCV's is used.
    """

    def __init__(self, input_hw: Tuple[int, int], native: bool = True) -> None:
        self.input_hw = (int(input_hw[0]), int(input_hw[1]))
        self._batch: np.ndarray[Any, Any] = np.empty((1, *self.input_hw, 3), np.uint8)
        self._native = ForSizes(frame_resize if native else lambda from_hw, to_hw: None)

    def __call__(self, frame: np.ndarray[Any, Any], out: Optional[np.ndarray[Any, Any]] = None) -> np.ndarray[Any, Any]:
        """uint8 BGR (H, W, 3) → uint8 BGR (1, h, w, 3).

        Args:
            frame: any size; GradsegError unless it is uint8 with three channels.
            out: C-contiguous uint8 (1, h, w, 3) to write to, else GradsegError; without it the result lies in
                the preprocessor's own buffer and is valid until the next call.
        """
        check_frame(frame)
        batch = self._batch if out is None else output_for(out, self._batch.shape, "preprocessing")
        if frame.shape[:2] == self.input_hw:
            np.copyto(batch[0], frame)
            return batch
        native = self._native((int(frame.shape[0]), int(frame.shape[1])), self.input_hw)
        if native is None or not native(frame, batch):
            height, width = self.input_hw
            cv2.resize(frame, (width, height), dst=batch[0], interpolation=cv2.INTER_LINEAR)
        return batch

    def expect(self, frame_hw: Size) -> None:
        """Gets ready for frames of that size, so that none of them takes longer than the others."""
        self._native.expect(frame_hw, self.input_hw)

    def shared(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """As a call without `out`, but a frame that has the network's size is not copied: the result is its memory."""
        check_frame(frame)
        if frame.shape[:2] == self.input_hw and frame.flags.c_contiguous:
            return frame[None]
        return self(frame)


def resize_labels(
    labels: np.ndarray[Any, Any], out_hw: Tuple[int, int], out: Optional[np.ndarray[Any, Any]] = None
) -> np.ndarray[Any, Any]:
    """Labels uint8 (h, w) → uint8 (H, W) by nearest neighbour. Always a copy.

    `out`, C-contiguous uint8 (H, W), is written to if given. GradsegError if it or `labels` is something else.
    """
    height, width = int(out_hw[0]), int(out_hw[1])
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise GradsegError(f"labels: expected uint8 (h, w), found {labels.dtype} {labels.shape}")
    target = output_for(out, (height, width), "labels")
    if labels.shape == (height, width):
        np.copyto(target, labels)
    else:
        cv2.resize(labels, (width, height), dst=target, interpolation=cv2.INTER_NEAREST_EXACT)
    return target


class LabelResizer:
    """`resize_labels` for labels of one size after the other: faster where the native library is. Not thread-safe."""

    def __init__(self) -> None:
        self._native = ForSizes(label_resize)

    def expect(self, labels_hw: Size, out_hw: Size) -> None:
        """Gets ready for labels of that size."""
        self._native.expect(labels_hw, out_hw)

    def __call__(
        self, labels: np.ndarray[Any, Any], out_hw: Size, out: Optional[np.ndarray[Any, Any]] = None
    ) -> np.ndarray[Any, Any]:
        """See `resize_labels`."""
        native = None
        if labels.ndim == 2 and labels.dtype == np.uint8 and labels.flags.c_contiguous and labels.shape != out_hw:
            native = self._native((labels.shape[0], labels.shape[1]), out_hw)
        if native is None:
            return resize_labels(labels, out_hw, out)
        target = output_for(out, out_hw, "labels")
        native(labels, target)
        return target


def normalised_chw(
    batch: np.ndarray[Any, Any], spec: ModelSpec, out: Optional[np.ndarray[Any, Any]] = None
) -> np.ndarray[Any, Any]:
    """uint8 BGR (N, h, w, 3) → float32 (N, 3, h, w): (pixel / 255 - mean) / std in the spec's colour order.

    For networks that are fed directly (torch, ONNX in the logits form). `out` float32 (N, 3, h, w) is written to if
    given.
    """
    count, height, width, channels = batch.shape
    if channels != 3 or batch.dtype != np.uint8:
        raise GradsegError(f"batch: expected uint8 BGR (N, h, w, 3), found {batch.dtype} {batch.shape}")
    result = np.empty((count, 3, height, width), np.float32) if out is None else out
    for target, (mean, std) in enumerate(zip(spec.mean, spec.std)):
        source = 2 - target if spec.color_order == "rgb" else target
        # one multiply and one subtract per pixel, straight into the output plane
        np.multiply(batch[..., source], np.float32(1.0 / (255.0 * std)), out=result[:, target], dtype=np.float32)
        if mean:
            result[:, target] -= np.float32(mean / std)
    return result

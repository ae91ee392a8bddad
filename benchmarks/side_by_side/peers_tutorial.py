"""What the tutorials of the inference engines have in common: NumPy and cv2 around a network that gives logits.

The steps are those of OpenVINO's "Hello Image Segmentation"
(https://docs.openvino.ai/2024/notebooks/hello-segmentation-with-output.html) and of the examples for ONNX Runtime
(https://docs.pytorch.org/tutorials/advanced/super_resolution_with_onnxruntime.html,
https://github.com/microsoft/onnxruntime-inference-examples, quantization/image_classification/cpu): resize, float32,
normalise, channels first, a batch of one; argmax over the classes; resize to the frame. Where they decode with PIL this
does with cv2, which is faster, and a mean of 0 and a deviation of 1 are not computed: no peer is made slower than it
is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.side_by_side.networks import spec_of
from gradseg.graphs.frames import open_frames
from gradseg.models.spec import ModelSpec


def preprocess(frame: np.ndarray[Any, Any], spec: ModelSpec) -> np.ndarray[Any, Any]:
    """uint8 BGR (H, W, 3) → float32 (1, 3, h, w), normalised as the spec says, in its colour order."""
    height, width = spec.input_hw
    image = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if spec.color_order == "rgb" else frame
    image = cv2.resize(image, (width, height))
    pixels: np.ndarray[Any, Any] = image.astype(np.float32) / np.float32(255)
    if any(spec.mean) or any(value != 1 for value in spec.std):
        pixels = (pixels - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]


def postprocess(logits: np.ndarray[Any, Any], frame_hw: tuple[int, int]) -> np.ndarray[Any, Any]:
    """float32 (1, C, h, w) → uint8 labels (H, W)."""
    return resized(np.argmax(logits, axis=1)[0].astype(np.uint8), frame_hw)


def resized(labels: np.ndarray[Any, Any], frame_hw: tuple[int, int]) -> np.ndarray[Any, Any]:
    """uint8 (h, w) → uint8 (H, W), by nearest neighbour as GradSeg's own, so that labels can be compared."""
    found: np.ndarray[Any, Any] = cv2.resize(labels, frame_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return found


def calibration(job: Job) -> Iterator[np.ndarray[Any, Any]]:
    """The frames to calibrate on as float32 (1, 3, h, w), the same for every quantiser."""
    for frame in open_frames(job.calib, job.calib_frames):
        yield preprocess(frame, spec_of(job))


class Tutorial:
    """Three steps, the second an engine's `network`. A peer's class gives others in place of the first and last if its
    documentation has its own. See `common.job.Pipeline`."""

    def __init__(self, net: Any, spec: ModelSpec) -> None:
        self.spec, self.network = spec, net.network
        self.engine, self.precision = net.engine, net.precision

    def preprocess(self, frame: np.ndarray[Any, Any]) -> Any:
        return preprocess(frame, self.spec)

    def postprocess(self, logits: Any, frame_hw: tuple[int, int]) -> np.ndarray[Any, Any]:
        return postprocess(logits, frame_hw)

    def run(self, frame: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], tuple[int, int, int]]:
        """uint8 BGR (H, W, 3) → uint8 labels (H, W), and nanoseconds of the stages."""
        clock = time.perf_counter_ns
        begin = clock()
        pixels = self.preprocess(frame)
        prepared = clock()
        logits = self.network(pixels)
        inferred = clock()
        labels = self.postprocess(logits, (int(frame.shape[0]), int(frame.shape[1])))
        return labels, (prepared - begin, inferred - prepared, clock() - inferred)

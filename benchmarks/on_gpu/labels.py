"""ONNX Runtime's labels of a deployment-form network, and how decided each is. Needs onnx and onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.benchmarks.on_gpu.index import DECIDED, FP32_TIE, HALF_TIE, UNDECIDED, UNDECIDED_HALF
from gradseg.graphs.graph import attribute
from gradseg.graphs.sessions import OnnxRunner, argmax_of, exposed
from gradseg.graphs.ties import interleaved
from gradseg.graphs.verify import margins
from gradseg.runtime.preprocess import resize_labels


class Labeller:
    """A network (onnx.ModelProto) in ONNX Runtime on the CPU, its INT8 computed exactly as the Q/DQ say."""

    def __init__(self, model: Any, where: str) -> None:
        node = argmax_of(model)
        if node is None:
            raise GradsegError(f"{where}: has no ArgMax; the deployment form is needed")
        self._scores, self._axis = node.input[0], int(attribute(node, "axis", 0))
        self._labels = model.graph.output[0].name
        sides = model.graph.output[0].type.tensor_type.shape.dim
        self.frame_hw: tuple[int, int] = (sides[1].dim_value, sides[2].dim_value)
        self._runner = OnnxRunner(exposed(model, [self._scores]), where, integers=False)

    def __call__(self, batch: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """uint8 BGR (1, h, w, 3) → labels and levels (see `on_gpu.index`), both uint8 (h, w)."""
        labels, scores = self._runner.run(batch, [self._labels, self._scores])
        return labels[0], resize_labels(interleaved(levels_of(scores, self._axis)[0]), labels.shape[1:])


def levels_of(scores: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    """How far the best score is from the second best along `axis`, as levels, uint8 without that axis."""
    margin, size = margins(scores, axis)
    levels = np.full(margin.shape, DECIDED, np.uint8)
    levels[margin < HALF_TIE * size] = UNDECIDED_HALF
    levels[margin < FP32_TIE * size] = UNDECIDED
    return levels

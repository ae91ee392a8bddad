"""Near-ties: pixels whose two best classes lie so close together that no two float computations need agree on them."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from gradseg.graphs.sessions import OnnxRunner, argmax_of, exposed
from gradseg.graphs.verify import TIE, margins
from gradseg.runtime.preprocess import resize_labels


class Decided:
    """Which pixels of a frame have a defined label, by a deployment-form model's own scores in ONNX Runtime.

    Args:
        data: the serialised ModelProto.
        where: for messages.
    """

    def __init__(self, data: bytes, where: str) -> None:
        import onnx

        from gradseg.graphs.graph import attribute

        model = onnx.ModelProto.FromString(data)
        node = argmax_of(model)
        self._runner: Optional[OnnxRunner] = None
        if node is not None:
            self._scores = node.input[0]
            self._axis = int(attribute(node, "axis", 0))
            self._runner = OnnxRunner(exposed(model, [self._scores]), where)

    def __call__(self, batch: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """bool of the shape of `labels` (batch, H, W): everywhere True for a model that takes no ArgMax."""
        if self._runner is None:
            return np.ones(labels.shape, bool)
        margin, size = margins(self._runner.run(batch, [self._scores])[0], self._axis)
        clear = (margin >= TIE * size).astype(np.uint8)
        return np.stack([resize_labels(interleaved(one), labels.shape[1:]) for one in clear]).astype(bool)


def interleaved(maps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(h, w) as it is; (4, h, w), one map per pixel of a 2x2 block → (2h, 2w), as `label_head` interleaves."""
    if maps.ndim == 2:
        return np.ascontiguousarray(maps)
    _, height, width = maps.shape
    blocks = maps.reshape(2, 2, height, width).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(blocks.reshape(2 * height, 2 * width))

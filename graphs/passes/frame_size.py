"""Pass: the graph takes frames of their own size and gives labels of that size; resizing both ways happens inside.

Needs: a deployment-form graph, uint8 BGR (1, h, w, 3) that Casts alone read, uint8 (1, h, w) out of a last Cast.
Promises: uint8 BGR (1, H, W, 3) in, uint8 (1, H, W) out. Before the network: bilinear interpolation between pixel
centres without antialiasing, as cv2.INTER_LINEAR has it. Behind it: each pixel's label is taken from where
`resize_labels` takes it, by two Gathers, one along each side. The first and last node stay Casts; between them nothing
is uint8.
Exact: the labels' way back, index for index, at any size. Pixels on the way in are within one grey level of cv2's,
which computes with few bits and rounds. A Round behind the Resize brings labels no closer: cv2 differs from exact
interpolation by up to 0.8 of a level itself, and one pixel in eight differs from its rounded value (cv2 5.0).
Proof: tests/test_export_passes.py, random sizes against cv2.
"""

from __future__ import annotations

from typing import Any, Sequence, Tuple

import cv2
import numpy as np
from onnx import TensorProto, helper

from gradseg.base.errors import GradsegError
from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.passes.convolutions import resized


def frame_size(graph: Graph, frame_hw: Tuple[int, int]) -> None:
    """Applies the pass in place; nothing to do if the frames have the network's size."""
    shape = graph.model.graph.input[0].type.tensor_type.shape
    network_hw = (shape.dim[1].dim_value, shape.dim[2].dim_value)
    frame_hw = (int(frame_hw[0]), int(frame_hw[1]))
    if frame_hw != network_hw:
        _resize_frame(graph, frame_hw, network_hw)
        _resize_labels(graph, network_hw, frame_hw)


def sources(size: int, target: int) -> np.ndarray[Any, Any]:
    """For each of `target` pixels along a side, which of `size` labels it takes: int32 (target,), by cv2 itself."""
    line: np.ndarray[Any, Any] = np.arange(size, dtype=np.float32)[None]  # whole numbers below 2^24 are exact
    found = cv2.resize(line, (target, 1), interpolation=cv2.INTER_NEAREST_EXACT)
    indices: np.ndarray[Any, Any] = found[0].astype(np.int32)
    return indices


def _resize_frame(graph: Graph, frame_hw: Tuple[int, int], network_hw: Tuple[int, int]) -> None:
    frame = graph.model.graph.input[0]
    casts = graph.consumers(frame.name)
    if not casts or any(node.op_type != "Cast" for node in casts):
        found = ", ".join(node.op_type for node in casts) or "nothing"
        raise GradsegError(f"the frame is read by {found}; a Cast must be the first node to resize the frame in front")
    for cast in casts:
        readers = graph.consumers(cast.output[0])
        if readers and all(n.op_type == "Transpose" and attribute(n, "perm") == [0, 3, 1, 2] for n in readers):
            pixels = _shrunk(graph, cast.output[0], network_hw)
            for node in readers:
                graph.replace_uses(node.output[0], pixels)
                graph.remove(node)
        else:  # it works on (1, h, w, 3) itself
            whole = graph.fresh(f"{cast.output[0]}_frame")
            cast.output[0], before = whole, cast.output[0]
            graph.add("Transpose", [_shrunk(graph, whole, network_hw)], before, perm=[0, 2, 3, 1])
    _set_shape(frame, [1, *frame_hw, 3])


def _shrunk(graph: Graph, pixels: str, network_hw: Tuple[int, int]) -> str:
    """(1, H, W, 3) → (1, 3, h, w)."""
    planes = graph.add("Transpose", [pixels], graph.fresh("frame_planes"), perm=[0, 3, 1, 2])
    return resized(graph, planes, graph.fresh("frame_resized"), 1, 3, *network_hw)


def _resize_labels(graph: Graph, network_hw: Tuple[int, int], frame_hw: Tuple[int, int]) -> None:
    labels = graph.model.graph.output[0]
    last = graph.producer(labels.name)
    if last is None or last.op_type != "Cast":
        raise GradsegError(f"labels come from {last.op_type if last else 'nowhere'}; a Cast must be the last node")
    tensor = last.input[0]
    for axis, stem, size, target in (
        (2, "label_columns", network_hw[1], frame_hw[1]),  # columns first: then whole rows are copied
        (1, "label_rows", network_hw[0], frame_hw[0]),
    ):
        indices = graph.constant(stem, sources(size, target))
        tensor = graph.add("Gather", [tensor, indices], graph.fresh(f"{stem}_enlarged"), axis=axis)
    last.input[0] = tensor
    graph.nodes = [node for node in graph.nodes if node is not last] + [last]
    _set_shape(labels, [1, *frame_hw])


def _set_shape(value: Any, dims: Sequence[int]) -> None:
    kind = value.type.tensor_type.elem_type
    value.CopyFrom(helper.make_tensor_value_info(value.name, kind, list(dims)))
    assert kind == TensorProto.UINT8

"""Pass: a network for one frame takes N frames at once.

Needs: a sorted deployment-form graph for one frame, with fixed shapes.
Promises: uint8 (N, H, W, 3) in, uint8 (N, H, W) out; the labels of a frame are the same whatever stands beside it. In
memory the frames stay outermost: where a tensor was (d, …) it is (N * d, …), d is 1 but for matrices of rows, and every
constant shape and operand says so. A network that moves the first dimension, or computes over it, is refused with the
node's name.
Exact: per frame the same operations. Proof: tests/test_export_passes.py, different frames in one batch against each
alone, in every precision, and networks of all kinds.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Set

import numpy as np
import onnx

from gradseg.base.errors import GradsegError
from gradseg.graphs.graph import Graph, attribute, shapes_of

SHAPES = {"Reshape": 1, "Resize": 3, "Expand": 1}  # operator → which of its inputs is its output's shape
AXIS = {
    "Concat": 0, "Split": 0, "Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "ArgMax": 0, "ArgMin": 0, "Gather": 0,
    "GatherElements": 0, "ScatterElements": 0, "TopK": -1, "Flatten": 1, "LayerNormalization": -1,
}  # operator → its axis by default  # fmt: skip
WITH_AXES = ("Slice", "Squeeze", "Unsqueeze")
WEIGHTS = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "InstanceNormalization": (1, 2), "PRelu": (1,),
    "BatchNormalization": (1, 2, 3, 4), "LayerNormalization": (1, 2),
}  # operator → inputs that all frames share  # fmt: skip
ELEMENTWISE = (
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Where", "Gemm", "Equal", "Greater", "Less",
)  # fmt: skip
MIXING = (
    "GatherND", "ScatterND", "NonZero", "Compress", "Unique", "Loop", "If", "Scan", "Einsum", "Shape", "Size", "OneHot",
    "LSTM", "GRU", "RNN", "NonMaxSuppression", "RoiAlign", "CumSum", "ReverseSequence", "Trilu",
)  # fmt: skip


def fixed_batch(graph: Graph, count: int) -> None:
    """Applies the pass in place; nothing to do for one frame. GradsegError names the node that stands in the way."""
    if count == 1:
        return
    before = shapes_of(graph.to_model())
    live = {graph.model.graph.input[0].name}
    for node in graph.nodes:
        if live.intersection(node.input):
            reason = _obstacle(graph, node, live, before)
            if reason:
                raise _refusal(node, reason, count)
            _widen(graph, node, before, count)
            live.update(node.output)
    for value in (graph.model.graph.input[0], graph.model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = count
    _check_shapes(graph, live, before, count)


def _refusal(node: onnx.NodeProto, reason: str, count: int) -> GradsegError:
    return GradsegError(
        f"--batch {count}: node {node.name or node.output[0]} ({node.op_type}) {reason}; leave --batch out, or export "
        "the network with the batch as the first dimension throughout"
    )


def _obstacle(graph: Graph, node: onnx.NodeProto, live: Set[str], shapes: Dict[str, List[int]]) -> Optional[str]:
    """Why a node cannot work on several frames at once, None if it can."""
    read = [shapes[name] for name in node.input if name in live]
    rank = len(read[0])
    if node.op_type in MIXING or rank == 0:
        return "is not known to treat frames apart"
    if any(index < len(node.input) and node.input[index] in live for index in WEIGHTS.get(node.op_type, ())):
        return "has weights that depend on the frame"
    if len({(len(shape), shape[0]) for shape in read}) > 1:
        return "joins tensors that do not have the frame as the same dimension"
    if node.op_type == "MatMul" and node.input[1] in live and rank < 3:
        return "sums over the first dimension"
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return "moves the first dimension"
    if node.op_type == "Transpose" and attribute(node, "perm", list(range(rank))[::-1])[0] != 0:
        return "moves the first dimension"
    axis = attribute(node, "axis", AXIS[node.op_type]) if node.op_type in AXIS else None
    if axis is not None and axis % rank == 0:
        return "works along the first dimension"
    return _list_obstacle(graph, node, rank) or _shape_obstacle(graph, node, shapes)


def _list_obstacle(graph: Graph, node: onnx.NodeProto, rank: int) -> Optional[str]:
    """The same of operators with a list of axes, as an attribute or, since opset 13 or 18, as an input."""
    if not node.op_type.startswith("Reduce") and node.op_type not in WITH_AXES:
        return None
    axes = attribute(node, "axes")
    place = 3 if node.op_type == "Slice" else 1
    if axes is None and len(node.input) > place and node.input[place]:
        given = graph.weights.get(node.input[place])
        if given is None:
            return "works along axes that are computed"
        axes = [int(value) for value in given]
    if axes is None or any(axis % rank == 0 for axis in axes):
        return "works along the first dimension"
    return None


def _shape_obstacle(graph: Graph, node: onnx.NodeProto, shapes: Dict[str, List[int]]) -> Optional[str]:
    """The same of operators whose constants have an entry for the first dimension."""
    place = SHAPES.get(node.op_type, 1 if node.op_type in ("Tile", "Pad") else None)
    if place is None or len(node.input) <= place or not node.input[place]:
        return None
    given = graph.weights.get(node.input[place])
    if given is None:
        return "has a shape that is computed"
    if node.op_type != "Reshape" and shapes[node.output[0]][0] != shapes[node.input[0]][0]:
        return "changes the first dimension"
    return None


def _widen(graph: Graph, node: onnx.NodeProto, shapes: Dict[str, List[int]], count: int) -> None:
    """Writes the number of frames into a node's constants."""
    shape, place = shapes[node.output[0]], SHAPES.get(node.op_type, 0)
    if 0 < place < len(node.input) and node.input[place] and attribute(node, "axes") is None:
        wide = np.array([count * shape[0], *shape[1:]], np.int64)
        node.input[place] = graph.constant(f"{node.input[place]}_batch", wide)
    if node.op_type != "Concat" and node.op_type not in ELEMENTWISE:
        return
    for index, name in enumerate(node.input):
        value = graph.weights.get(name)
        if value is None or value.ndim != len(shape) or (node.op_type == "Gemm" and index < 2):
            continue
        if node.op_type == "Concat" or value.shape[0] > 1:  # an operand that differs from row to row
            node.input[index] = graph.constant(f"{name}_batch", np.concatenate([value] * count))


def _check_shapes(graph: Graph, live: Set[str], before: Dict[str, List[int]], count: int) -> None:
    """Every tensor that depends on the frame has the shape that it had, the first dimension times N."""
    try:
        after = shapes_of(graph.to_model())
    except onnx.shape_inference.InferenceError as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise GradsegError(f"--batch {count}: this network cannot take several frames ({reason})") from error
    for node in graph.nodes:
        for name in node.output:
            if name in live and name in before:
                wanted = [count * before[name][0], *before[name][1:]]
                if after.get(name) != wanted:
                    raise _refusal(node, f"gives {after.get(name)} in place of {wanted}", count)

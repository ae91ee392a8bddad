"""INT8 as the native engine computes it: the Q/DQ model that is lowered, and the one that is its reference.

Needs onnx; no torch.
"""

from __future__ import annotations

from typing import Any, List, Optional

import numpy as np

from gradseg.calibration.qdq.repair import add_to_bias
from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.convolutions import group_of, is_plain_convolution, weight_of
from gradseg.graphs.passes.fold_input import dense_weight
from gradseg.runtime.native.program import EIGHTHS

S16_MOST = 8187


def native_form(model: Any) -> Any:
    """An FP32 deployment-form model (onnx.ModelProto) whose border pixels are whole numbers.

    What lies outside the frame stands for 0 after normalisation: the mean colour, for the native engine a pixel of
    bytes. So the mean that is subtracted is rounded, and what that leaves goes into the biases of the convolutions
    behind. Inside the frame the function stays the same; outside it the mean colour is off by half a level at most.
    """
    graph = Graph(model)
    for node in list(graph.nodes):
        if node.op_type != "Sub" or node.input[1] not in graph.weights:
            continue
        mean = graph.weights[node.input[1]]
        convolutions = _convolutions_behind(graph, node.output[0])
        if convolutions is None or mean.size not in (1, 3) or not _is_frame(graph, node.input[0]):
            continue
        whole = np.rint(mean)
        rest = np.broadcast_to((whole.astype(np.float64) - mean).reshape(-1), (3,))
        node.input[1] = graph.constant(f"{node.input[1]}_whole", whole.astype(np.float32))
        for conv in convolutions:
            weight = dense_weight(weight_of(graph, conv).astype(np.float64), group_of(conv))
            add_to_bias(graph, conv, np.einsum("oiyx,i->o", weight, rest))
    return graph.to_model()


def _is_frame(graph: Graph, tensor: str) -> bool:
    node = graph.producer(tensor)
    while node is not None and node.op_type in ("Cast", "Transpose"):
        node = graph.producer(node.input[0])
    return node is None


def _convolutions_behind(graph: Graph, tensor: str) -> Optional[List[Any]]:
    """The convolutions that read a tensor, perhaps pooled; None if something else does too."""
    found: List[Any] = []
    for node in graph.consumers(tensor):
        if node.op_type == "MaxPool":
            behind = _convolutions_behind(graph, node.output[0])
            if behind is None:
                return None
            found += behind
        elif node.op_type == "Conv" and is_plain_convolution(graph, node):
            found.append(node)
        else:
            return None
    return found


def reference_form(model: Any) -> Any:
    """A Q/DQ model of target `native` with the rounding inside upsamplings, which Q/DQ does not say: ONNX Runtime then
    computes what the native engine does.

    What is interpolated is rounded to eighths of the result's steps, then interpolated between rows and rounded to
    eighths, then between columns and rounded to steps; these two round halves upwards.
    """
    graph = Graph(model)
    for node in [node for node in graph.nodes if node.op_type == "Resize"]:
        end, readers = node, graph.consumers(node.output[0])
        while len(readers) == 1 and readers[0].op_type == "Relu":
            end = readers[0]
            readers = graph.consumers(end.output[0])
        if len(readers) == 1 and readers[0].op_type == "QuantizeLinear":
            _rounded_steps(graph, node, readers[0])
    return graph.to_model()


def _rounded_steps(graph: Graph, resize: Any, last: Any) -> None:
    """Writes a Resize before a QuantizeLinear, perhaps with a ReLU between, in the native engine's steps."""
    stem, result = resize.input[0], resize.output[0]

    def constant(name: str, *values: float) -> str:
        shape = () if len(values) == 1 else (len(values),)
        return graph.constant(f"{stem}_{name}", np.array(values, np.float32).reshape(shape))

    def halves_up(tensor: str) -> str:
        return graph.add("Floor", [graph.add("Add", [tensor, constant("half", 0.5)])])

    def doubled(tensor: str, name: str, *scales: float) -> str:
        inputs = [tensor, "", constant(name, *scales)]
        return graph.add("Resize", inputs, mode="linear", coordinate_transformation_mode="half_pixel")

    steps = graph.add("Mul", [stem, constant("eighths", EIGHTHS / float(graph.weights[last.input[1]]))])
    whole = graph.add("Clip", [graph.add("Round", [steps]), constant("low", -S16_MOST), constant("high", S16_MOST)])
    rows = halves_up(doubled(whole, "rows", 1, 1, 2, 1))
    columns = doubled(rows, "columns", 1, 1, 1, 2)
    graph.remove(resize)
    steps = halves_up(graph.add("Mul", [columns, constant("eighth", 1 / EIGHTHS)]))
    graph.replace_uses(result, steps)
    last.input[1] = constant("one", 1.0)

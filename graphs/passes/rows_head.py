"""Pass: the label head's argmax runs over the innermost axis, as ONNX Runtime's CPU kernels are fastest at.

Needs: the interleaved head that `label_head` makes: 1x1 Conv → Reshape → ArgMax → Cast → DepthToSpace → Reshape → Cast.
Promises: the same labels; the 1x1 convolution is a matrix product of (pixels, C_in) rows whose results lie class by
class, so that each argmax reads one short contiguous row, and labels are interleaved in pairs. For ONNX Runtime on
CPUs; other engines take the form of `label_head`. Where the graph ends otherwise, nothing is changed.
Exact: the same sums of products per pixel and class, the same class order, hence the same tie rule.
Proof: tests/test_export_passes.py, random and tied logits against NumPy's argmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.passes.convolutions import bias_of, constant_shape, group_of, is_conv, is_pointwise, weight_of

# heads from the output backwards: the one that is needed, and the one that this pass makes of it
INTERLEAVED = ("Cast", "Reshape", "DepthToSpace", "Cast", "ArgMax", "Reshape", "Conv")
ROWS = ("Cast", "Reshape", "Transpose", "Cast", "ArgMax", "Reshape", "Gemm", "Reshape")


@dataclass(frozen=True)
class Head:
    """A label head. last: the node that writes the labels. scores: the one that multiplies. features: the tensor
    (1, C_in, height, width) that it reads.

    weight: (4 * classes, C_in), ordered by pixel of the 2x2 block, then class. bias: (4 * classes,) or None.
    """

    last: onnx.NodeProto
    scores: onnx.NodeProto
    features: str
    weight: np.ndarray[Any, Any]
    bias: Optional[np.ndarray[Any, Any]]
    classes: int
    height: int
    width: int


def rows_head(graph: Graph) -> bool:
    """Applies the pass in place; False if the graph does not end in that head, which then stays as it is."""
    head = interleaved_head(graph)
    if head is None:
        return False
    height, width, inputs = head.height, head.width, head.weight.shape[1]
    pixels = graph.add("Reshape", [head.features, constant_shape(graph, "features_shape", inputs, height * width)])
    operands = [pixels, graph.constant("head_rows", np.ascontiguousarray(head.weight.T))]
    if head.bias is not None:
        operands.append(graph.constant("head_rows_bias", head.bias))
    logits = graph.add("Gemm", operands, graph.fresh("logits_rows"), transA=1)
    logits = graph.add("Reshape", [logits, constant_shape(graph, "rows_shape", height, width, 2, 2, head.classes)])
    best = graph.add("ArgMax", [logits], graph.fresh("classes_rows"), axis=4, keepdims=0)
    best = graph.add("Cast", [best], to=TensorProto.INT32)
    best = graph.add("Transpose", [best], perm=[0, 2, 1, 3])
    best = graph.add("Reshape", [best, constant_shape(graph, "labels_rows_shape", 1, 2 * height, 2 * width)])
    graph.remove(head.last)
    graph.add("Cast", [best], head.last.output[0], to=TensorProto.UINT8)
    return True


def interleaved_head(graph: Graph) -> Optional[Head]:
    """The head that `label_head` makes, or None if the graph ends otherwise."""
    found = last_nodes(graph, INTERLEAVED)
    if found is None:
        return None
    shuffle, best, split, conv = (found[index] for index in (2, 4, 5, 6))
    shape = [int(size) for size in graph.weights.get(split.input[1], ())]
    if not is_conv(graph, conv) or not is_pointwise(graph, conv) or group_of(conv) != 1:
        return None
    by_two = attribute(shuffle, "blocksize") == 2 and attribute(shuffle, "mode", b"DCR") == b"DCR"
    if len(shape) != 5 or shape[1] != 4 or attribute(best, "axis", 0) != 2 or not by_two:
        return None
    weight = weight_of(graph, conv)
    return Head(found[0], conv, conv.input[0], weight.reshape(weight.shape[:2]), bias_of(graph, conv), *shape[2:])


def last_nodes(graph: Graph, operators: Sequence[str]) -> Optional[List[onnx.NodeProto]]:
    """The graph's last nodes from the output backwards, or None if they are others or something else reads them."""
    tensor, found = graph.model.graph.output[0].name, []
    for index, operator in enumerate(operators):
        node = graph.producer(tensor)
        if node is None or node.op_type != operator or len(graph.consumers(tensor)) != (index > 0):
            return None
        found.append(node)
        tensor = node.input[0]
    return found

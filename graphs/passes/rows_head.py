"""Pass: the label head's argmax runs over the innermost axis, as ONNX Runtime's CPU kernels are fastest at.

Needs: the interleaved head that `label_head` makes: 1x1 Conv → Reshape → ArgMax → Cast → DepthToSpace → Reshape → Cast.
Promises: the same labels; the 1x1 convolution is a matrix product of (pixels, C_in) rows whose results lie class by
class, so that each argmax reads one short contiguous row, and labels are interleaved in pairs. For ONNX Runtime on
CPUs; other engines take the form of `label_head`. Where the graph ends otherwise, nothing is changed.
Exact: the same sums of products per pixel and class, the same class order, hence the same tie rule.
Proof: tests/test_export_passes.py, random and tied logits against NumPy's argmax.
"""

from __future__ import annotations

from typing import List, Optional, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.passes.convolutions import group_of, is_conv, is_pointwise

# heads from the output backwards: the one that is needed, and the one that this pass makes of it
INTERLEAVED = ("Cast", "Reshape", "DepthToSpace", "Cast", "ArgMax", "Reshape", "Conv")
ROWS = ("Cast", "Reshape", "Transpose", "Cast", "ArgMax", "Reshape", "Gemm", "Reshape")


def rows_head(graph: Graph) -> bool:
    """Applies the pass in place; False if the graph does not end in that head, which then stays as it is."""
    chain = interleaved_head(graph)
    if chain is None:
        return False
    conv, split = chain[-1], chain[-2]
    weight = graph.weights[conv.input[1]]
    _, _, classes, height, width = (int(v) for v in graph.weights[split.input[1]])
    inputs = int(weight.shape[1])

    def shape(stem: str, *dims: int) -> str:
        return graph.constant(stem, np.asarray(dims, np.int64))

    pixels = graph.add("Reshape", [conv.input[0], shape("features_shape", inputs, height * width)])
    operands = [pixels, graph.constant(f"{conv.input[1]}_rows", np.ascontiguousarray(weight.reshape(-1, inputs).T))]
    if len(conv.input) > 2:
        operands.append(conv.input[2])
    logits = graph.add("Gemm", operands, graph.fresh("logits_rows"), transA=1)
    logits = graph.add("Reshape", [logits, shape("rows_shape", height, width, 2, 2, classes)])
    best = graph.add("ArgMax", [logits], graph.fresh("classes_rows"), axis=4, keepdims=0)
    best = graph.add("Cast", [best], to=TensorProto.INT32)
    best = graph.add("Transpose", [best], perm=[0, 2, 1, 3])
    best = graph.add("Reshape", [best, shape("labels_rows_shape", 1, 2 * height, 2 * width)])
    output = chain[0].output[0]
    graph.remove(chain[0])
    graph.add("Cast", [best], output, to=TensorProto.UINT8)
    return True


def interleaved_head(graph: Graph) -> Optional[List[onnx.NodeProto]]:
    """The head's nodes from the output backwards, or None if the graph ends otherwise."""
    found = last_nodes(graph, INTERLEAVED)
    if found is None:
        return None
    shuffle, best, split, conv = (found[index] for index in (2, 4, 5, 6))
    if not is_conv(graph, conv) or not is_pointwise(graph, conv) or group_of(conv) != 1:
        return None
    sizes = graph.weights.get(split.input[1], np.zeros(0))
    of_four = len(sizes) == 5 and sizes[1] == 4 and attribute(best, "axis", 0) == 2
    by_two = attribute(shuffle, "blocksize") == 2 and attribute(shuffle, "mode", b"DCR") == b"DCR"
    return found if of_four and by_two else None


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

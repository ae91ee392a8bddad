"""Pass: the label head as a product of matrices whose results lie class map by class map, for OpenVINO.

Needs: the interleaved head of `label_head` (1x1 Conv → Reshape → ArgMax → Cast → DepthToSpace → Reshape → Cast) or that
of `rows_head`, which it ends in on ONNX Runtime. Where the graph ends otherwise, nothing is changed.
Promises: the same labels. The weights, (4 * classes, C_in), are multiplied with the features as (C_in, pixels): the
product is planar as OpenVINO's argmax wants it, where a convolution's result has to be turned over in memory first,
4 * classes floats per pixel instead of C_in. Labels are interleaved as bytes.
Exact: the same sums of products per pixel and class, the same class order, hence the same tie rule.
Proof: tests/test_openvino_passes.py, random and tied logits against NumPy's argmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import onnx
from onnx import TensorProto

from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.passes.convolutions import bias_of
from gradseg.graphs.passes.rows_head import ROWS, interleaved_head, last_nodes


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


def columns_head(graph: Graph) -> bool:
    """Applies the pass in place; False if the graph does not end in a head that it knows."""
    head = find_head(graph)
    if head is None:
        return False
    pixels, output = head.height * head.width, head.last.output[0]

    def shape(stem: str, *dims: int) -> str:
        return graph.constant(stem, np.asarray(dims, np.int64))

    graph.remove(head.last)
    features = graph.add("Reshape", [head.features, shape("features_shape", -1, pixels)])
    scores = graph.add("MatMul", [graph.constant("head_columns", np.ascontiguousarray(head.weight)), features])
    if head.bias is not None:
        scores = graph.add("Add", [scores, graph.constant("head_columns_bias", head.bias.reshape(-1, 1))])
    planes = shape("planes_shape", 4, head.classes, pixels)
    scores = graph.add("Reshape", [scores, planes], graph.fresh("logits_planes"))
    best = graph.add("ArgMax", [scores], graph.fresh("classes_planes"), axis=1, keepdims=0)
    best = graph.add("Cast", [best], to=TensorProto.UINT8)
    best = graph.add("Reshape", [best, shape("blocks_shape", 2, 2, head.height, head.width)])
    best = graph.add("Transpose", [best], perm=[2, 0, 3, 1])
    graph.add("Reshape", [best, shape("labels_planes_shape", 1, 2 * head.height, 2 * head.width)], output)
    return True


def find_head(graph: Graph) -> Optional[Head]:
    """The label head that the graph ends in, or None."""
    return _interleaved(graph) or _rows(graph)


def _interleaved(graph: Graph) -> Optional[Head]:
    chain = interleaved_head(graph)
    if chain is None:
        return None
    conv, split = chain[-1], chain[-2]
    weight = graph.weights[conv.input[1]]
    _, _, classes, height, width = (int(size) for size in graph.weights[split.input[1]])
    bias = bias_of(graph, conv)
    return Head(chain[0], conv, conv.input[0], weight.reshape(weight.shape[:2]), bias, classes, height, width)


def _rows(graph: Graph) -> Optional[Head]:
    chain = last_nodes(graph, ROWS)
    if chain is None:
        return None
    gemm, split, features = chain[-2], chain[-3], chain[-1]
    shape, weight = graph.weights.get(split.input[1]), graph.weights.get(gemm.input[1])
    turned = attribute(gemm, "transA", 0) == 1 and attribute(gemm, "transB", 0) == 0
    if shape is None or shape.size != 5 or weight is None or not turned:
        return None
    height, width, _, _, classes = (int(size) for size in shape)
    bias = bias_of(graph, gemm)
    return Head(chain[0], gemm, features.input[0], weight.T, bias, classes, height, width)

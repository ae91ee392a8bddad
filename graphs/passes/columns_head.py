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

from typing import Optional

import numpy as np
from onnx import TensorProto

from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.passes.convolutions import bias_of, constant_shape
from gradseg.graphs.passes.rows_head import ROWS, Head, interleaved_head, last_nodes


def columns_head(graph: Graph) -> bool:
    """Applies the pass in place; False if the graph does not end in a head that it knows."""
    head = find_head(graph)
    if head is None:
        return False
    height, width = head.height, head.width
    graph.remove(head.last)
    features = graph.add("Reshape", [head.features, constant_shape(graph, "features_shape", -1, height * width)])
    scores = graph.add("MatMul", [graph.constant("head_columns", np.ascontiguousarray(head.weight)), features])
    if head.bias is not None:
        scores = graph.add("Add", [scores, graph.constant("head_columns_bias", head.bias.reshape(-1, 1))])
    planes = constant_shape(graph, "planes_shape", 4, head.classes, height * width)
    scores = graph.add("Reshape", [scores, planes], graph.fresh("logits_planes"))
    best = graph.add("ArgMax", [scores], graph.fresh("classes_planes"), axis=1, keepdims=0)
    best = graph.add("Cast", [best], to=TensorProto.UINT8)
    best = graph.add("Reshape", [best, constant_shape(graph, "blocks_shape", 2, 2, height, width)])
    best = graph.add("Transpose", [best], perm=[2, 0, 3, 1])
    whole = constant_shape(graph, "labels_planes_shape", 1, 2 * height, 2 * width)
    graph.add("Reshape", [best, whole], head.last.output[0])
    return True


def find_head(graph: Graph) -> Optional[Head]:
    """The label head that the graph ends in, or None."""
    return interleaved_head(graph) or _rows(graph)


def _rows(graph: Graph) -> Optional[Head]:
    """The head that `rows_head` makes, or None."""
    chain = last_nodes(graph, ROWS)
    if chain is None:
        return None
    gemm, split, features = chain[-2], chain[-3], chain[-1]
    shape, weight = graph.weights.get(split.input[1]), graph.weights.get(gemm.input[1])
    turned = attribute(gemm, "transA", 0) == 1 and attribute(gemm, "transB", 0) == 0
    if shape is None or shape.size != 5 or weight is None or not turned:
        return None
    height, width, _, _, classes = (int(size) for size in shape)
    return Head(chain[0], gemm, features.input[0], weight.T, bias_of(graph, gemm), classes, height, width)

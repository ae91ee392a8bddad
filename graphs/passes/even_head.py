"""Pass: the label head in a form that all of ONNX Runtime's threads work on, stripe by stripe.

Needs: the interleaved head that `label_head` makes: 1x1 Conv → Reshape → ArgMax → Cast → DepthToSpace → Reshape → Cast.
Promises: the same labels. As in `rows_head` the 1x1 convolution is a matrix product whose rows are pixels; but the four
output pixels lie innermost, the classes before them: ONNX Runtime shares an ArgMax among threads along all axes that
stay but the last, so over the innermost axis it runs in one thread (seen with 1.31), twice the time on two cores. And
the image is cut into horizontal stripes whose logits, at most `most_bytes`, stay in the cache until their ArgMax.
Exact: the same sums of products per pixel and class, the same class order, hence the same tie rule.
Proof: tests/test_pass_borders.py, random and tied logits against NumPy's argmax, and every architecture.
"""

from __future__ import annotations

from typing import List

import numpy as np
from onnx import TensorProto

from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.convolutions import constant_shape, split
from gradseg.graphs.passes.rows_head import interleaved_head

MOST = 6 * 2**20
MOST_STRIPES = 32


def even_head(graph: Graph, most_bytes: int = MOST) -> bool:
    """Applies the pass in place; False if the graph does not end in that head, which then stays as it is."""
    head = interleaved_head(graph)
    if head is None:
        return False
    quad, classes, height, width, inputs = 4, head.classes, head.height, head.width, head.weight.shape[1]
    columns = head.weight.reshape(quad, classes, inputs).transpose(2, 1, 0).reshape(inputs, -1)
    operands = [graph.constant("head_columns", np.ascontiguousarray(columns))]
    if head.bias is not None:
        operands.append(graph.constant("head_columns_bias", head.bias.reshape(quad, classes).T.ravel()))
    pixels = graph.add("Transpose", [head.features], graph.fresh("features_rows"), perm=[0, 2, 3, 1])
    pixels = graph.add("Reshape", [pixels, constant_shape(graph, "features_shape", height * width, inputs)])
    count = _stripes(height, quad * classes * height * width * 4, most_bytes)
    stripes = [pixels] if count == 1 else split(graph, pixels, [height * width // count] * count, axis=0)
    shape = constant_shape(graph, "columns_shape", height * width // count, classes, quad)
    found: List[str] = []
    for stripe in stripes:
        logits = graph.add("Gemm", [stripe, *operands], graph.fresh("logits_columns"))
        logits = graph.add("Reshape", [logits, shape])
        best = graph.add("ArgMax", [logits], graph.fresh("classes_columns"), axis=1, keepdims=0)
        found.append(graph.add("Cast", [best], to=TensorProto.UINT8))
    best = found[0] if count == 1 else graph.add("Concat", found, graph.fresh("labels_columns"), axis=0)
    best = graph.add("Reshape", [best, constant_shape(graph, "labels_pairs_shape", height, width, 2, 2)])
    best = graph.add("Transpose", [best], perm=[0, 2, 1, 3])
    graph.remove(head.last)
    whole = constant_shape(graph, "labels_whole_shape", 1, 2 * height, 2 * width)
    graph.add("Reshape", [best, whole], head.last.output[0])
    return True


def _stripes(height: int, total: int, most: int) -> int:
    """The smallest divisor of the height that makes pieces of at most `most` bytes; 1 if it would take too many."""
    divisors = (count for count in range(1, MOST_STRIPES + 1) if height % count == 0)
    return next((count for count in divisors if total <= most * count), 1)

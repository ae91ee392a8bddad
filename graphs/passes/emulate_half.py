"""Pass: a model in float16 computes in float32 and rounds every result to float16. To measure with, not to run.

Needs: a sorted model from `to_half`. Promises: no float16 weight or activation is left but between pairs of Casts,
which round; weights keep their rounded values. A convolution sums in float32 and rounds once, as tensor cores can. What
DequantizeLinear gives is not rounded: INT8 kernels work on the integers and keep scales in float32.
Why: ONNX Runtime's CPU has few float16 kernels; it puts Casts around the other operators and then drops those between
two of them, so that activations are never rounded, and nothing overflows (seen with 1.31). It keeps these pairs.
Proof: tests/test_trt_onnx.py, bit for bit against NumPy's float16, and a network that overflows.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from gradseg.graphs.graph import Graph


def emulate_half(graph: Graph) -> int:
    """Applies the pass in place; returns the number of tensors that are rounded."""
    model = graph.to_model()
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    halves = {v.name for v in inferred.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for name, value in graph.weights.items():
        if value.dtype == np.float16:
            graph.weights[name] = value.astype(np.float32)
    count = 0
    for node in list(graph.nodes):
        for found in node.attribute:
            if node.op_type == "Cast" and found.name == "to" and found.i == TensorProto.FLOAT16:
                found.i = TensorProto.FLOAT
        if node.op_type == "DequantizeLinear":
            continue
        for index, name in enumerate(node.output):
            if name in halves:
                exact = graph.fresh(f"{name}_exact")
                node.output[index] = exact
                rounded = graph.add("Cast", [exact], graph.fresh(f"{name}_rounded"), to=TensorProto.FLOAT16)
                graph.add("Cast", [rounded], name, to=TensorProto.FLOAT)
                count += 1
    return count

"""Sizes of an ONNX network's tensors and the multiply-accumulates of its nodes. Needs onnx; no torch."""

from __future__ import annotations

import math
from typing import Dict, List, Tuple

import onnx

from gradseg.graphs.graph import attribute


def tensors_of(model: onnx.ModelProto) -> Tuple[Dict[str, List[int]], Dict[str, int]]:
    """Shapes, which must be static, and ONNX element types of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    sizes, kinds = {}, {}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        kind = value.type.tensor_type
        sizes[value.name], kinds[value.name] = [dim.dim_value for dim in kind.shape.dim], kind.elem_type
    for tensor in inferred.initializer:
        sizes[tensor.name], kinds[tensor.name] = list(tensor.dims), tensor.data_type
    return sizes, kinds


def macs_of(node: onnx.NodeProto, sizes: Dict[str, List[int]]) -> int:
    """Multiply-accumulates per run; 0 for what multiplies no matrix."""
    if node.op_type in ("Conv", "ConvTranspose"):
        # every weight meets every pixel of the smaller of the two maps once
        pixels = sizes[node.output[0] if node.op_type == "Conv" else node.input[0]]
        return math.prod(sizes[node.input[1]]) * pixels[0] * math.prod(pixels[2:])
    if node.op_type in ("MatMul", "Gemm"):
        across = node.op_type == "Gemm" and attribute(node, "transA", 0)
        return math.prod(sizes[node.output[0]]) * sizes[node.input[0]][-2 if across else -1]
    return 0

"""Pass: logits become the label map inside the graph.

Needs: one graph output, float32 logits (1, C, H, W), with static shapes.
Promises: the output is `labels`, uint8 (1, H, W), the index of the largest logit, the first one on ties; the last node
is Cast (TensorRT writes uint8 only from a Cast on the border, and its documentation names only floats as what may be
cast to uint8; they hold the labels exactly). If the logits come from an unpadded 2x2 stride-2
deconvolution, it becomes a 1x1 convolution to 4 * C channels whose argmax is taken before the pixels are interleaved:
each output pixel of such a deconvolution reads one input pixel, so the four classes' maps are independent. Labels are
interleaved (as floats, which hold them exactly) instead of logits.
Exact: the same sums of products per pixel and class; the order of the classes, hence the tie rule, is kept.
Proof: tests/test_export_passes.py, random and tied logits against NumPy's argmax of the original output.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.passes.convolutions import bias_of, constant_shape, weight_of
from gradseg.graphs.passes.deconv_as_conv import doubles

OUTPUT = "labels"


def label_head(graph: Graph, logits_shape: Sequence[int]) -> None:
    """Applies the pass in place. `logits_shape` is the output's (1, C, H, W)."""
    logits = graph.model.graph.output[0].name
    _, classes, height, width = logits_shape
    producer = graph.producer(logits)
    if producer is not None and _is_2x2_upsampling(graph, producer) and len(graph.consumers(logits)) == 0:
        labels = _interleaved_labels(graph, producer, classes, height // 2, width // 2)
    else:
        labels = graph.add("ArgMax", [logits], graph.fresh("classes"), axis=1, keepdims=0)
        labels = graph.add("Cast", [labels], graph.fresh("classes_float"), to=TensorProto.FLOAT)
    graph.add("Cast", [labels], OUTPUT, to=TensorProto.UINT8)
    declared = helper.make_tensor_value_info(OUTPUT, TensorProto.UINT8, [1, height, width])
    graph.model.graph.output[0].CopyFrom(declared)


def _is_2x2_upsampling(graph: Graph, node: onnx.NodeProto) -> bool:
    return doubles(graph, node) and weight_of(graph, node).shape[2:] == (2, 2) and not any(attribute(node, "pads", []))


def _interleaved_labels(graph: Graph, deconv: onnx.NodeProto, classes: int, height: int, width: int) -> str:
    """The labels, float32 (1, 2 * height, 2 * width), of a deconvolution of a (height, width) map."""
    # (C_in, C, 2, 2) → (dy, dx, C, C_in)
    rows = weight_of(graph, deconv).transpose(2, 3, 1, 0).reshape(4 * classes, -1, 1, 1)
    inputs = [deconv.input[0], graph.constant(f"{deconv.input[1]}_1x1", np.ascontiguousarray(rows))]
    bias = bias_of(graph, deconv)
    if bias is not None:
        inputs.append(graph.constant(f"{deconv.input[2]}_1x1", np.tile(bias, 4)))
    graph.remove(deconv)
    shape = constant_shape(graph, "head_shape", 1, 4, classes, height, width)
    logits = graph.add("Conv", inputs, graph.fresh("logits_1x1"), kernel_shape=[1, 1])
    split = graph.add("Reshape", [logits, shape], graph.fresh("logits_by_pixel"))
    best = graph.add("ArgMax", [split], graph.fresh("classes"), axis=2, keepdims=0)
    best = graph.add("Cast", [best], graph.fresh("classes_float"), to=TensorProto.FLOAT)
    best = graph.add("DepthToSpace", [best], blocksize=2, mode="DCR")
    return graph.add("Reshape", [best, constant_shape(graph, "labels_shape", 1, 2 * height, 2 * width)])

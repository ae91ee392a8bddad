"""Pass: the float input (normalised NCHW) becomes the frame itself, uint8 BGR (1, H, W, 3).

Needs: one graph input, float32 (1, 3, H, W), normalised as the ModelSpec says.
Promises: the input is `frame`; the first node is Cast (TensorRT takes uint8 only at a Cast on the border), then the
layout is transposed. Colour permutation and 1 / (255 * std) are multiplied into the first convolutions. A max-pool
commutes with both (the factors are positive), so they move through it to the convolution behind.
The mean: folded into the bias of a convolution without padding. With zero padding that would be wrong at the borders
(there the padding stands for the mean colour), so 255 * mean is subtracted from the pixels first; with mean 0 nothing
is left of the normalisation.
Exact: in real arithmetic, borders included. Weights are folded in float64 and rounded once.
Proof: tests/test_export_passes.py, random mean, std and colour order against `normalised_chw`.
"""

from __future__ import annotations

from typing import Any, List

import numpy as np
import onnx
from onnx import TensorProto, helper

from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.passes.convolutions import bias_of, group_of, weight_of
from gradseg.models.spec import ModelSpec

INPUT = "frame"


def fold_input(graph: Graph, spec: ModelSpec) -> None:
    """Applies the pass in place."""
    old = graph.model.graph.input[0]
    height, width = spec.input_hw
    readers = graph.consumers(old.name)
    pixels = graph.add("Cast", [INPUT], graph.fresh("pixels_nhwc"), to=TensorProto.FLOAT)
    pixels = graph.add("Transpose", [pixels], graph.fresh("pixels"), perm=[0, 3, 1, 2])
    mean = np.asarray(spec.mean, np.float64)
    if mean.any() and not all(_unpadded(node) for node in readers):
        bgr = mean[_source_channels(spec)] * 255.0
        offset = graph.constant("pixel_mean", bgr.astype(np.float32).reshape(1, 3, 1, 1))
        pixels = graph.add("Sub", [pixels, offset], graph.fresh("pixels_centred"))
        mean = np.zeros(3)
    _feed(graph, readers, old.name, pixels, spec, mean)
    old.CopyFrom(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [1, height, width, 3]))


def _source_channels(spec: ModelSpec) -> List[int]:
    """For each channel of the spec's colour order, where it lies in BGR (the same list maps back)."""
    return [2, 1, 0] if spec.color_order == "rgb" else [0, 1, 2]


def _unpadded(node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" and not any(attribute(node, "pads", [])) and not attribute(node, "auto_pad")


def _feed(
    graph: Graph, readers: List[onnx.NodeProto], old: str, pixels: str, spec: ModelSpec, mean: np.ndarray[Any, Any]
) -> None:
    """Lets `readers`, which read the normalised tensor `old`, read the raw `pixels` instead."""
    for node in readers:
        if node.op_type == "MaxPool" and len(node.output) == 1 and not graph.is_output(node.output[0]):
            behind = graph.consumers(node.output[0])
            node.input[0] = pixels
            _feed(graph, behind, node.output[0], node.output[0], spec, mean)
        elif node.op_type == "Conv" and node.input[1] in graph.weights:
            node.input[0] = pixels
            _fold_conv(graph, node, spec, mean)
        else:  # anything else gets the normalisation as a 1x1 convolution in front
            identity = graph.constant("normalise", np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1))
            normalised = graph.add("Conv", [pixels, identity], kernel_shape=[1, 1])
            conv = graph.producer(normalised)
            assert conv is not None
            _fold_conv(graph, conv, spec, mean)
            graph.replace_uses(old, normalised, [node])


def _fold_conv(graph: Graph, node: onnx.NodeProto, spec: ModelSpec, mean: np.ndarray[Any, Any]) -> None:
    weight, bias = dense_weight(weight_of(graph, node).astype(np.float64), group_of(node)), bias_of(graph, node)
    scale = 1.0 / (255.0 * np.asarray(spec.std, np.float64))
    shift = (0.0 if bias is None else bias) - np.einsum("ocyx,c->o", weight, mean * 255.0 * scale)
    folded = (weight * scale[None, :, None, None])[:, _source_channels(spec)]
    stem = node.input[1]
    node.input[1] = graph.constant(f"{stem}_bgr", folded.astype(np.float32))
    del node.input[2:]
    if np.any(shift):
        node.input.append(graph.constant(f"{stem}_bgr_bias", shift.astype(np.float32)))
    kept = [a for a in node.attribute if a.name != "group"]
    del node.attribute[:]
    node.attribute.extend(kept)


def dense_weight(weight: np.ndarray[Any, Any], group: int) -> np.ndarray[Any, Any]:
    """A grouped convolution's weights (O, C / group, kH, kW) as dense ones (O, C, kH, kW)."""
    outputs, width = weight.shape[:2]
    dense = np.zeros((outputs, width * group, *weight.shape[2:]), weight.dtype)
    per_group = outputs // group
    for index in range(group):
        rows = slice(index * per_group, (index + 1) * per_group)
        dense[rows, index * width : (index + 1) * width] = weight[rows]
    return dense

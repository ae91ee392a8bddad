"""The ONNX operators of our family's deployment form as PyTorch functions."""

from __future__ import annotations

from typing import Callable, Mapping

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from gradseg.base.errors import GradsegError
from gradseg.graphs.graph import Graph, attribute

Operator = Callable[..., Tensor]


def operator(graph: Graph, node: onnx.NodeProto) -> Operator:
    """A node as a function of its non-constant inputs (and of weight and bias, for convolutions)."""
    maker = _MAKERS.get(node.op_type)
    if maker is None:
        raise GradsegError(f"{node.name}: fine-tuning does not know operator {node.op_type}; use a network of ours")
    return maker(graph, node)


def _symmetric_pads(node: onnx.NodeProto) -> list[int]:
    pads = list(attribute(node, "pads", [0, 0, 0, 0]))
    if pads[:2] != pads[2:] or attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET"):
        raise GradsegError(f"{node.name}: fine-tuning does not know uneven padding {pads}")
    return pads[:2]


def _conv(_graph: Graph, node: onnx.NodeProto) -> Operator:
    stride, pads = list(attribute(node, "strides", [1, 1])), _symmetric_pads(node)
    dilation, group = list(attribute(node, "dilations", [1, 1])), attribute(node, "group", 1)
    if node.op_type == "Conv":
        return lambda x, w, b: F.conv2d(x, w, b, stride, pads, dilation, group)
    extra = list(attribute(node, "output_padding", [0, 0]))
    return lambda x, w, b: F.conv_transpose2d(x, w, b, stride, pads, extra, group, dilation)


def _reshape(graph: Graph, node: onnx.NodeProto) -> Operator:
    shape = [int(size) for size in graph.weights[node.input[1]]]
    return lambda x: x.reshape(x.shape[0], *shape[1:])  # the graph's batch is 1


def _sub(graph: Graph, node: onnx.NodeProto) -> Operator:
    if node.input[1] not in graph.weights:
        return torch.sub
    offset = torch.from_numpy(graph.weights[node.input[1]].copy())
    return lambda x: x - offset


def _max_pool(_graph: Graph, node: onnx.NodeProto) -> Operator:
    kernel, stride = list(attribute(node, "kernel_shape")), list(attribute(node, "strides", [1, 1]))
    pads, ceil = _symmetric_pads(node), bool(attribute(node, "ceil_mode", 0))
    return lambda x: F.max_pool2d(x, kernel, stride, pads, 1, ceil)


def _resize(graph: Graph, node: onnx.NodeProto) -> Operator:
    scales = graph.weights.get(node.input[2]) if len(node.input) > 2 else None
    mode = attribute(node, "mode", b"nearest").decode()
    place = attribute(node, "coordinate_transformation_mode", b"half_pixel").decode()
    known = {"linear": "half_pixel", "nearest": "asymmetric"}
    if scales is None or len(scales) != 4 or list(scales[:2]) != [1, 1] or known.get(mode) != place:
        raise GradsegError(
            f"{node.name}: fine-tuning does not know this Resize ({mode}, {place}); use a network of ours"
        )
    factors = [float(scales[2]), float(scales[3])]
    if mode == "nearest":
        return lambda x: F.interpolate(x, scale_factor=factors, mode="nearest")
    return lambda x: F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=False)


def _add(graph: Graph, node: onnx.NodeProto) -> Operator:
    if any(name in graph.weights for name in node.input):
        raise GradsegError(f"{node.name}: fine-tuning does not know a sum with a constant; use a network of ours")
    return torch.add


def _concat(_graph: Graph, node: onnx.NodeProto) -> Operator:
    axis = attribute(node, "axis")
    return lambda *parts: torch.cat(parts, axis)


def _transpose(_graph: Graph, node: onnx.NodeProto) -> Operator:
    perm = list(attribute(node, "perm"))
    return lambda x: x.permute(perm)


_MAKERS: Mapping[str, Callable[[Graph, onnx.NodeProto], Operator]] = {
    "Cast": lambda _graph, _node: lambda x: x.float(),
    "Transpose": _transpose,
    "Sub": _sub,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Relu": lambda _graph, _node: F.relu,
    "Add": _add,
    "MaxPool": _max_pool,
    "Concat": _concat,
    "Resize": _resize,
    "Reshape": _reshape,
}

"""Weights that quantise better, the function unchanged: cross-layer equalisation and bias correction.

Both from Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, sections
4.1 and 4.2. Needs onnx; no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Mapping, Optional

import numpy as np
import onnx

from gradseg.calibration.qdq.plan import COMPUTE, Plan
from gradseg.calibration.qdq.quantise import WeightSettings, channel_axis, weight_scales
from gradseg.calibration.qdq.targets import MOST, REDUCED, along, target_named, weight_integers
from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.passes.convolutions import (
    bias_of,
    by_group,
    channels_of,
    is_plain_convolution,
    only_reader,
    scaled,
    weight_of,
)

SWEEPS = 40
DONE = 1e-3  # largest relative change of a scale in a sweep below which equalisation has converged
MOST_STRETCH = 1e4  # bound on a channel's scale in one sweep; dead channels would run away
HOMOGENEOUS = ("Relu", "Resize", "MaxPool", "AveragePool", "GlobalAveragePool")  # f(s * x) = s * f(x) for s > 0


@dataclass(frozen=True)
class Pair:
    """Two convolutions, the second of which is the only reader of the first. order: the second's input channel i is the
    first's output channel order[i]."""

    first: onnx.NodeProto
    second: onnx.NodeProto
    order: np.ndarray[Any, Any]


def equalised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Cross-layer equalisation: between two convolutions with only ReLU, resizing, pooling or a channel shuffle between
    them, channel c is divided by s_c and multiplied again by s_c, so that the largest weights on both sides are equal.

    Exact in real arithmetic. Deterministic. Models without such pairs come back as they were.
    """
    graph = Graph(model)
    found = pairs(graph)
    _own_weights(graph, found)
    for _ in range(SWEEPS):
        change = max([_equalise(graph, pair) for pair in found], default=0.0)
        if change < DONE:
            break
    return graph.to_model()


def pairs(graph: Graph) -> List[Pair]:
    """The pairs of convolutions that can be equalised, in the graph's order."""
    firsts = [node for node in graph.nodes if node.op_type in COMPUTE and is_plain_convolution(graph, node)]
    return [pair for pair in (_pair_from(graph, node) for node in firsts) if pair is not None]


def _pair_from(graph: Graph, first: onnx.NodeProto) -> Optional[Pair]:
    count = channels_of(graph, first)[0]
    order = np.arange(count)
    shape: Optional[List[int]] = None  # inside a channel shuffle: what the channels were reshaped to
    tensor = first.output[0]
    while True:
        node = only_reader(graph, tensor)
        if node is None:
            return None
        if node.op_type in COMPUTE and node.input[0] == tensor and shape is None:
            fits = is_plain_convolution(graph, node) and channels_of(graph, node)[1] == count
            return Pair(first, node, order) if fits else None
        if node.op_type == "Reshape" and node.input[1] in graph.weights:
            dims = [int(v) for v in graph.weights[node.input[1]]]
            if shape is None and len(dims) == 5 and dims[1] * dims[2] == count:
                shape = dims[1:3]
            elif shape is not None and len(dims) == 4 and dims[1] == count:
                shape = None
            else:
                return None
        elif node.op_type == "Transpose" and shape is not None and attribute(node, "perm") == [0, 2, 1, 3, 4]:
            order = order.reshape(shape).T.ravel()
            shape = shape[::-1]
        elif node.op_type not in HOMOGENEOUS or shape is not None or not _is_homogeneous(node):
            return None
        tensor = node.output[0]


def _is_homogeneous(node: onnx.NodeProto) -> bool:
    return len(node.output) == 1 and (node.op_type != "Resize" or attribute(node, "mode", b"nearest") != b"cubic")


def _own_weights(graph: Graph, found: List[Pair]) -> None:
    """Gives every convolution of a pair weights and a bias that it shares with no other node."""
    nodes = {id(node): node for pair in found for node in (pair.first, pair.second)}
    for node in nodes.values():
        for index in range(1, len(node.input)):
            name = node.input[index]
            if name and sum(list(other.input).count(name) for other in graph.consumers(name)) > 1:
                node.input[index] = graph.constant(name, graph.weights[name].copy())


def _equalise(graph: Graph, pair: Pair) -> float:
    """One sweep over one pair; returns the largest relative change of a channel."""
    first, second = weight_of(graph, pair.first), weight_of(graph, pair.second)
    outgoing = np.abs(by_group(first, pair.first)).max(axis=(2, 3, 4)).ravel().astype(np.float64)
    incoming = np.empty_like(outgoing)
    incoming[pair.order] = np.abs(by_group(second, pair.second)).max(axis=(1, 3, 4)).ravel()
    alive = (outgoing > 0) & (incoming > 0)
    scale = np.ones_like(outgoing)
    scale[alive] = np.clip(np.sqrt(outgoing[alive] / incoming[alive]), 1 / MOST_STRETCH, MOST_STRETCH)
    graph.weights[pair.first.input[1]] = scaled(first, pair.first, 1 / scale).astype(np.float32)
    bias = bias_of(graph, pair.first)
    if bias is not None:
        graph.weights[pair.first.input[2]] = (bias / scale).astype(np.float32)
    graph.weights[pair.second.input[1]] = scaled(second, pair.second, None, scale[pair.order]).astype(np.float32)
    return float(np.abs(scale - 1).max(initial=0.0))


def bias_corrected(
    model: onnx.ModelProto, plan: Plan, target: str, weights: WeightSettings, means: Mapping[str, np.ndarray[Any, Any]]
) -> onnx.ModelProto:
    """Bias correction: the mean error that rounding a convolution's weights causes is taken off its bias.

    means: tensor → mean per channel (C,) of a convolution's input over the calibration frames. The error of output o is
    the sum of (quantised - float) weights times the input means; at padded borders it is a little less.
    """
    graph, wanted = Graph(model), target_named(target)
    chosen = set(plan.nodes)
    for node in graph.nodes:
        if node.name not in chosen or node.op_type not in COMPUTE or node.input[0] not in means:
            continue
        weight, axis = weight_of(graph, node), channel_axis(node, wanted, weights)
        scales = weight_scales(weight, node, wanted, weights)
        packed = weight_integers(weight, scales, axis, REDUCED if weights.reduce_range else MOST)
        rounding = packed * along(scales, axis, 4) - weight
        errors = by_group(scaled(rounding, node, None, np.asarray(means[node.input[0]], np.float64)), node)
        shift = errors.reshape(channels_of(graph, node)[0], -1).sum(axis=1)
        if node.op_type == "ConvTranspose":  # each output pixel sees one tap in stride ** 2
            strides = attribute(node, "strides", [1, 1])
            shift = shift / (strides[0] * strides[1])
        add_to_bias(graph, node, -shift)
    return graph.to_model()


def add_to_bias(graph: Graph, node: onnx.NodeProto, shift: np.ndarray[Any, Any]) -> None:
    bias = bias_of(graph, node)
    if bias is not None:
        node.input[2] = graph.constant(f"{node.input[2]}_corrected", (bias + shift).astype(np.float32))
        return
    del node.input[2:]
    node.input.append(graph.constant(f"{node.input[1]}_bias_correction", shift.astype(np.float32)))


def mean_tensors(graph: Graph, plan: Plan) -> List[str]:
    """The tensors whose channel means `bias_corrected` needs."""
    chosen = set(plan.nodes)
    names = [node.input[0] for node in graph.nodes if node.name in chosen and node.op_type in COMPUTE]
    return list(dict.fromkeys(names))

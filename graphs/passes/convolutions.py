"""What the passes ask of a convolution, and how they change one."""

from __future__ import annotations

from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
import onnx
from onnx import helper

from gradseg.graphs.graph import Graph, attribute


def is_plain_convolution(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a convolution or deconvolution is 2-d and its weights, and bias if any, are constants."""
    biased = len(node.input) > 2 and node.input[2]
    constant = node.input[1] in graph.weights and (not biased or node.input[2] in graph.weights)
    return constant and graph.weights[node.input[1]].ndim == 4


def is_conv(graph: Graph, node: Optional[onnx.NodeProto]) -> bool:
    """Whether the node is a 2-d convolution whose weights, and bias if any, are constants, padded by plain numbers."""
    if node is None or node.op_type != "Conv" or not is_plain_convolution(graph, node):
        return False
    return bool(attribute(node, "auto_pad", b"NOTSET") == b"NOTSET")


def grouped_convs(graph: Graph) -> List[onnx.NodeProto]:
    """The convolutions of several groups of more than one channel."""
    convs = [node for node in graph.nodes if is_conv(graph, node) and group_of(node) > 1]
    return [node for node in convs if weight_of(graph, node).shape[1] > 1]


def group_of(node: onnx.NodeProto) -> int:
    return int(attribute(node, "group", 1))


def weight_of(graph: Graph, node: onnx.NodeProto) -> np.ndarray[Any, Any]:
    """(outputs, inputs / group, kH, kW)."""
    return graph.weights[node.input[1]]


def by_group(weight: np.ndarray[Any, Any], node: onnx.NodeProto) -> np.ndarray[Any, Any]:
    """A view of the weights of a convolution or deconvolution: (group, its outputs, its inputs, kH, kW)."""
    split = weight.reshape(group_of(node), -1, *weight.shape[1:])
    return split if node.op_type == "Conv" else split.swapaxes(1, 2)


def channels_of(graph: Graph, node: onnx.NodeProto) -> Tuple[int, int]:
    """How many channels a convolution or deconvolution gives, and how many it takes."""
    groups, outputs, inputs = by_group(weight_of(graph, node), node).shape[:3]
    return groups * outputs, groups * inputs


def scaled(
    weight: np.ndarray[Any, Any],
    node: onnx.NodeProto,
    outputs: Optional[np.ndarray[Any, Any]] = None,
    inputs: Optional[np.ndarray[Any, Any]] = None,
) -> np.ndarray[Any, Any]:
    """A convolution's or deconvolution's weights times a factor for each channel, float64 (C,); float64."""
    result = weight.astype(np.float64)
    view = by_group(result, node)
    if outputs is not None:
        view *= outputs.reshape(len(view), -1, 1, 1, 1)
    if inputs is not None:
        view *= inputs.reshape(len(view), 1, -1, 1, 1)
    return result


def bias_of(graph: Graph, node: onnx.NodeProto) -> Optional[np.ndarray[Any, Any]]:
    return graph.weights[node.input[2]] if len(node.input) > 2 and node.input[2] else None


def is_depthwise(graph: Graph, node: onnx.NodeProto) -> bool:
    """One output per input channel, each from that channel alone."""
    weight = weight_of(graph, node)
    return bool(weight.shape[1] == 1 and weight.shape[0] == group_of(node))


def is_pointwise(graph: Graph, node: onnx.NodeProto) -> bool:
    """1x1, stride 1, no padding."""
    plain = not any(attribute(node, "pads", [])) and set(attribute(node, "strides", [1, 1])) == {1}
    return bool(weight_of(graph, node).shape[2:] == (1, 1) and plain)


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [found for found in node.attribute if found.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def set_weights(
    graph: Graph, node: onnx.NodeProto, weight: np.ndarray[Any, Any], bias: Optional[np.ndarray[Any, Any]], group: int
) -> None:
    """Gives one convolution other weights; arrays that it shared with other nodes stay as they are."""
    stem = node.input[1]
    node.input[1] = graph.constant(stem, np.ascontiguousarray(weight))
    del node.input[2:]
    if bias is not None:
        node.input.append(graph.constant(f"{stem}_bias", np.ascontiguousarray(bias)))
    set_attribute(node, "group", group)


def like(
    graph: Graph,
    node: onnx.NodeProto,
    source: str,
    weight: np.ndarray[Any, Any],
    bias: Optional[np.ndarray[Any, Any]],
    group: int,
) -> str:
    """Adds a convolution of `source` with that one's strides, dilations and padding; returns its output."""
    stem = node.input[1]
    inputs = [source, graph.constant(f"{stem}_part", np.ascontiguousarray(weight))]
    if bias is not None:
        inputs.append(graph.constant(f"{stem}_part_bias", np.ascontiguousarray(bias)))
    output = graph.add("Conv", inputs, graph.fresh(f"{node.output[0]}_part"))
    made = graph.nodes[-1]
    made.attribute.extend(found for found in node.attribute if found.name != "group")
    set_attribute(made, "group", group)
    return output


def constant_shape(graph: Graph, stem: str, *dims: int) -> str:
    """The name of a new int64 constant, for Reshape and Split."""
    return graph.constant(stem, np.asarray(dims, np.int64))


def resized(graph: Graph, source: str, output: str, *dims: int) -> str:
    """Adds a bilinear Resize of `source` to these dimensions, between pixel centres; returns `output`."""
    sizes = constant_shape(graph, f"{output}_size", *dims)
    options = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return graph.add("Resize", [source, "", "", sizes], output, **options)


def split(graph: Graph, source: str, sizes: Sequence[int], axis: int = 1) -> List[str]:
    """Adds a Split of `source` along an axis; returns its outputs."""
    outputs = [graph.fresh(f"{source}_part") for _ in sizes]
    inputs = [source, constant_shape(graph, f"{source}_sizes", *sizes)]
    graph.nodes.append(helper.make_node("Split", inputs, outputs, name=graph.fresh(f"{source}/Split"), axis=axis))
    return outputs


def only_reader(graph: Graph, tensor: str) -> Optional[onnx.NodeProto]:
    """The node that reads the tensor, if exactly one does and the graph does not return it."""
    readers = graph.consumers(tensor)
    return readers[0] if len(readers) == 1 and not graph.is_output(tensor) else None

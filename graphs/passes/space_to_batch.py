"""Pass: a dilated depthwise convolution becomes an undilated one over the d * d subsampled images of its input.

Needs: Conv nodes, depthwise, constant weights, one frame, stride 1, the same dilation d > 1 along both sides, odd
kernels padded to keep the size, which is a multiple of d.
Promises: the pixels that lie d apart are gathered into d * d images (a batch), convolved with padding 1 / d of what it
was, and put back. Where only ReLUs and 1x1 convolutions stand between one such convolution and the next with the same
dilation, they work on the batch too, and nothing is put back between. For engines that are slow at dilation.
Exact: a dilated kernel only ever meets pixels of one such image, at its own zero padding; the sums are the same.
Proof: tests/test_pass_dilation.py, bitwise against ONNX Runtime, and every architecture.
"""

from __future__ import annotations

from typing import Dict, List, Optional

import onnx

from gradseg.graphs.graph import Graph, attribute, shapes_of
from gradseg.graphs.passes.convolutions import (
    constant_shape,
    is_conv,
    is_depthwise,
    is_pointwise,
    only_reader,
    set_attribute,
    weight_of,
)


def space_to_batch(graph: Graph) -> int:
    """Applies the pass in place; returns the number of convolutions changed."""
    shapes = shapes_of(graph.to_model())
    found = [node for node in graph.nodes if dilation_of(graph, node, shapes.get(node.input[0], [])) > 1]
    done = {node.output[0]: attribute(node, "dilations")[0] for node in found}
    joined = set()
    for node in found:
        dilation, source = done[node.output[0]], node.input[0]
        if node.output[0] not in joined:
            node.input[0] = _gathered(graph, source, shapes[source], dilation)
        pads = [pad // dilation for pad in attribute(node, "pads")]
        set_attribute(node, "dilations", [1, 1])
        set_attribute(node, "pads", pads)
        last = node
        for other in _between(graph, node, done, dilation):
            last = other
        following = only_reader(graph, last.output[0])
        if following is not None and done.get(following.output[0]) == dilation and last is not following:
            joined.add(following.output[0])
        else:
            _put_back(graph, node, shapes[source], dilation)
    return len(found)


def dilation_of(graph: Graph, node: onnx.NodeProto, shape: List[int]) -> int:
    """The dilation of a convolution that the pass can take, else 1."""
    if not is_conv(graph, node) or not is_depthwise(graph, node) or len(shape) != 4 or shape[0] != 1:
        return 1
    down, across = attribute(node, "dilations", [1, 1])
    rows, columns = weight_of(graph, node).shape[2:]
    pads = [down * (rows // 2), down * (columns // 2)] * 2
    plain = set(attribute(node, "strides", [1, 1])) == {1} and list(attribute(node, "pads", [0] * 4)) == pads
    fits = down == across and rows % 2 == 1 and columns % 2 == 1 and shape[2] % down == 0 and shape[3] % down == 0
    return int(down) if plain and fits else 1


def _between(graph: Graph, node: onnx.NodeProto, dilated: Dict[str, int], dilation: int) -> List[onnx.NodeProto]:
    """The ReLUs and 1x1 convolutions, each the only reader of the one before, up to the next dilated convolution."""
    found: List[onnx.NodeProto] = []
    reader: Optional[onnx.NodeProto] = only_reader(graph, node.output[0])
    while reader is not None and (
        reader.op_type == "Relu"
        or (is_conv(graph, reader) and is_pointwise(graph, reader) and reader.output[0] not in dilated)
    ):
        found.append(reader)
        reader = only_reader(graph, reader.output[0])
    return found if reader is not None and dilated.get(reader.output[0]) == dilation else []


def _gathered(graph: Graph, source: str, shape: List[int], dilation: int) -> str:
    """(1, C, H, W) → (d * d, C, H / d, W / d)."""
    _, channels, height, width = shape
    rows, columns = height // dilation, width // dilation
    cut = constant_shape(graph, "space_cut", channels, rows, dilation, columns, dilation)
    tensor = graph.add("Reshape", [source, cut])
    tensor = graph.add("Transpose", [tensor], perm=[2, 4, 0, 1, 3])
    return graph.add("Reshape", [tensor, constant_shape(graph, "space_batch", dilation**2, channels, rows, columns)])


def _put_back(graph: Graph, node: onnx.NodeProto, shape: List[int], dilation: int) -> None:
    """The convolution's result, (d * d, C, H / d, W / d), as (1, C, H, W) under the name it had."""
    _, channels, height, width = shape
    result, node.output[0] = node.output[0], graph.fresh(f"{node.output[0]}_batch")
    cut = constant_shape(graph, "batch_cut", dilation, dilation, channels, height // dilation, width // dilation)
    tensor = graph.add("Reshape", [node.output[0], cut])
    tensor = graph.add("Transpose", [tensor], perm=[2, 3, 0, 4, 1])
    graph.add("Reshape", [tensor, constant_shape(graph, "batch_space", 1, channels, height, width)], result)

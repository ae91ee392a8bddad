"""Pass: the first convolution reads the frame as it lies in memory, colours interleaved; nothing is transposed.

Needs: frame (1, H, W, 3) → Cast → Transpose to NCHW [→ Sub of one value per colour], all of it read by ungrouped
convolutions without dilation along the width and with constant weights (and no other readers).
Promises: the pixels are one plane of H rows and 3 * W columns, and a kernel of kH x kW over three channels is one of
kH x 3 * kW over that plane with thrice the horizontal stride and padding: the same multiply-accumulates.
Exact: the same products; three zeros pad where one zero pixel did. Proof: tests/test_pass_borders.py.
"""

from __future__ import annotations

from typing import Any, List, Optional, Tuple

import numpy as np
import onnx

from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.passes.convolutions import (
    bias_of,
    constant_shape,
    group_of,
    is_conv,
    only_reader,
    set_attribute,
    set_weights,
    weight_of,
)


def flat_frame(graph: Graph) -> bool:
    """Applies the pass in place; False if the graph does not begin like that, which then stays as it is."""
    found = _beginning(graph)
    if found is None:
        return False
    cast, offset, last = found
    height, width = (dim.dim_value for dim in graph.model.graph.input[0].type.tensor_type.shape.dim[1:3])
    convs = graph.consumers(last)
    if not height or not width or not convs or graph.is_output(last) or not all(_fits(graph, conv) for conv in convs):
        return False
    plane = constant_shape(graph, "plane_shape", 1, 1, height, 3 * width)
    pixels = graph.add("Reshape", [cast.output[0], plane])
    if offset is not None:
        line = graph.constant("pixel_mean_line", np.tile(offset.reshape(3), width).reshape(1, 1, 1, -1))
        pixels = graph.add("Sub", [pixels, line])
    for conv in convs:
        weight = weight_of(graph, conv)
        outputs, _, rows, columns = weight.shape
        flat = weight.transpose(0, 2, 3, 1).reshape(outputs, 1, rows, 3 * columns)
        strides, pads = attribute(conv, "strides", [1, 1]), attribute(conv, "pads", [0] * 4)
        set_weights(graph, conv, flat, bias_of(graph, conv), 1)
        set_attribute(conv, "kernel_shape", [rows, 3 * columns])
        set_attribute(conv, "strides", [strides[0], 3 * strides[1]])
        set_attribute(conv, "pads", [pads[0], 3 * pads[1], pads[2], 3 * pads[3]])
        conv.input[0] = pixels
    return True


def _beginning(graph: Graph) -> Optional[Tuple[onnx.NodeProto, Optional[np.ndarray[Any, Any]], str]]:
    """(Cast of the frame, offset that is subtracted or None, the tensor that the network reads)."""
    frame = graph.model.graph.input[0]
    cast = only_reader(graph, frame.name)
    if cast is None or cast.op_type != "Cast" or len(frame.type.tensor_type.shape.dim) != 4:
        return None
    turn = only_reader(graph, cast.output[0])
    if turn is None or turn.op_type != "Transpose" or attribute(turn, "perm") != [0, 3, 1, 2]:
        return None
    if frame.type.tensor_type.shape.dim[0].dim_value != 1 or frame.type.tensor_type.shape.dim[3].dim_value != 3:
        return None
    minus = only_reader(graph, turn.output[0])
    if minus is None or minus.op_type != "Sub":
        return cast, None, turn.output[0]
    offset = graph.weights.get(minus.input[1])
    if minus.input[0] != turn.output[0] or offset is None or offset.shape != (1, 3, 1, 1):
        return None
    return cast, offset, minus.output[0]


def _fits(graph: Graph, conv: onnx.NodeProto) -> bool:
    dilations: List[int] = attribute(conv, "dilations", [1, 1])
    return is_conv(graph, conv) and group_of(conv) == 1 and dilations[1] == 1

"""Pass: a 1x1 convolution behind an enlarging interpolation runs before it, on the smaller tensor.

Needs: Resize of an NCHW tensor along height and width alone, by constant scales or sizes of at least the input's, mode
linear, cubic or nearest, with coordinates whose interpolation weights sum to one everywhere (not tf_crop_and_resize,
which extrapolates) and without antialiasing; read by one convolution alone, 1x1, stride 1, unpadded, constant weights.
Promises: the convolution costs 1 / (enlargement) of its multiply-accumulates. Its bias goes with it; a
BatchNormalization must have been folded before, a ReLU stays behind the interpolation.
Exact: in real arithmetic, both are linear, one per pixel and one per channel, and the bias is passed through because
the weights sum to one. Rounding differs. Proof: tests/test_pass_upsampling.py, modes, coordinates, sizes and groups.
"""

from __future__ import annotations

import numpy as np
import onnx

from gradseg.graphs.graph import Graph, attribute, shapes_of
from gradseg.graphs.passes.convolutions import is_conv, is_pointwise, only_reader, weight_of

MODES = (b"linear", b"cubic", b"nearest")
COORDINATES = (b"half_pixel", b"half_pixel_symmetric", b"pytorch_half_pixel", b"align_corners", b"asymmetric")


def conv_before_resize(graph: Graph) -> int:
    """Applies the pass in place; returns the number of convolutions moved."""
    changed = 0
    shapes = shapes_of(graph.to_model()) if any(node.op_type == "Resize" for node in graph.nodes) else {}
    for resize in [node for node in graph.nodes if node.op_type == "Resize"]:
        conv = only_reader(graph, resize.output[0])
        if conv is None or conv.input[0] != resize.output[0] or not is_conv(graph, conv):
            continue
        if not is_pointwise(graph, conv) or not _interpolates(graph, resize):
            continue
        before, after = shapes.get(resize.input[0], []), shapes.get(resize.output[0], [])
        if len(before) != 4 or before[:2] != after[:2] or before[2] > after[2] or before[3] > after[3]:
            continue
        if len(resize.input) > 3 and resize.input[3]:
            sizes = np.array([after[0], weight_of(graph, conv).shape[0], *after[2:]], np.int64)
            resize.input[3] = graph.constant(resize.input[3], sizes)
        result, conv.input[0] = conv.output[0], resize.input[0]
        conv.output[0] = graph.fresh(f"{result}_small")
        resize.input[0], resize.output[0] = conv.output[0], result
        changed += 1
    return changed


def _interpolates(graph: Graph, resize: onnx.NodeProto) -> bool:
    """Whether every output pixel is an average of input pixels with constant weights that sum to one."""
    if any(name and name not in graph.weights for name in resize.input[1:]) or attribute(resize, "antialias", 0):
        return False
    if attribute(resize, "axes") or attribute(resize, "keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return False
    known = attribute(resize, "coordinate_transformation_mode", b"half_pixel") in COORDINATES
    return known and attribute(resize, "mode", b"nearest") in MODES

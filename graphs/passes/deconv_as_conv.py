"""Pass: deconvolutions that double the resolution become convolutions whose output pixels are interleaved.

Needs: ConvTranspose nodes of stride 2 with constant weights, no groups, no dilation and kernels of at least 2, padded
so that the output is exactly twice as large (2x2 unpadded, 3x3 with padding 1 and one more row, 4x4 with padding 1).
Promises: each output pixel of a 2x2 block is a stride-1 convolution of the input with those taps of the kernel that
meet its parity. `apart`: four convolutions with just these taps (of 3x3: 1x1, 1x2, 2x1, 2x2), the same
multiply-accumulates. Otherwise one convolution to four times the channels over all taps' window, zeros between: more
arithmetic for 3x3 (16 taps for 9) in one kernel call; for 2x2 and 4x4 none, so there `apart` is not used. A ReLU that
alone reads the result moves before the interleaving. `rows`: whole pixels are interleaved in NHWC, as ONNX Runtime's
CPU transposes fastest; otherwise by DepthToSpace.
Exact: the same products; they may be summed in another order. Proof: tests/test_pass_upsampling.py against ONNX
Runtime's ConvTranspose, and every architecture with deconvolutions.
"""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import numpy as np
import onnx

from gradseg.graphs.graph import Graph, attribute, shapes_of
from gradseg.graphs.passes.convolutions import bias_of, constant_shape, is_plain_convolution, only_reader, weight_of

Taps = List[Tuple[int, int]]  # (tap of the kernel, which input pixel it meets, relative)


def deconv_as_conv(graph: Graph, apart: bool = False, rows: bool = False) -> int:
    """Applies the pass in place; returns the number of deconvolutions changed."""
    found = [node for node in graph.nodes if doubles(graph, node)]
    shapes = shapes_of(graph.to_model()) if found else {}
    for node in found:
        _rewrite(graph, node, shapes[node.input[0]], apart, rows)
    return len(found)


def doubles(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether the node is a deconvolution as the pass needs it."""
    if node.op_type != "ConvTranspose" or not is_plain_convolution(graph, node):
        return False
    weight = weight_of(graph, node)
    if min(weight.shape[2:]) < 2 or list(attribute(node, "strides", [])) != [2, 2]:
        return False
    if attribute(node, "group", 1) != 1 or set(attribute(node, "dilations", [1, 1])) != {1}:
        return False
    if attribute(node, "output_shape") or attribute(node, "auto_pad", b"NOTSET") != b"NOTSET":
        return False
    pads, more = attribute(node, "pads", [0] * 4), attribute(node, "output_padding", [0, 0])
    return all(weight.shape[2 + i] + more[i] - pads[i] - pads[2 + i] == 2 for i in (0, 1))


def phase_taps(size: int, pad: int) -> Tuple[Taps, Taps]:
    """For output pixels 2 * i and 2 * i + 1 along one side: their taps, and the input pixels i + … that these meet."""
    even, odd = (
        [(tap, (phase + pad - tap) // 2) for tap in reversed(range(size)) if (phase + pad - tap) % 2 == 0]
        for phase in (0, 1)
    )
    return even, odd


def _rewrite(graph: Graph, node: onnx.NodeProto, shape: List[int], apart: bool, rows: bool) -> None:
    weight, bias, pads = weight_of(graph, node), bias_of(graph, node), attribute(node, "pads", [0] * 4)
    taps = [phase_taps(weight.shape[2 + side], pads[side]) for side in (0, 1)]
    phases = [(taps[0][y], taps[1][x]) for y in (0, 1) for x in (0, 1)]
    alike = len({len(side) for pair in phases for side in pair}) == 1
    parts = [[phase] for phase in phases] if apart and not alike else [phases]
    relu = only_reader(graph, node.output[0])
    output, last = node.output[0], relu is not None and relu.op_type == "Relu"
    graph.remove(node)
    if relu is not None and last:
        output = relu.output[0]
        graph.remove(relu)
    made = []
    for part in parts:
        tensor = _convolution(graph, node, weight, bias, part)
        made.append(graph.add("Relu", [tensor]) if last else tensor)
    whole = made[0] if len(made) == 1 else graph.add("Concat", made, axis=1)
    if rows:
        _interleave_rows(graph, whole, output, [*shape[2:], int(weight.shape[1])])
    else:
        graph.add("DepthToSpace", [whole], output, blocksize=2, mode="DCR")


def _convolution(
    graph: Graph, node: onnx.NodeProto, weight: np.ndarray[Any, Any], bias: Any, phases: List[Tuple[Taps, Taps]]
) -> str:
    """One convolution for these output pixels: channels are (pixel, output channel)."""
    reach = [[offset for phase in phases for _, offset in phase[side]] for side in (0, 1)]
    low, high = [min(side) for side in reach], [max(side) for side in reach]
    window = [high[side] - low[side] + 1 for side in (0, 1)]
    inputs, outputs = weight.shape[:2]
    kernel = np.zeros((len(phases), outputs, inputs, window[0], window[1]), weight.dtype)
    for index, (rows, columns) in enumerate(phases):
        for y, row in rows:
            for x, column in columns:
                kernel[index, :, :, row - low[0], column - low[1]] = weight[:, :, y, x].T
    operands = [node.input[0], graph.constant(f"{node.input[1]}_conv", kernel.reshape(-1, *kernel.shape[2:]))]
    if bias is not None:
        operands.append(graph.constant(f"{node.input[2]}_conv", np.tile(bias, len(phases))))
    options: Dict[str, Any] = {"kernel_shape": window, "pads": [-low[0], -low[1], high[0], high[1]]}
    return graph.add("Conv", operands, graph.fresh(f"{node.output[0]}_conv"), **options)


def _interleave_rows(graph: Graph, whole: str, output: str, size: List[int]) -> None:
    """(1, 4 * C, H, W) with channels (y, x, C) → (1, C, 2 * H, 2 * W) by way of NHWC."""
    height, width, channels = size
    nhwc = graph.add("Transpose", [whole], perm=[0, 2, 3, 1])
    pairs = graph.add("Reshape", [nhwc, constant_shape(graph, "pairs_shape", height, width, 2, 2 * channels)])
    lines = graph.add("Transpose", [pairs], perm=[0, 2, 1, 3])
    image = graph.add("Reshape", [lines, constant_shape(graph, "image_shape", 1, 2 * height, 2 * width, channels)])
    graph.add("Transpose", [image], output, perm=[0, 3, 1, 2])

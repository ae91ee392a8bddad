"""Pass: a channel concat of convolutions becomes a sum of convolutions to all channels, zeros elsewhere.

Needs: a Concat along the channels whose every input is a Conv with constant weights, or a ReLU of one, read by nothing
else; ReLUs behind all or none. At most one of them may be larger than a 1x1 convolution of `most_inputs` channels; it
must be ungrouped, and all the others must fit into the last block of `block` channels that it leaves unfilled, so that
it grows by nothing that blocked kernels do not compute anyway. Where all widths are whole blocks nothing is gained.
Promises: no Concat, no reordering out of and into blocked layouts, which the three pooled colour channels of ERFNet's
first downsampler cost ONNX Runtime on 16 channels; engines add into the convolution's result.
Exact: x + 0 = x, and a ReLU sees each channel alone. Proof: tests/test_pass_concat.py.
"""

from __future__ import annotations

from typing import List, Optional

import numpy as np
import onnx

from gradseg.graphs.graph import Graph, attribute
from gradseg.graphs.passes.convolutions import (
    bias_of,
    group_of,
    is_conv,
    is_pointwise,
    only_reader,
    set_weights,
    weight_of,
)
from gradseg.graphs.passes.fold_input import dense_weight


def concat_as_sum(graph: Graph, block: int = 16, most_inputs: int = 16) -> int:
    """Applies the pass in place; returns the number of concats replaced."""
    changed = 0
    for concat in [node for node in graph.nodes if node.op_type == "Concat" and attribute(node, "axis") == 1]:
        convs = [_convolution(graph, name) for name in concat.input]
        relus = [node is not None and node.op_type == "Relu" for node in map(graph.producer, concat.input)]
        known = [conv for conv in convs if conv is not None]
        if len(known) < max(2, len(convs)) or len(set(relus)) != 1 or len(set(concat.input)) < len(convs):
            continue
        widths = [int(weight_of(graph, conv).shape[0]) for conv in known]
        large = [conv for conv in known if not _small(graph, conv, most_inputs)]
        room = [-(-int(weight_of(graph, conv).shape[0]) // block) * block for conv in large]
        if all(width % block == 0 for width in widths) or len(large) > 1 or any(size < sum(widths) for size in room):
            continue
        if any(group_of(conv) > 1 for conv in large):
            continue
        _rewrite(graph, concat, known, widths, relus[0])
        changed += 1
    return changed


def _convolution(graph: Graph, tensor: str) -> Optional[onnx.NodeProto]:
    """The convolution that makes a concat's input, behind a ReLU or not, if nothing else reads what it makes."""
    node = graph.producer(tensor)
    if only_reader(graph, tensor) is None or node is None:
        return None
    if node.op_type == "Relu":
        if only_reader(graph, node.input[0]) is None:
            return None
        node = graph.producer(node.input[0])
    return node if is_conv(graph, node) else None


def _small(graph: Graph, conv: onnx.NodeProto, most: int) -> bool:
    return is_pointwise(graph, conv) and weight_of(graph, conv).shape[1] * group_of(conv) <= most


def _rewrite(graph: Graph, concat: onnx.NodeProto, convs: List[onnx.NodeProto], widths: List[int], relu: bool) -> None:
    start, total, tensors = 0, sum(widths), []
    for conv, width in zip(convs, widths):
        dense, bias = dense_weight(weight_of(graph, conv), group_of(conv)), bias_of(graph, conv)
        weight = np.zeros((total, *dense.shape[1:]), dense.dtype)
        weight[start : start + width] = dense
        shift = np.zeros(total, dense.dtype)
        shift[start : start + width] = 0 if bias is None else bias
        set_weights(graph, conv, weight, shift if bias is not None else None, 1)
        tensors.append(conv.output[0])
        start += width
    result = concat.output[0]
    graph.remove(concat)
    for index, tensor in enumerate(tensors[1:], 2):
        final = index == len(tensors) and not relu
        tensors[0] = graph.add("Add", [tensors[0], tensor], result if final else None)
    if relu:
        graph.add("Relu", [tensors[0]], result)

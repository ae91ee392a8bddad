"""Pass: channel shuffles disappear into the order of the weights.

Needs: channel shuffles (Reshape, Transpose, Reshape, each read by the next alone) between convolutions with constant
weights. Where everything that reads a shuffled tensor is, through ReLUs, max-pools and depthwise convolutions, a
convolution over all channels, the tensor stays unshuffled: the depthwise weights are permuted, and so are the inputs of
those convolutions. Otherwise (a residual sum wants the natural order) the convolution in front gives its outputs in
the shuffled order. `most`: groups of at most that many may become dense for it; what needs more stays as it is.
Promises: no operator is left of such a shuffle. A grouped convolution whose inputs or outputs are permuted becomes
dense with zeros, `group` times the multiply-accumulates: of the two in a Conv-module only the second, for both.
Exact: the same sums; the added products are with zero. Proof: tests/test_pass_shuffle.py.
"""

from __future__ import annotations

from typing import Any, List, Optional

import numpy as np
import onnx

from gradseg.graphs.graph import Graph
from gradseg.graphs.passes.convolutions import (
    bias_of,
    group_of,
    is_conv,
    is_depthwise,
    only_reader,
    set_weights,
    weight_of,
)
from gradseg.graphs.passes.fold_batchnorm import shuffle_before
from gradseg.graphs.passes.fold_input import dense_weight


def fold_shuffle(graph: Graph, most: int = 8) -> int:
    """Applies the pass in place; returns the number of shuffles that are gone."""
    folded = 0
    for last in [node for node in graph.to_model().graph.node if node.op_type == "Reshape"]:
        found = shuffle_before(graph, last.output[0])
        if found is None:
            continue
        source, _, order = found
        readers = None if graph.is_output(last.output[0]) else _followers(graph, last.output[0], len(order), most)
        if readers is not None:
            _permute_readers(graph, readers, order)
        elif not _permute_producer(graph, source, order, most):
            continue
        _remove(graph, source, last.output[0])
        folded += 1
    return folded


def _remove(graph: Graph, source: str, shuffled: str) -> None:
    """Takes a shuffle's three nodes out; who read its result reads its source."""
    tensor = shuffled
    while tensor != source:
        node = graph.producer(tensor)
        assert node is not None
        graph.remove(node)
        tensor = node.input[0]
    graph.replace_uses(shuffled, source)
    producer = graph.producer(source)
    if producer is not None and graph.is_output(shuffled):
        producer.output[0] = shuffled


def _followers(graph: Graph, tensor: str, channels: int, most: int) -> Optional[List[onnx.NodeProto]]:
    """The convolutions that read the tensor, also through operators by channel; None if anything else reads it."""
    found: List[onnx.NodeProto] = []
    for node in graph.consumers(tensor):
        if node.op_type in ("Relu", "MaxPool") and len(node.output) == 1:
            passed = True
        elif is_conv(graph, node) and node.input[0] == tensor:
            passed = is_depthwise(graph, node)
            if passed or group_of(node) == 1 or (group_of(node) <= most and weight_of(graph, node).shape[1] > 1):
                found.append(node)
            else:
                return None
        else:
            return None
        if passed:
            behind = None if graph.is_output(node.output[0]) else _followers(graph, node.output[0], channels, most)
            if behind is None:
                return None
            found.extend(behind)
    return found


def _permute_readers(graph: Graph, convs: List[onnx.NodeProto], order: np.ndarray[Any, Any]) -> None:
    """Lets convolutions that were written for the shuffled tensor read the unshuffled one."""
    for conv in convs:
        weight, bias = weight_of(graph, conv), bias_of(graph, conv)
        if is_depthwise(graph, conv):
            permuted, shift = np.empty_like(weight), None if bias is None else np.empty_like(bias)
            permuted[order] = weight
            if shift is not None:
                shift[order] = bias
            set_weights(graph, conv, permuted, shift, group_of(conv))
        else:
            dense = dense_weight(weight, group_of(conv))
            permuted = np.empty_like(dense)
            permuted[:, order] = dense
            set_weights(graph, conv, permuted, bias, 1)


def _permute_producer(graph: Graph, source: str, order: np.ndarray[Any, Any], most: int) -> bool:
    """Lets the convolution that makes the tensor, through ReLUs, give its channels in the shuffled order."""
    node = graph.producer(source)
    if node is None or only_reader(graph, source) is None:
        return False
    if node.op_type == "Relu":
        return _permute_producer(graph, node.input[0], order, most)
    if not is_conv(graph, node) or (group_of(node) > most and not is_depthwise(graph, node)):
        return False
    if is_depthwise(graph, node) and group_of(node) > 1:
        return False
    weight, bias = dense_weight(weight_of(graph, node), group_of(node)), bias_of(graph, node)
    set_weights(graph, node, weight[order], None if bias is None else bias[order], 1)
    return True

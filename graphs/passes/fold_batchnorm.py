"""Pass: BatchNormalization becomes part of the convolutions before it.

Needs: inference-form BatchNormalization nodes (one output) on NCHW tensors with constant parameters.
Promises: none is left but those to keep. It is the affine map y = scale * x + shift per channel; it is pushed towards
the input through channel shuffles (permuted with them) and channel concats (split over the branches), and multiplied
into the Conv or ConvTranspose that it meets. Where it meets anything else, or a tensor that others read too, it
stays as a 1x1 depthwise convolution at that place, which engines run inside their own layouts.
Exact: in real arithmetic everywhere, including borders, since the map is applied after the convolution's padding.
Weights are folded in float64 and rounded once. Proof: tests/test_export_passes.py, each path against the original in
ONNX Runtime on random parameters, and every architecture's logits.
"""

from __future__ import annotations

from typing import Any, Collection, Dict, List, Optional, Tuple

import numpy as np
import onnx

from gradseg.graphs.graph import Graph, attribute, shapes_of
from gradseg.graphs.passes.convolutions import bias_of, scaled, weight_of


def fold_batchnorm(graph: Graph, keep: Collection[str] = ()) -> int:
    """Applies the pass in place; returns the number of BatchNormalization nodes folded. `keep`: outputs of others."""
    found = [node for node in graph.nodes if node.op_type == "BatchNormalization" and node.output[0] not in keep]
    shapes = shapes_of(graph.to_model()) if found else {}
    for node in found:
        gamma, beta, mean, var = (graph.weights[name].astype(np.float64) for name in node.input[1:5])
        scale = gamma / np.sqrt(var + attribute(node, "epsilon", 1e-5))
        graph.remove(node)
        source = _push(graph, node.input[0], scale, beta - mean * scale, shapes)
        _rename_output(graph, source, node.output[0])
    return len(found)


def _rename_output(graph: Graph, source: str, target: str) -> None:
    """Makes the tensor `source` appear as `target`; the producer is renamed, so graph outputs keep their names."""
    producer = graph.producer(source)
    if producer is None or graph.consumers(source) or graph.is_output(source):
        graph.replace_uses(target, source)
        return
    producer.output[list(producer.output).index(source)] = target


def _push(
    graph: Graph, tensor: str, scale: np.ndarray[Any, Any], shift: np.ndarray[Any, Any], shapes: Dict[str, List[int]]
) -> str:
    """Applies the affine map to `tensor` at or above its producer; returns the tensor that now holds the result.

    The caller has already detached the reader, so a remaining reader means that the tensor is shared.
    """
    producer = graph.producer(tensor)
    shared = graph.is_output(tensor) or len(graph.consumers(tensor)) > 0
    if producer is None or shared:
        return _insert_affine(graph, tensor, scale, shift, shapes)
    if producer.op_type in ("Conv", "ConvTranspose") and producer.input[1] in graph.weights:
        _scale_conv(graph, producer, scale, shift)
        return tensor
    if producer.op_type == "Concat" and attribute(producer, "axis") == 1:
        return _push_concat(graph, producer, scale, shift, shapes)
    shuffle = shuffle_before(graph, tensor)
    if shuffle is not None:
        source, first, permutation = shuffle
        inverse_scale, inverse_shift = np.empty_like(scale), np.empty_like(shift)
        inverse_scale[permutation], inverse_shift[permutation] = scale, shift
        first.input[0] = ""  # detached, so that the source counts as unread
        first.input[0] = _push(graph, source, inverse_scale, inverse_shift, shapes)
        return tensor
    return _insert_affine(graph, tensor, scale, shift, shapes)


def _push_concat(
    graph: Graph,
    concat: onnx.NodeProto,
    scale: np.ndarray[Any, Any],
    shift: np.ndarray[Any, Any],
    shapes: Dict[str, List[int]],
) -> str:
    widths = [shapes[name][1] for name in concat.input]
    if not all(widths):
        return _insert_affine(graph, concat.output[0], scale, shift, shapes)
    start = 0
    for index, (name, width) in enumerate(zip(list(concat.input), widths)):
        concat.input[index] = ""
        part = slice(start, start + width)
        concat.input[index] = _push(graph, name, scale[part], shift[part], shapes)
        start += width
    return str(concat.output[0])


def _scale_conv(graph: Graph, node: onnx.NodeProto, scale: np.ndarray[Any, Any], shift: np.ndarray[Any, Any]) -> None:
    """Multiplies an output-channel affine map into a convolution; weights shared with another node are copied."""
    weight, bias, stem = scaled(weight_of(graph, node), node, scale), bias_of(graph, node), node.input[1]
    node.input[1] = graph.constant(f"{stem}_folded", weight.astype(np.float32))
    del node.input[2:]
    folded = shift if bias is None else bias * scale + shift
    node.input.append(graph.constant(f"{stem}_bias", folded.astype(np.float32)))


def _insert_affine(
    graph: Graph, tensor: str, scale: np.ndarray[Any, Any], shift: np.ndarray[Any, Any], shapes: Dict[str, List[int]]
) -> str:
    weight = graph.constant(f"{tensor}_scale", scale.astype(np.float32).reshape(-1, 1, 1, 1))
    bias = graph.constant(f"{tensor}_shift", shift.astype(np.float32))
    made = graph.add("Conv", [tensor, weight, bias], kernel_shape=[1, 1], group=len(scale))
    shapes[made] = shapes[tensor]
    return made


def shuffle_before(graph: Graph, tensor: str) -> Optional[Tuple[str, onnx.NodeProto, np.ndarray[Any, Any]]]:
    """(source, first node, permutation) if `tensor` is a channel shuffle of `source`: out[i] = in[permutation[i]].

    A shuffle is Reshape to (1, a, b, H, W), Transpose of axes 1 and 2, Reshape back, each read by the next only.
    """
    last = graph.producer(tensor)
    if last is None or last.op_type != "Reshape":
        return None
    middle = graph.producer(last.input[0])
    if middle is None or middle.op_type != "Transpose" or attribute(middle, "perm") != [0, 2, 1, 3, 4]:
        return None
    first = graph.producer(middle.input[0])
    if first is None or first.op_type != "Reshape" or first.input[1] not in graph.weights:
        return None
    if len(graph.consumers(first.output[0])) != 1 or len(graph.consumers(middle.output[0])) != 1:
        return None
    inner, outer = graph.weights[first.input[1]], graph.weights.get(last.input[1])
    if outer is None or len(inner) != 5 or len(outer) != 4 or inner[1] * inner[2] != outer[1]:
        return None
    return first.input[0], first, np.arange(outer[1]).reshape(inner[1], inner[2]).T.ravel()

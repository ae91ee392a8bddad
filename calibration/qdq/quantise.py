"""The writer of INT8 as explicit Q/DQ, as `plan` decides. Needs onnx; no torch.

Biases stay float: TensorRT refuses a DequantizeLinear on a bias and OpenVINO crashes on one. Pixels as the frame has
them are integers of 8 bits already: they are never rounded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional, Set, Tuple

import numpy as np
import onnx

from gradseg.base.errors import GradsegError
from gradseg.calibration.qdq.plan import COMPUTE, Plan, pixel_tensors, result_of
from gradseg.calibration.qdq.targets import (
    MOST,
    REDUCED,
    Quantisation,
    Target,
    along,
    target_named,
    weight_integers,
    weight_scale,
)
from gradseg.graphs.graph import Graph, attribute
from gradseg.models import metadata


@dataclass(frozen=True)
class WeightSettings:
    """How weights become int8. per_channel: None is what the target wants. reduce_range: within ±63.
    scales: node name → scales that are used as they are, one per output channel or a single one."""

    per_channel: Optional[bool] = None
    reduce_range: bool = False
    scales: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)


def quantised(
    model: onnx.ModelProto,
    plan: Plan,
    activations: Mapping[str, Quantisation],
    target: str,
    weights: Optional[WeightSettings] = None,
) -> onnx.ModelProto:
    """The model with QuantizeLinear / DequantizeLinear pairs as planned. Metadata is kept, precision is not set.

    activations: for every tensor of `plan.observed()`; GradsegError naming the first one that is missing.
    """
    graph, wanted = Graph(model), target_named(target)
    missing = [name for name in plan.observed() if name not in activations]
    if missing:
        raise GradsegError(f"no range for tensor {missing[0]} ({len(missing)} missing); calibrate this model again")
    exact = pixel_tensors(graph)
    chosen: Set[str] = set(plan.nodes)
    for node in [node for node in graph.nodes if node.name in chosen and node.op_type in COMPUTE]:
        step = 1.0 if node.input[0] in exact else None
        if node.input[0] in plan.tensors:
            step = activations[plan.tensors[node.input[0]]].scale
        quantise_weights(graph, node, wanted, weights or WeightSettings(), step)
    shared: Dict[str, Tuple[str, str]] = {}
    for tensor, source in plan.tensors.items():
        if source not in shared:
            scale: np.ndarray[Any, Any] = np.array(activations[source].scale, np.float32)
            zero: np.ndarray[Any, Any] = np.array(activations[source].zero_point, activations[source].zero_type)
            shared[source] = (graph.constant(f"{source}_scale", scale), graph.constant(f"{source}_zero_point", zero))
        _quantise_activation(graph, tensor, shared[source])
    if target == "cpu":
        shield_floats(graph)
    return graph.to_model()


def _quantise_activation(graph: Graph, tensor: str, scale_zero: Tuple[str, str]) -> None:
    """Puts a Q/DQ pair behind a tensor; all its readers read the pair's result."""
    readers = graph.consumers(tensor)
    packed = graph.add("QuantizeLinear", [tensor, *scale_zero], graph.fresh(f"{tensor}_quantised"))
    unpacked = graph.add("DequantizeLinear", [packed, *scale_zero], graph.fresh(f"{tensor}_dequantised"))
    graph.replace_uses(tensor, unpacked, readers)


def channel_axis(node: onnx.NodeProto, target: Target, settings: WeightSettings) -> Optional[int]:
    """The axis of a convolution's weights with a scale per index: 0 of Conv, 1 of ConvTranspose, None for one scale.

    GradsegError for a grouped deconvolution with a scale per channel: no axis of its weights is its output channels.
    """
    per_channel = target.per_channel if settings.per_channel is None else settings.per_channel
    if not per_channel:
        return None
    if node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1:
        raise GradsegError(f"{node.name}: a grouped deconvolution has no per-channel axis; leave it in float")
    return 0 if node.op_type == "Conv" else 1


def weight_scales(
    weight: np.ndarray[Any, Any], node: onnx.NodeProto, target: Target, settings: WeightSettings
) -> np.ndarray[Any, Any]:
    """The float32 scales that `quantised` gives a convolution's weights."""
    axis = channel_axis(node, target, settings)
    if node.name in settings.scales:
        given = np.asarray(settings.scales[node.name], np.float32).ravel()
        if given.size != (1 if axis is None else weight.shape[axis]):
            raise GradsegError(f"{node.name}: {given.size} weight scales given; they do not fit {list(weight.shape)}")
        return given
    return weight_scale(weight, axis, REDUCED if settings.reduce_range else MOST, target.power_of_two)


def quantise_weights(
    graph: Graph, node: onnx.NodeProto, target: Target, settings: WeightSettings, step: Optional[float]
) -> None:
    """Replaces a convolution's float weights by int8 ones and a DequantizeLinear. `step`: its input's scale."""
    stem = node.input[1]
    weight = graph.weights[stem]
    axis, most = channel_axis(node, target, settings), REDUCED if settings.reduce_range else MOST
    scales = weight_scales(weight, node, target, settings)
    packed = weight_integers(weight, scales, axis, most)
    if target.power_of_two and step is not None and len(node.input) > 2 and node.input[2]:
        bias = graph.weights[node.input[2]].astype(np.float64)
        unit = along(scales, axis if axis is None else 0, 1) * step
        node.input[2] = graph.constant(f"{node.input[2]}_fixed", (np.rint(bias / unit) * unit).astype(np.float32))
    one = axis is None
    inputs = [
        graph.constant(f"{stem}_int8", packed),
        graph.constant(f"{stem}_scale", scales.reshape(()) if one else scales),
        graph.constant(f"{stem}_zero_point", np.zeros((), np.int8) if one else np.zeros(len(scales), np.int8)),
    ]
    extra = {} if one else {"axis": axis}
    node.input[1] = graph.add("DequantizeLinear", inputs, graph.fresh(f"{stem}_dequantised"), **extra)


def mark_int8(model: onnx.ModelProto, target: str, known: Mapping[str, Any]) -> None:
    """Writes into a quantised model's metadata whom it is for and what is known of its scales."""
    packed, total = count_quantised(model)
    note = json.dumps({**known, "int8_convolutions": packed, "convolutions": total}, sort_keys=True)
    metadata.set_metadata(model, {metadata.PRECISION: "int8", metadata.TARGET: target, metadata.CALIBRATION: note})


def count_quantised(model: onnx.ModelProto) -> Tuple[int, int]:
    """(convolutions with INT8 weights, convolutions in all)."""
    graph = Graph(model)
    convs = [node for node in graph.nodes if node.op_type in COMPUTE]
    packed = [node for node in convs if graph.producer(node.input[1]) is not None]
    return len(packed), len(convs)


def shield_floats(graph: Graph) -> None:
    """Applies the pass in place."""
    for node in list(graph.nodes):
        if node.op_type not in (*COMPUTE, "Gemm") or node.input[1] not in graph.weights:
            continue
        before = graph.producer(node.input[0])
        after = graph.consumers(result_of(graph, node))
        fed = before is not None and before.op_type == "DequantizeLinear"
        if fed and any(reader.op_type == "QuantizeLinear" for reader in after):
            node.input[0] = graph.add("Max", [node.input[0]], graph.fresh(f"{node.input[0]}_float"))
